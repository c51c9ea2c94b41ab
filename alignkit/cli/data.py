"""`alignkit data …`: everything that happens to a file of rows before training."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import click

from alignkit.data.columns import Columns, parse_columns

F = TypeVar("F", bound=Callable[..., Any])

SHOWN_PER_KIND = 5
SMALL = 32 << 20  # bytes that are read in about a second


@click.group()
def data() -> None:
    """Check, convert, clean, split, pair, mix and balance data before training."""


def _columns(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Columns | None:
    return parse_columns(value) if value else None


def reading_options(command: F) -> F:
    """The options of every command that reads rows."""
    format_option = click.option(
        "--format", "format_", metavar="NAME",
        help="Read as this format instead of finding it: alignkit data formats.",
    )  # fmt: skip
    map_option = click.option(
        "--map", "columns", callback=_columns, metavar="NEW=OLD,…",
        help="Read the column OLD as NEW; dots reach into objects.",
    )  # fmt: skip
    return format_option(map_option(command))


def token_options(command: F) -> F:
    """The options of commands that can look at rows as a model would."""
    options = [
        click.option(
            "--model", metavar="MODEL",
            help="Also render and tokenize with this model's template.",
        ),
        click.option(
            "--chat-template", metavar="FILE",
            help="With --model: a Jinja chat template in place of the model's own.",
        ),
        click.option(
            "--max-length", default=1024, show_default=True,
            help="With --model: tokens a row may have.",
        ),
        click.option(
            "--train-on", type=click.Choice(["completion", "all"]), default="completion",
            show_default=True, help="With --model: what counts as trained.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _inspector(model: str | None, chat_template: str | None, max_length: int, train_on: str) -> Any:
    """What looks at rows as the model would; null without one."""
    from alignkit.errors import RecipeError

    if model is None:
        if chat_template is not None:
            raise RecipeError("--chat-template needs a tokenizer", hint="Fix: add --model MODEL")
        return None
    from alignkit.data.checks.tokens import TokenInspector

    return TokenInspector.load(
        model, max_length=max_length, train_on=train_on, chat_template=chat_template
    )


def files_argument(command: F) -> F:
    """One or more files."""
    return click.argument("files", nargs=-1, required=True, metavar="FILE...")(command)


def output_option(command: F) -> F:
    """Where the result goes; the name's ending chooses JSONL, JSON, CSV, Parquet, gzip, zstd."""
    return click.option(
        "--output", "-o", required=True, metavar="FILE",
        help="Where to write: .jsonl, .json, .csv, .tsv, .parquet; also .gz, .zst, .bz2, .xz.",
    )(command)  # fmt: skip


def say(message: str) -> None:
    """One line for people, on stderr."""
    click.echo(message, err=True)


def tell(problem: Any) -> None:
    """What was left out or doubtful, on stderr; a note is nothing to act on."""
    if problem.level != "note":
        say(f"{problem.level}: {problem}")


def tell_all(problems: Iterable[Any]) -> None:
    """The first of each kind of problem, and how many there are of it.

    What concerns a file as a whole (a column that is not read) is told in full: it stands there
    once.
    """
    counts: dict[str, int] = {}
    for problem in problems:
        if problem.line is not None:
            counts[problem.kind] = counts.get(problem.kind, 0) + 1
        if problem.line is None or counts[problem.kind] <= SHOWN_PER_KIND:
            tell(problem)
    for kind, count in counts.items():
        if count > SHOWN_PER_KIND:
            say(f"and {count - SHOWN_PER_KIND:,} more of kind {kind}")


@contextmanager
def reading(files: Iterable[str], label: str) -> Iterator[None]:
    """A bar on stderr over the bytes of these files, when somebody looks and it takes a while."""
    from alignkit.files.rows import watched
    from alignkit.store.progress import progress_bar

    sizes = [os.path.getsize(path) for path in files if os.path.isfile(path)]
    if sum(sizes) < SMALL:
        yield
        return
    with progress_bar(sum(sizes), label) as advance, watched(advance):
        yield


# --- check --------------------------------------------------------------------------------------


@data.command()
@files_argument
@reading_options
@click.option(
    "--held-out",
    multiple=True,
    metavar="FILE",
    help="A file kept for testing: its prompts must not stand in FILE.",
)
@token_options
@click.option(
    "--allow", multiple=True, metavar="KIND", help="Count this kind of problem as a note."
)
@click.option("--no-near", is_flag=True, help="Skip the search for near-duplicates.")
@click.option("--strict", is_flag=True, help="Exit 1 when there are warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def check(
    files: Sequence[str],
    format_: str | None,
    columns: Columns | None,
    held_out: Sequence[str],
    model: str | None,
    chat_template: str | None,
    max_length: int,
    train_on: str,
    allow: Sequence[str],
    no_near: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Name every problem of every FILE by line, with a reason and a way out.

    Exit 0: no errors. Exit 1: warnings, with --strict. Exit 2: errors.
    """
    from alignkit.data.checks.file_check import check_files

    inspector = _inspector(model, chat_template, max_length, train_on)
    with reading([*files, *held_out], "checking"):
        reports = check_files(
            files,
            held_out=held_out,
            format=format_,
            columns=columns,
            near=not no_near,
            allowed=allow,
            inspectors=[inspector] if inspector else [],
        )
    if as_json:
        click.echo(json.dumps({"files": [report.as_json() for report in reports]}))
    else:
        for report in reports:
            _show(report)
    levels = {level for report in reports for level in report.levels}
    sys.exit(2 if "error" in levels else 1 if strict and "warning" in levels else 0)


def _show(report: Any) -> None:
    from alignkit.data.checks.file_check import summary

    shown: dict[str, int] = {}
    for problem in report.problems:
        # What concerns the file as a whole stands there once, and is never one of many.
        if problem.line is None or shown.get(problem.kind, 0) < SHOWN_PER_KIND:
            shown[problem.kind] = shown.get(problem.kind, 0) + 1
            click.echo(f"{problem.level}: {problem}" if problem.level != "error" else str(problem))
    for kind, count in report.counts.items():
        if count > shown.get(kind, 0):
            click.echo(f"{report.file}: and {count - shown.get(kind, 0):,} more of kind {kind}")
    click.echo(summary(report))


# --- convert, formats, schema -------------------------------------------------------------------


@data.command()
@files_argument
@reading_options
@click.option("--to", default="alignkit", show_default=True, metavar="NAME", help="Target format.")
@click.option("--lossy", is_flag=True, help="Accept that the target holds less.")
@output_option
def convert(
    files: Sequence[str],
    format_: str | None,
    columns: Columns | None,
    to: str,
    lossy: bool,
    output: str,
) -> None:
    """Convert FILEs into one file of another format, and back, without loss."""
    from alignkit.data.edit.convert import convert as run

    with reading(files, "converting"):
        done = run(files, output, to=to, format=format_, columns=columns, lossy=lossy)
    tell_all(done.problems)
    lost = ", ".join(f"{name} in {count:,} rows" for name, count in done.lost.items())
    say(f"{output}: {done.rows:,} rows as {to}" + (f"; lost: {lost}" if lost else ""))


@data.command()
def formats() -> None:
    """List the formats that can be read and written."""
    from alignkit.data.formats import FORMATS

    for each in FORMATS.values():
        click.echo(f"{each.name:<28}{each.kind:<15}{each.about}")


@data.command()
@click.argument("kind")
def schema(kind: str) -> None:
    """Print the JSON Schema of records of KIND."""
    from alignkit.data.records import KINDS, json_schema
    from alignkit.errors import pick

    pick(dict(KINDS), kind, what="kind")
    click.echo(json.dumps(json_schema(kind), indent=2, ensure_ascii=False))


# --- split, pairs -------------------------------------------------------------------------------


@data.command()
@click.argument("file")
@reading_options
@click.option(
    "--parts",
    default="train=0.9,test=0.1",
    show_default=True,
    metavar="NAME=SHARE,…",
    help="The parts and their shares of the prompts.",
)
@click.option(
    "--stratify", metavar="FIELD", help="Keep the shares within each value of this field."
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="FOLDER/{}.jsonl",
    help="Where to write; {} stands for the part's name.",
)
def split(
    file: str,
    format_: str | None,
    columns: Columns | None,
    parts: str,
    stratify: str | None,
    seed: int,
    output: str,
) -> None:
    """Split FILE by prompt: no prompt stands in two parts."""
    from alignkit.data.edit.convert import read_to_convert
    from alignkit.data.edit.shares import field_of, parse_shares
    from alignkit.data.edit.split import split_parts
    from alignkit.errors import RecipeError
    from alignkit.files.write import refuse_in_place, write_records

    shares = parse_shares(parts)
    if "{}" not in output:
        raise RecipeError("--output has no {} for the part's name", hint="Fix: -o 'out/{}.jsonl'")
    records = list(read_to_convert(file, tell, format=format_, columns=columns))
    stratum = None if stratify is None else (lambda record: field_of(record, stratify))
    divided = split_parts(records, list(shares.values()), seed, stratum=stratum)
    for name, part in zip(shares, divided, strict=True):
        path = output.replace("{}", name)
        refuse_in_place([file], path)
        say(f"{path}: {write_records(path, part):,} rows")


@data.command()
@files_argument
@reading_options
@click.option(
    "--pairs",
    "which",
    default="all",
    show_default=True,
    type=click.Choice(["all", "adjacent", "best-worst", "best-vs-rest"]),
    help="Which pairs of a ranking.",
)
@click.option(
    "--weight",
    default="group",
    show_default=True,
    type=click.Choice(["group", "pair"]),
    help="group: a ranking weighs 1 in all; pair: each pair weighs 1.",
)
@click.option(
    "--aggregate",
    "method",
    type=click.Choice(["mean-rank", "borda", "majority"]),
    help="Make one ranking of those of several annotators first.",
)
@click.option(
    "--min-agreement",
    default=0.0,
    show_default=True,
    help="With --aggregate: leave out items whose annotators agree on less.",
)
@click.option("--candidates", metavar="FILE", help="The texts that collected votes are about.")
@click.option(
    "--on-bad-row", default="error", show_default=True, type=click.Choice(["error", "drop"])
)
@output_option
def pairs(
    files: Sequence[str],
    format_: str | None,
    columns: Columns | None,
    which: Any,
    weight: Any,
    method: Any,
    min_agreement: float,
    candidates: str | None,
    on_bad_row: str,
    output: str,
) -> None:
    """Cut the rankings of FILEs into weighted preferences."""
    from alignkit.data.edit.collect_pairs import pairs_of_files
    from alignkit.files.write import refuse_in_place, write_records

    refuse_in_place([*files, *([candidates] if candidates else [])], output)
    options = {"format": format_, "columns": columns, "on_bad_row": on_bad_row}
    records, problems = pairs_of_files(
        files,
        pairs=which,
        weight=weight,
        aggregate_by=method,
        min_agreement=min_agreement,
        candidates=candidates,
        **options,
    )
    tell_all(problems)
    for note in (problem for problem in problems if problem.kind == "votes"):
        say(str(note))
    count = write_records(output, records)
    groups = len({record.group or record.id for record in records})
    say(f"{output}: {count:,} preferences from {groups:,} rankings")


# --- clean --------------------------------------------------------------------------------------


@data.command()
@click.argument("file")
@reading_options
@token_options
@click.option("--repair", "repairs", multiple=True, metavar="NAME", help="Also do this repair.")
@click.option(
    "--drop",
    "drops",
    multiple=True,
    metavar="KIND",
    help="Also drop rows with this kind of problem (as data check names it), or malformed.",
)
@click.option("--no-default", is_flag=True, help="Do only what --repair and --drop name.")
@click.option("--fill", multiple=True, metavar="NAME=TEXT", help="Fill the placeholder {{NAME}}.")
@click.option(
    "--pattern",
    "patterns",
    multiple=True,
    metavar="REGEX=>TEXT",
    help="Replace what a regular expression matches.",
)
@click.option("--not-in", multiple=True, metavar="FILE", help="Drop rows whose prompt FILE holds.")
@click.option("--to", metavar="NAME", help="Output format; the input's own by default.")
@click.option("--log", metavar="FILE", help="The change log; OUTPUT.changes.jsonl by default.")
@click.option("--undo", metavar="LOG", help="Take back what LOG says was done to FILE.")
@output_option
def clean(
    file: str,
    format_: str | None,
    columns: Columns | None,
    model: str | None,
    chat_template: str | None,
    max_length: int,
    train_on: str,
    repairs: Sequence[str],
    drops: Sequence[str],
    no_default: bool,
    fill: Sequence[str],
    patterns: Sequence[str],
    not_in: Sequence[str],
    to: str | None,
    log: str | None,
    undo: str | None,
    output: str,
) -> None:
    """Repair FILE into a new file, with a log of every change.

    By default: Unicode form C, control characters, exact duplicates, rows with an empty or
    identical side. By name only: template, whitespace, mojibake, near-duplicates, pii, pii-names.
    """
    from alignkit.data.edit import clean as cleaning

    if undo is not None:
        say(f"{output}: {cleaning.undo(file, undo, output):,} rows as they were before")
        return
    plan = cleaning.CleaningPlan(
        repairs=[*(() if no_default else cleaning.DEFAULT), *repairs],
        drops=[*(() if no_default else cleaning.DEFAULT_DROPS), *drops],
        fill=_pairs_of(fill, "--fill"),
        patterns=[cleaning.Pattern.parse(pattern) for pattern in patterns],
        not_in=not_in,
    )
    plan.check(tokenizer=model is not None)  # a wrong name is told before a tokenizer is loaded
    plan = replace(plan, inspector=_inspector(model, chat_template, max_length, train_on))
    with reading([file], "cleaning"):
        done = cleaning.clean(file, output, plan, to=to, format=format_, columns=columns, log=log)
    tell_all(done.problems)
    say(f"{output}: {cleaning.counts_line(done)}")


def _pairs_of(texts: Sequence[str], option: str) -> dict[str, str]:
    from alignkit.errors import RecipeError

    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise RecipeError(f"{option} {text!r} is no NAME=VALUE")
        pairs[name] = value
    return pairs


# --- stats, mix, augment, balance ---------------------------------------------------------------


@data.command()
@files_argument
@reading_options
@click.option("--html", metavar="FILE", help="Also write one self-contained page.")
@click.option("--redact", is_flag=True, help="No example texts in the page.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def stats(
    files: Sequence[str],
    format_: str | None,
    columns: Columns | None,
    html: str | None,
    redact: bool,
    as_json: bool,
) -> None:
    """Count what FILEs hold: lengths, turns, roles, sources, balance, agreement."""
    from itertools import chain

    from alignkit.data.checks.stats import stats_of
    from alignkit.data.read import read_records
    from alignkit.files.write import refuse_in_place, whole_file

    left_out: list[Any] = []
    options: dict[str, Any] = {"format": format_, "columns": columns, "rules": False}
    streams = (
        read_records(path, on_bad_row="drop", on_problem=left_out.append, **options)
        for path in files
    )
    with reading(files, "counting"):
        counted = stats_of(chain.from_iterable(streams))
    tell_all(left_out)
    numbers = counted.as_dict()
    if html is not None:
        from alignkit.report.stats_page import stats_page

        refuse_in_place(files, html)
        with whole_file(html) as stream:
            stream.write(stats_page(counted, ", ".join(files), examples=not redact).encode())
    if as_json:
        click.echo(json.dumps(numbers))
        return
    click.echo(f"rows {counted.rows:,}")
    for name in ("kinds", "formats", "roles", "turns", "scripts", "labels", "annotators"):
        if numbers[name]:
            listed = ", ".join(f"{key} {value:,}" for key, value in numbers[name].items())
            click.echo(f"{name} {listed}")
    for name, lengths in numbers["lengths"].items():
        click.echo(
            f"{name} characters: median {lengths['median']:,}, 95 % under "
            f"{lengths['p95']:,}, most {lengths['max']:,}"
        )


@data.command()
@click.argument("sources", nargs=-1, required=True, metavar="FILE[=WEIGHT]...")
@reading_options
@click.option(
    "--total",
    type=click.IntRange(1),
    help="Records in all; as many as the weights allow by default.",
)
@click.option("--cap", type=click.IntRange(1), help="Records of any one file at most.")
@click.option("--seed", default=0, show_default=True)
@output_option
def mix(
    sources: Sequence[str],
    format_: str | None,
    columns: Columns | None,
    total: int | None,
    cap: int | None,
    seed: int,
    output: str,
) -> None:
    """Mix FILEs in the ratio of their WEIGHTs (equal by default), no record twice."""
    from alignkit.data.edit.convert import read_to_convert
    from alignkit.data.edit.mix import mix as mixed
    from alignkit.data.edit.shares import parse_weight
    from alignkit.files.write import refuse_in_place, write_records

    weights = dict(parse_weight(source) for source in sources)
    refuse_in_place(weights, output)
    records = {
        path: list(read_to_convert(path, tell, format=format_, columns=columns)) for path in weights
    }
    result = mixed(records, weights, total=total, cap=cap, seed=seed)
    say(f"{output}: {write_records(output, result):,} rows")


@data.command()
@click.argument("file")
@reading_options
@click.option("--method", required=True, type=click.Choice(["order", "template", "paraphrase"]))
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="With template: a text that holds {prompt} once.",
)
@click.option("--copies", default=1, show_default=True, help="New rows for each row.")
@click.option("--endpoint", metavar="URL", help="With paraphrase: an OpenAI-compatible base URL.")
@click.option("--endpoint-model", default="default", show_default=True, metavar="NAME")
@click.option("--seed", default=0, show_default=True)
@click.option("--only-new", is_flag=True, help="Write the new rows without the old ones.")
@output_option
def augment(
    file: str,
    format_: str | None,
    columns: Columns | None,
    method: str,
    templates: Sequence[str],
    copies: int,
    endpoint: str | None,
    endpoint_model: str,
    seed: int,
    only_new: bool,
    output: str,
) -> None:
    """Make new rows from FILE, each marked with its parent; answers are never changed.

    A key for the endpoint is read from the environment: OPENAI_API_KEY.
    """
    from alignkit.data.edit import augment as augmenting
    from alignkit.data.edit.convert import read_to_convert
    from alignkit.errors import RecipeError
    from alignkit.files.write import refuse_in_place, write_records

    refuse_in_place([file], output)
    records = list(read_to_convert(file, tell, format=format_, columns=columns))
    if method == "order":
        new = augmenting.reordered(records, copies=copies, seed=seed)
    elif method == "template":
        if not templates:
            raise RecipeError(
                "--method template needs --template", hint="Fix: --template 'Q: {prompt}'"
            )
        new = augmenting.templated(records, templates)
    else:
        if endpoint is None:
            raise RecipeError("--method paraphrase needs --endpoint URL")
        new = augmenting.paraphrased(
            records,
            endpoint=endpoint,
            model=endpoint_model,
            key=os.environ.get("OPENAI_API_KEY"),
            copies=copies,
        )
    made = list(new)
    count = write_records(output, made if only_new else [*records, *made])
    say(f"{output}: {count:,} rows, {len(made):,} of them new")


@data.command()
@click.argument("file")
@reading_options
@click.option("--by", required=True, metavar="FIELD", help="The field to balance.")
@click.option(
    "--method",
    default="down",
    show_default=True,
    type=click.Choice(["down", "up", "weight"]),
    help="down: sample to the rarest; up: repeat the rare; weight: weigh them.",
)
@click.option("--seed", default=0, show_default=True)
@output_option
def balance(
    file: str,
    format_: str | None,
    columns: Columns | None,
    by: str,
    method: Any,
    seed: int,
    output: str,
) -> None:
    """Make every value of a field of FILE count the same."""
    from alignkit.data.edit.convert import read_to_convert
    from alignkit.data.edit.mix import balance as balanced
    from alignkit.files.write import refuse_in_place, write_records

    refuse_in_place([file], output)
    records = list(read_to_convert(file, tell, format=format_, columns=columns))
    say(
        f"{output}: {write_records(output, balanced(records, by, method=method, seed=seed)):,} rows"
    )
