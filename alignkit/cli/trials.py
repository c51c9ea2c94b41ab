"""`alignkit eval reward|perplexity|replies|drift|fairness`: measure models, files and groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli.evaluate import publish
from alignkit.errors import DataError, GateMissed, RecipeError

if TYPE_CHECKING:
    from alignkit.scorers import Scorer

FILE = click.Path(path_type=Path)
as_output = click.option("--output", type=FILE, help="Write the report as JSON.")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
quantized = click.option(
    "--quantization",
    type=click.Choice(("nf4", "int8", "none")),
    default="nf4",
    show_default=True,
)
templated = click.option(
    "--chat-template",
    metavar="FILE",
    help="A Jinja chat template. Default: the one beside a run's adapter, else the model's own.",
)
batched = click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)


@click.command()
@click.argument("run", type=FILE)
@click.option("--data", type=FILE, multiple=True, required=True, help="Rankings or preferences.")
@click.option("--calibrate", is_flag=True, help="Save the best temperature beside the model.")
@click.option("--limit", type=click.IntRange(1), help="Use only the first N rows of each file.")
@click.option("--fail-under", type=float, metavar="X", help="Exit 1 unless the lower end >= X.")
@quantized
@templated
@batched
@as_output
@as_json_option
def reward(
    run: Path,
    data: Sequence[Path],
    calibrate: bool,
    limit: int | None,
    fail_under: float | None,
    quantization: str,
    chat_template: str | None,
    batch_size: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure a reward model on rankings it has not seen."""
    from alignkit.data.read import load_rankings
    from alignkit.evaluation.reward_trial import reward_lines, reward_report

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise RecipeError(f"--fail-under is {fail_under:g}", hint="Give a fraction from 0 to 1")
    styled, plain = _split_by_style(data)
    rankings = [r for path in plain for r in load_rankings(path).records[:limit]]
    scorer = _reward_scorer(run, quantization, chat_template, batch_size)
    from alignkit.scorers.candidates import scored_rankings
    from alignkit.scorers.reward_run import store_temperature

    report = reward_report(scored_rankings(scorer, rankings))
    lines = reward_lines(report) if rankings else []
    report["rmbench"] = _rmbench(scorer, styled, limit, lines)
    if calibrate:
        lines.append(_calibrated(run, report, data, store_temperature))
    publish(report, output, as_json, lines)
    low = report["ci"]["low"] if report["ci"] else None
    if fail_under is not None and (low is None or low < fail_under):
        raise GateMissed(f"the accuracy's lower bound is {low}, below {fail_under:g}")


def _reward_scorer(
    run: Path, quantization: str, chat_template: str | None, batch_size: int
) -> Scorer:
    from alignkit.recipe.settings import BackboneConfig
    from alignkit.run.execute import quiet_libraries
    from alignkit.scorers import Resources, open_scorer
    from alignkit.scorers.backbones import Backbones

    quiet_libraries()
    config = BackboneConfig.model_validate(
        {"quantization": quantization, "chat_template": chat_template}
    )
    resources = Resources(backbones=Backbones(config), batch_size=batch_size)
    return open_scorer(f"reward:{run}", resources)


def _split_by_style(data: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files in RM-Bench's format, with one text a style on both sides, and all others."""
    from alignkit.files.rows import read_rows

    styled: list[Path] = []
    plain: list[Path] = []
    for path in data:
        first = next(iter(read_rows(path, lambda _problem: None)), None)
        chosen = None if first is None else first.value.get("chosen")
        texts = isinstance(chosen, list) and all(isinstance(text, str) for text in chosen)
        (styled if texts else plain).append(path)
    return styled, plain


def _rmbench(
    scorer: Scorer, files: Sequence[Path], limit: int | None, lines: list[str]
) -> dict[str, Any] | None:
    from alignkit.data.records import Message
    from alignkit.evaluation.judged_rows import RowFile, texts, word
    from alignkit.evaluation.reward_trial import rmbench_matrix
    from alignkit.scorers import WrittenCompletion, finite_scores

    sides, styles = [], 0
    for path in files:
        for number, (line, row) in enumerate(RowFile(path)):
            if limit is not None and number >= limit:
                break
            try:
                prompt = [Message(role="user", content=word(row, "prompt"))]
                chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
            except DataError as error:
                raise error.at(f"{path}:{line}") from None
            styles = styles or 2 * len(chosen)
            if not chosen or not 2 * len(chosen) == 2 * len(rejected) == styles:
                raise DataError(
                    f"{len(chosen)} chosen and {len(rejected)} rejected texts",
                    where=f"{path}:{line}",
                    hint="RM-Bench has as many of both, and as many in every row: one a style",
                )
            sides += [WrittenCompletion(prompt, text) for text in (*chosen, *rejected)]
    if not sides:
        return None
    scores, half = finite_scores(scorer, sides, what="judge"), styles // 2
    rows = [scores[i : i + styles] for i in range(0, len(scores), styles)]
    found = rmbench_matrix((row[:half], row[half:]) for row in rows)
    shares = ", ".join(f"{k} {100 * found[k]:.1f} %" for k in ("easy", "normal", "hard"))
    lines.append(f"RM-Bench, {len(rows)} prompts: {shares}")
    return found


def _calibrated(run: Path, report: dict[str, Any], data: Sequence[Path], store: Any) -> str:
    found = report["calibration"]
    if found is None or found["temperature"] is None:
        raise RecipeError("no temperature is best on this data", hint="Give more rankings")
    kept = {key: found[key] for key in ("temperature", "ece", "ece_at_temperature", "log_loss")}
    target = store(run, kept | {"n": report["n"], "data": [str(path) for path in data]})
    return f"temperature {found['temperature']:.3f} kept in {target}"


@click.command()
@click.argument("model")
@click.option("--data", type=FILE, multiple=True, required=True, help="Demonstrations.")
@click.option(
    "--reference",
    metavar="MODEL",
    help="Also how far MODEL is from this one; on its own samples that is their KL.",
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first N rows of each file.")
@quantized
@templated
@batched
@as_output
@as_json_option
def perplexity(
    model: str,
    data: Sequence[Path],
    reference: str | None,
    limit: int | None,
    quantization: str,
    chat_template: str | None,
    batch_size: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """How well MODEL (a run, a directory or a hub id) predicts held-out completions."""
    from alignkit.data.read import load_demonstrations
    from alignkit.evaluation.quality import log_ratio_report, perplexity_lines, perplexity_report

    shown = [d for path in data for d in load_demonstrations(path).records[:limit]]
    from alignkit.judges.held_out import completion_log_probabilities
    from alignkit.run.execute import quiet_libraries

    quiet_libraries()
    logps, tokens = completion_log_probabilities(
        model, shown, quantization, batch_size, chat_template
    )
    report = perplexity_report(logps, tokens)
    report["reference"] = None
    if reference is not None:
        theirs, _ = completion_log_probabilities(
            reference, shown, quantization, batch_size, chat_template
        )
        report["reference"] = {"model": reference, **log_ratio_report(logps, theirs, tokens)}
    publish(report, output, as_json, perplexity_lines(report))


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--references", type=FILE, help="Rows of prompt_id and reference.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(("exact", "f1", "rouge", "bleu", "chrf")),
    help="Against the references; may be repeated.",
)
@click.option("--labels", is_flag=True, help="References are labels: precision, recall, F1.")
@as_output
@as_json_option
def replies(
    files: Sequence[Path],
    references: Path | None,
    metrics: Sequence[str],
    labels: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Length, variety, endings, refusals and, with references, closeness of completions.

    FILES hold rows of reply (or completion, output) and, where known, policy, temperature, stopped,
    prompt_id and reference, as a run's replies.jsonl does.
    """
    from alignkit.evaluation.completion_quality import (
        completion_quality_lines,
        completion_quality_report,
    )

    if (metrics or labels) and references is None:
        known = "in the rows"
    else:
        known = str(references)
    report = completion_quality_report(files, references, metrics, labels=labels)
    publish(report | {"references": known}, output, as_json, completion_quality_lines(report))


@click.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--fail-on-drift", is_flag=True, help="Exit 1 when anything moved.")
@as_output
@as_json_option
def drift(
    old: Path, new: Path, seed: int, fail_on_drift: bool, output: Path | None, as_json: bool
) -> None:
    """What moved between an OLD and a NEW file: prompts, completions, scores, categories."""
    from alignkit.evaluation.drift import drift_lines, drift_report

    report = drift_report(old, new, seed=seed)
    publish(report, output, as_json, drift_lines(report))
    if fail_on_drift and report["moved"]:
        raise GateMissed(f"{len(report['moved'])} things moved")


@click.command()
@click.argument("files", nargs=-1, type=FILE)
@click.option("--group", metavar="KEY", help="Key of the row, or of its extra, that names groups.")
@click.option("--a", help="The policy under test.")
@click.option("--b", help="What it is compared with.")
@click.option("--labels", type=FILE, help="Rows of label, prediction and the group.")
@click.option("--swap", "swaps", multiple=True, metavar="X:Y", help="Terms to exchange.")
@click.option("--prompts", type=FILE, help="With --swap: prompts to rewrite.")
@click.option("--swapped", type=FILE, help="Judgements on the rewritten prompts, to compare with.")
@as_output
@as_json_option
def fairness(
    files: Sequence[Path],
    group: str | None,
    a: str | None,
    b: str | None,
    labels: Path | None,
    swaps: Sequence[str],
    prompts: Path | None,
    swapped: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Win rates and error rates by group; what changes when the terms for groups are exchanged.

    With --swap X:Y --prompts FILE --output NEW only the prompts with the terms exchanged are
    written: let the policies answer them and compare with --swapped.
    """
    from alignkit.evaluation import fairness_report as made

    if prompts is not None:
        if not swaps or output is None:
            raise RecipeError("--prompts needs --swap and --output")
        count = made.write_swapped(prompts, swaps, output)
        click.echo(f"{count} prompts hold a term; written to {output}")
        return
    if not files and labels is None:
        raise click.UsageError("give files of judgements, or --labels")
    report = made.fairness_report(
        files, group=group, a=a, b=b, labels=labels, swapped_judgements=swapped
    )
    publish(report, output, as_json, made.fairness_lines(report))
