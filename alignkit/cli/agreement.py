"""`alignkit agreement`: what annotators agree on."""

from __future__ import annotations

from pathlib import Path

import click

from alignkit.errors import RecipeError


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--bootstrap", type=int, default=2000, show_default=True, help="Resamples of items.")
@click.option("--seed", type=int, default=0, show_default=True)
def agreement(
    files: tuple[Path, ...],
    output: Path | None,
    html: Path | None,
    as_json: bool,
    bootstrap: int,
    seed: int,
) -> None:
    """How far annotators agree, from rankings and events; with candidates, gold items too."""
    import orjson

    from alignkit.evaluation.agreement import agreement_lines, agreement_report
    from alignkit.evaluation.text_report import visible
    from alignkit.files.write import write_bytes

    if not files:
        raise click.UsageError("give one or more files of rankings or events")
    if bootstrap < 0:
        raise RecipeError(f"--bootstrap is {bootstrap}", hint="Give a number from 0")
    report = agreement_report(files, bootstrap=bootstrap, seed=seed)
    text = orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if output is not None:
        write_bytes(output, text)
    if html is not None:
        from alignkit.report.judging_page import agreement_page

        write_bytes(html, agreement_page(report).encode())
    click.echo(
        text.decode().rstrip("\n") if as_json else visible("\n".join(agreement_lines(report)))
    )
