"""`alignkit eval ...`: win rates, power, reward models and policies on trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from alignkit.cli import LazyGroup
from alignkit.errors import GateMissed, RecipeError

LENGTH_CONTROLS = ("prior", "free", "alpacaeval")
TIES = ("half", "drop", "count")
INTERVALS = ("t", "wilson", "clopper", "bootstrap")
FORMATS = ("judgement", "alpacaeval", "mtbench", "arena", "arenahard")


@click.group("eval", cls=LazyGroup)
def evaluate() -> None:
    """Win rates that can be believed, and the judges behind them."""


@evaluate.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--a", help="The policy under test.")
@click.option("--b", help="What it is compared with.")
@click.option("--baseline", help="Same as --b; with several other models, all are rated.")
@click.option("--format", "format", type=click.Choice(FORMATS), help="Default: by the keys.")
@click.option("--cluster", metavar="KEY", help="Key of rows that vary together.")
@click.option(
    "--ties",
    type=click.Choice(TIES),
    default="half",
    show_default=True,
    help="A tied prompt is half a win, is left out, or counts 0.",
)
@click.option("--ci", type=click.Choice(INTERVALS), default="t", show_default=True)
@click.option(
    "--length-control",
    is_flag=False,
    flag_value="prior",
    type=click.Choice(LENGTH_CONTROLS),
    help="Also report the rate at equal length; bare: prior.",
)
@click.option("--lc-slope", metavar="free|X", help="Fix the slope on length, or fit it freely.")
@click.option("--difficulty", type=click.Path(path_type=Path), help="For alpacaeval.")
@click.option("--reg-rows", type=click.Path(path_type=Path), help="For alpacaeval.")
@click.option("--bootstrap", type=int, default=2000, show_default=True, help="Resamples.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--sequential", is_flag=True, help="Also an interval that may be looked at early.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--fail-under", type=float, metavar="X", help="Exit 1 unless ci.low >= X (0 to 1).")
def winrate(
    files: tuple[Path, ...],
    output: Path | None,
    html: Path | None,
    as_json: bool,
    fail_under: float | None,
    lc_slope: str | None,
    **settings: Any,
) -> None:
    """The win rate of one policy against another, from files of judgements."""
    from alignkit.evaluation.screen import winrate_lines
    from alignkit.evaluation.winrate import Options, read_for, report_of

    if not files:
        raise click.UsageError("give one or more files of judgements")
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise RecipeError(f"--fail-under is {fail_under:g}", hint="Give a fraction from 0 to 1")
    options = Options(**_slope(lc_slope, settings))
    judgements = read_for(files, options, keep_texts=html is not None)
    report = report_of(judgements, options, files)
    _publish(report, output, as_json, winrate_lines(report))
    if html is not None:
        from alignkit.evaluation.report_files import write_whole
        from alignkit.evaluation.report_html import winrate_page

        write_whole(html, winrate_page(report, judgements).encode())
    _gate(report, fail_under)


def _slope(given: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """--lc-slope as the settings it stands for."""
    if given is None:
        return settings
    if given == "free":
        return settings | {"length_control": "free"}
    try:
        return settings | {"lc_slope": float(given)}
    except ValueError:
        raise RecipeError(f"--lc-slope is {given!r}", hint="Give 'free' or a number") from None


def _publish(report: dict[str, Any], output: Path | None, as_json: bool, lines: list[str]) -> None:
    import orjson

    from alignkit.evaluation.report_files import write_whole
    from alignkit.evaluation.screen import visible

    text = orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if output is not None:
        write_whole(output, text)
    click.echo(text.decode().rstrip("\n") if as_json else visible("\n".join(lines)))


def _gate(report: dict[str, Any], fail_under: float | None) -> None:
    if fail_under is None:
        return
    if report["a"] is None or report["b"] is None:
        raise RecipeError("--fail-under needs two models", hint="Name them with --a and --b")
    ci = report["ci"]
    low = None if ci is None else ci["low"]
    if low is None or low < fail_under:
        shown = "unknown" if low is None else f"{100 * low:.1f} %"
        raise GateMissed(f"the win rate's lower bound is {shown}, below {100 * fail_under:.1f} %")


@evaluate.command()
@click.option("--effect", type=float, metavar="X", help="Distance of the true win rate from 0.5.")
@click.option("--prompts", type=int, metavar="N", help="What can this many prompts show?")
@click.option("--ties", type=float, default=0.0, show_default=True, help="Share of tied prompts.")
@click.option("--power", type=float, default=0.8, show_default=True)
@click.option("--level", type=float, default=0.95, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def power(prompts: int | None, as_json: bool, **settings: Any) -> None:
    """How many prompts a win rate needs, and what a number of prompts can show."""
    from alignkit.evaluation.power import power_lines, power_report

    report = power_report(n=prompts, **settings)
    _publish(report, None, as_json, power_lines(report))
