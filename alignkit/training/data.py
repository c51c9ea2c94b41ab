"""Read a stage's data: checked, named by format, split by prompt, fitted to length.

Whatever is dropped or cut is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from alignkit.data.chat import Encoder
from alignkit.data.checks.unread_keys import UnreadKeys
from alignkit.data.edit.split import Ties
from alignkit.data.read import Stream
from alignkit.data.records import Record
from alignkit.errors import DataError, ModelError
from alignkit.files.problems import tally
from alignkit.recipe.settings import OnlineConfig, SplitConfig, TrainingConfig
from alignkit.training.context import StageContext
from alignkit.training.rows import Row, place
from alignkit.training.token_rows import TokenRows

AT_ONCE = 32  # records rendered together
R = TypeVar("R", bound=Record)
Open = Callable[..., Stream[R]]


def load_rows(
    kind: type[Row],
    open_file: Open[R],
    make: Callable[[R], Row | list[Row] | None],
    config: TrainingConfig,
    context: StageContext,
    *,
    encoder: Encoder | None = None,
) -> tuple[TokenRows[Row], TokenRows[Row]]:
    """Return training rows and held-out ones: `eval_data`, or a share of the prompts of `data`.

    `make` turns a record into a row, several rows, or None when there is nothing in it to learn.
    Given its `encoder`, keys that the template never reads are reported. Records are read, turned
    into rows and forgotten one by one. Rows beyond `max_length` are handled as `on_overlong` says.
    Raise DataError when nothing is left.
    """
    unread = UnreadKeys(encoder) if encoder is not None else None
    train, ties = _write_rows(kind, open_file, make, config.data, config, context, unread)
    if config.eval_data:
        held_out, eval_ties = _write_rows(
            kind, open_file, make, config.eval_data, config, context, unread
        )
        _warn_of_leaks(set(ties.prompts), eval_ties.prompts, held_out, context)
    else:
        parts = ties.split([1.0 - config.eval_fraction, config.eval_fraction], context.seed)
        if not parts[0]:
            raise _nothing_to_train(len(train), config)
        train, held_out = train.only(parts[0]), train.only(parts[1])
    for line in encoder.remarks.lines() if encoder is not None else ():
        context.say(line)
    count = len(train)
    train = fit_to_length(train, config, context)
    if not train:
        raise DataError(
            f"all {count:,} rows are longer than max_length {config.max_length}: none is left",
            where=", ".join(config.data),
            hint="Fix: raise max_length, or set on_overlong to truncate_prompt",
        )
    return train, fit_to_length(held_out, config, context)


def _nothing_to_train(rows: int, config: TrainingConfig) -> DataError:
    """Explain why no row is left: a prompt, with all that belongs to it, is never divided."""
    what = "1 row" if rows == 1 else f"{rows:,} rows, all of one prompt or one group"
    return DataError(
        f"{what}: eval_fraction {config.eval_fraction} holds all of it out, and none is left to "
        "train on",
        where=", ".join(config.data),
        hint="Fix: add rows with other prompts, or train on everything: --eval-fraction 0",
    )


def _write_rows(
    kind: type[Row],
    open_file: Open[R],
    make: Callable[[R], Row | list[Row] | None],
    sources: Sequence[str],
    config: TrainingConfig,
    context: StageContext,
    unread: UnreadKeys | None,
) -> tuple[TokenRows[Row], Ties]:
    """Write the rows of all files, and return them with what ties each to others."""
    ties = Ties()

    def rows() -> Iterator[Row]:
        failed: DataError | None = None
        records = records_of(open_file, sources, config, context)
        for record in records if unread is None else prepared(records, unread.encoder):
            if failed is not None:
                continue  # read on, so that all bad rows of the files are reported first
            try:
                ready = _make_rows(record, make, unread)
            except DataError as error:
                failed = error
                continue
            for row in ready:
                ties.add(record)
                yield row
        if failed is not None:
            raise failed

    written = TokenRows.write(kind, rows(), context.directory)
    for line in unread.lines() if unread is not None else ():
        context.say(line)
    if not written:
        raise DataError(
            "no row teaches anything: all are ties, or rank fewer than two completions",
            where=", ".join(sources),
            hint="Fix: give the better completion the smaller rank",
        )
    return written, ties


def prepared(records: Iterator[R], encoder: Encoder) -> Iterator[R]:
    """Yield the records as they come, rendered several at a time."""
    while part := list(islice(records, AT_ONCE)):
        encoder.prepare(part)
        yield from part


def _make_rows(
    record: R, make: Callable[[R], Row | list[Row] | None], unread: UnreadKeys | None
) -> list[Row]:
    """Return the rows of a record; add its place to an error."""
    try:
        rows = make(record)
        if unread is not None:
            unread.look(record)
    except (DataError, ModelError) as error:
        raise error.at(place(record)) from None
    listed = rows if isinstance(rows, list) else [rows]
    return [row for row in listed if row is not None]


def _warn_of_leaks(
    trained: set[int], evaluated: Sequence[int], held_out: TokenRows[Any], context: StageContext
) -> None:
    """Report how many evaluation rows have a trained prompt: they flatter every number."""
    leaked = [position for position, prompt in enumerate(evaluated) if prompt in trained]
    if leaked:
        context.say(
            f"{len(leaked)} of {len(held_out)} evaluation rows have a prompt that is trained on; "
            f"the first is {held_out[leaked[0]].where}. alignkit data split keeps prompts apart"
        )


def fit_to_length(
    rows: TokenRows[Row], config: TrainingConfig, context: StageContext
) -> TokenRows[Row]:
    """Return rows within `max_length`; treat longer ones as `on_overlong` says.

    Raise DataError naming the first one when it says `error`.
    """
    limit = config.max_length
    long = [position for position, length in enumerate(rows.lengths) if length > limit]
    if not long:
        return rows
    first = rows[long[0]].where
    problem = (
        f"{len(long)} of {len(rows)} rows are longer than max_length {limit} "
        f"(up to {max(rows.lengths)})"
    )
    if config.on_overlong == "error":
        raise DataError(
            problem,
            where=first,
            hint="raise max_length, or set on_overlong to drop or truncate_prompt",
        )
    if config.on_overlong == "drop":
        context.say(f"{problem}: dropped, the first at {first}")
        return rows.only([i for i, length in enumerate(rows.lengths) if length <= limit])
    cut = (row.without_start(max(0, row.tokens - limit)) for row in rows)
    fitted = TokenRows.write(rows.kind, (row for row in cut if row is not None), context.directory)
    context.say(f"{problem}: prompts cut from the left, {len(rows) - len(fitted)} dropped")
    return fitted


def records_of(
    open_file: Open[R],
    sources: Sequence[str],
    config: TrainingConfig | OnlineConfig | SplitConfig,
    context: StageContext,
) -> Iterator[R]:
    """Yield the records of all files one by one; after each file, report what was left out."""
    for source in sources:
        path = context.data_file(source)
        stream = open_file(path, format=config.format, on_bad_row=config.on_bad_row)
        count = 0
        for record in stream:
            count += 1
            yield record
        context.say(f"{path.name}: {count} rows, format {stream.format}")
        _report_problems(path, stream, context)


def _report_problems(path: Path, stream: Stream[Any], context: StageContext) -> None:
    """Report dropped rows, warnings about the file, and how many rows have warnings."""
    for problem in stream.dropped:
        context.say(f"dropped {problem}")
    warnings = [problem for problem in stream.problems if problem.level == "warning"]
    for problem in warnings:
        if problem.line is None:  # about the file as a whole: reported nowhere else
            context.say(f"warning: {problem}")
    doubtful = [problem for problem in warnings if problem.line is not None]
    if doubtful:
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally(doubtful).items())
        context.say(f"{path.name}: {kinds}; alignkit data check {path} lists the lines")


def load_all(
    open_file: Open[R],
    sources: Sequence[str],
    config: TrainingConfig | OnlineConfig | SplitConfig,
    context: StageContext,
) -> list[R]:
    """Return the records of all files, in memory. Raises DataError when there are none."""
    records = list(records_of(open_file, sources, config, context))
    if not records:
        raise DataError("holds no rows", where=", ".join(sources))
    return records
