"""`alignkit eval ...`: win rates, power, reward models and policies on trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkit.cli import LazyGroup
from alignkit.errors import GateMissed, RecipeError
from alignkit.evaluation.formats import FORMATS

if TYPE_CHECKING:
    from alignkit.evaluation.winrate import WinrateOptions

LENGTH_CONTROLS = ("prior", "free", "alpacaeval")
TIES = ("half", "drop", "count")
INTERVALS = ("t", "wilson", "clopper", "bootstrap")
TIE_MODELS = ("half", "davidson", "rao-kupper")
BT_INTERVALS = ("sandwich", "bootstrap")


# name -> (module, one line for the overview); imported when asked for.
TRIALS = {
    "winrate": ("evaluate", "The win rate of one policy against another, with what it rests on."),
    "reward": ("trials", "A reward model on trial: accuracy, calibration, length."),
    "power": ("evaluate", "How many prompts a win rate needs."),
    "perplexity": ("trials", "How well a model predicts held-out completions."),
    "replies": ("trials", "Length, variety, endings, refusals and labels of completions."),
    "drift": ("trials", "What moved between an old and a new file."),
    "fairness": ("trials", "Win rates, labels and exchanged terms by group."),
}


@click.group(
    "eval",
    cls=LazyGroup,
    lazy={name: (f"alignkit.cli.{module}", name, line) for name, (module, line) in TRIALS.items()},
)
def evaluate() -> None:
    """Win rates that can be believed, and the judges behind them."""


def contest_options(command: Any) -> Any:
    """The options that make judgements where there are none yet."""
    options = [
        click.option(
            "--policies", metavar="A B …", help="Runs or models to judge; NAME=DIR renames one."
        ),
        click.option("--prompts", type=click.Path(path_type=Path), help="Prompts to answer."),
        click.option(
            "--judge", "judges", multiple=True, metavar="JUDGE",
            help="gold, a reward run, llm:MODEL@URL, human:FILE, chrf:FILE, module:function …; "
            "may be repeated.",
        ),
        click.option(
            "--judge-set", multiple=True, metavar="KEY=VALUE",
            help="Setting of an llm judge: mode, template, concurrency, timeout, retries …",
        ),
        click.option(
            "--work", type=click.Path(path_type=Path), default=Path("winrate"), show_default=True,
            help="Where completions, replies of judges and judgements are kept.",
        ),
        click.option(
            "--temperature", type=click.FloatRange(0), default=1.0, show_default=True
        ),
        click.option(
            "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True
        ),
        click.option(
            "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True
        ),
        click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True),
        click.option("--limit", type=click.IntRange(1), help="The first N prompts only."),
        click.option(
            "--quantization", type=click.Choice(("nf4", "int8", "none")), default="nf4",
            show_default=True,
        ),
        click.option(
            "--chat-template", metavar="FILE",
            help="A Jinja chat template for all models. Default: the one beside a run's adapter, "
            "else the model's own.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("files", nargs=-1)
@contest_options
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
@click.option(
    "--bt-ties",
    type=click.Choice(TIE_MODELS),
    default="half",
    show_default=True,
    help="How ratings take ties: as half a win, or with a parameter of their own.",
)
@click.option(
    "--bt-ci",
    type=click.Choice(BT_INTERVALS),
    default="sandwich",
    show_default=True,
    help="Intervals of ratings: robust errors by prompt or cluster, or --bootstrap refits.",
)
@click.option(
    "--covariates",
    metavar="NAMES",
    help="Hold ratings equal in length,headers,lists,bold, or in style, which is all four.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--fail-under", type=float, metavar="X", help="Exit 1 unless ci.low >= X (0 to 1).")
def winrate(
    files: tuple[str, ...],
    policies: str | None,
    output: Path | None,
    html: Path | None,
    as_json: bool,
    fail_under: float | None,
    lc_slope: str | None,
    **settings: Any,
) -> None:
    """The win rate of one policy against another.

    From FILES of judgements; or, with --policies A B --baseline A --prompts FILE --judge JUDGE,
    from policies, which answer the prompts and are judged in both orders.
    """
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise RecipeError(f"--fail-under is {fail_under:g}", hint="Give a fraction from 0 to 1")
    making = {name: settings.pop(name) for name in MAKING}
    options = _options(_slope(lc_slope, settings))
    paths = [Path(file) for file in files]
    if policies is not None:
        from alignkit.cli.contests import judge_policies, names_of

        # What follows the first policy reaches us as files: options take one value only.
        entrants = names_of([policies, *files])
        if fail_under is not None and len(entrants) > 2 and options.a is None:
            raise _gate_needs_two()
        judged, options = judge_policies(entrants, options, **making)
        paths = [judged]
    elif not files:
        raise click.UsageError("give one or more files of judgements, or --policies")
    _report(paths, options, output, html, as_json, fail_under)


MAKING = (
    "prompts",
    "judges",
    "judge_set",
    "work",
    "temperature",
    "top_p",
    "max_new_tokens",
    "batch_size",
    "limit",
    "quantization",
    "chat_template",
)


def _options(settings: dict[str, Any]) -> WinrateOptions:
    from alignkit.evaluation.winrate import WinrateOptions

    return WinrateOptions(**settings)


def _report(
    paths: list[Path],
    options: WinrateOptions,
    output: Path | None,
    html: Path | None,
    as_json: bool,
    fail_under: float | None,
) -> None:
    """Read, report, write, print, and hold the gate last: both files are written first."""
    from alignkit.evaluation.text_report import winrate_lines
    from alignkit.evaluation.winrate import NoVerdict, check_verdicts, read_for, report_of
    from alignkit.files.write import write_bytes

    judgements = read_for(paths, options, keep_texts=html is not None)
    report = report_of(judgements, options, paths)
    a, b = report["a"], report["b"]
    if fail_under is not None and (a is None or b is None):
        raise _gate_needs_two()
    unjudged = None
    try:
        check_verdicts(judgements, a, b)
    except NoVerdict as error:
        unjudged = error
    _warn_when_grown(report, output, options.sequential)
    publish(report, output, as_json, winrate_lines(report))
    if html is not None:
        from alignkit.report.judging_page import winrate_page

        write_bytes(html, winrate_page(report, judgements).encode())
    if unjudged is not None:
        raise unjudged
    _gate(report, fail_under)


def _gate_needs_two() -> RecipeError:
    return RecipeError("--fail-under needs two models", hint="Name them with --a and --b")


def _warn_when_grown(report: dict[str, Any], output: Path | None, sequential: bool) -> None:
    """Looking again after adding judgements makes errors likelier than an interval says."""
    if output is None or sequential or not output.is_file():
        return
    before = _rows_before(output)
    grown = [i["path"] for i in report["inputs"] if i["rows"] > before.get(i["path"], i["rows"])]
    if grown:
        click.echo(
            f"warning: {grown[0]} grew since the last report. Deciding after several looks is "
            "wrong more often than 5 %; --sequential gives an interval that allows for it.",
            err=True,
        )


def _rows_before(output: Path) -> dict[str, int]:
    """Rows of each input by the report that is there; empty where something else is."""
    from alignkit.files.json_text import decode
    from alignkit.files.problems import RowError

    try:
        inputs = decode(output.read_bytes())["inputs"]
        pairs = [(each["path"], each["rows"]) for each in inputs]
    except (RowError, KeyError, TypeError):
        return {}
    return {p: n for p, n in pairs if isinstance(p, str) and isinstance(n, int)}


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


def publish(report: dict[str, Any], output: Path | None, as_json: bool, lines: list[str]) -> None:
    import orjson

    from alignkit.files.write import write_bytes
    from alignkit.store.visible import visible

    text = orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if output is not None:
        write_bytes(output, text)
    click.echo(text.decode().rstrip("\n") if as_json else visible("\n".join(lines)))


def _gate(report: dict[str, Any], fail_under: float | None) -> None:
    if fail_under is None:
        return
    ci = report["ci"]
    low = None if ci is None else ci["low"]
    if low is None or low < fail_under:
        shown = "unknown" if low is None else f"{100 * low:.1f} %"
        raise GateMissed(f"the win rate's lower bound is {shown}, below {100 * fail_under:.1f} %")


@click.command()
@click.option("--effect", type=float, metavar="X", help="Distance of the true win rate from 0.5.")
@click.option("--prompts", type=int, metavar="N", help="What can this many prompts show?")
@click.option("--ties", type=float, default=0.0, show_default=True, help="Share of tied prompts.")
@click.option("--power", type=float, default=0.8, show_default=True)
@click.option("--level", type=float, default=0.95, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def power(prompts: int | None, as_json: bool, **settings: Any) -> None:
    """How many prompts a win rate needs, and what a number of prompts can show."""
    from alignkit.statistics.power import power_lines, power_report

    report = power_report(n=prompts, **settings)
    publish(report, None, as_json, power_lines(report))
