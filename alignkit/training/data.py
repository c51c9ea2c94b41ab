"""Reading a stage's data: checked, named by format, split by prompt, fitted to length.

Nothing is dropped or cut in silence.
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

AT_ONCE = 32  # records that are rendered together
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
    """Training rows and held-out ones: `eval_data`, or a share of the prompts of `data`.

    `make` turns a record into a row, or several, or None when there is nothing in it to learn
    from; with its `encoder` at hand, keys that the template never reads are said.
    Records are read, made rows and forgotten one by one. Rows beyond `max_length` are handled as
    `on_overlong` says. Raises DataError when nothing is left.
    """
    unread = UnreadKeys(encoder) if encoder is not None else None
    train, ties = _written(kind, open_file, make, config.data, config, context, unread)
    if config.eval_data:
        held_out, asked = _written(kind, open_file, make, config.eval_data, config, context, unread)
        _tell_leaks(set(ties.prompts), asked.prompts, held_out, context)
    else:
        parts = ties.split([1.0 - config.eval_fraction, config.eval_fraction], context.seed)
        if not parts[0]:
            raise _nothing_to_train(len(train), config)
        train, held_out = train.only(parts[0]), train.only(parts[1])
    for line in encoder.remarks.lines() if encoder is not None else ():
        context.say(line)
    found = len(train)
    train = fit_to_length(train, config, context)
    if not train:
        raise DataError(
            f"all {found:,} rows are longer than max_length {config.max_length}: none is left",
            where=", ".join(config.data),
            hint="Fix: raise max_length, or set on_overlong to truncate_prompt",
        )
    return train, fit_to_length(held_out, config, context)


def _nothing_to_train(rows: int, config: TrainingConfig) -> DataError:
    """Why no row is left to train on: a prompt, and what belongs to it, is never divided."""
    what = "1 row" if rows == 1 else f"{rows:,} rows, all of one prompt or one group"
    return DataError(
        f"{what}: eval_fraction {config.eval_fraction} holds all of it out, and none is left to "
        "train on",
        where=", ".join(config.data),
        hint="Fix: add rows with other prompts, or train on everything: --eval-fraction 0",
    )


def _written(
    kind: type[Row],
    open_file: Open[R],
    make: Callable[[R], Row | list[Row] | None],
    sources: Sequence[str],
    config: TrainingConfig,
    context: StageContext,
    unread: UnreadKeys | None,
) -> tuple[TokenRows[Row], Ties]:
    """The rows of all files, and what ties each to others."""
    ties = Ties()

    def rows() -> Iterator[Row]:
        failed: DataError | None = None
        records = records_of(open_file, sources, config, context)
        for record in records if unread is None else prepared(records, unread.encoder):
            if failed is not None:
                continue  # reading goes on, so that all bad rows of the files are named first
            try:
                ready = _made(record, make, unread)
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
            "no row says anything to learn from: all are ties, or rank fewer than two answers",
            where=", ".join(sources),
            hint="Fix: give the better answer the smaller rank",
        )
    return written, ties


def prepared(records: Iterator[R], encoder: Encoder) -> Iterator[R]:
    """The records as they come, rendered some at a time."""
    while part := list(islice(records, AT_ONCE)):
        encoder.prepare(part)
        yield from part


def _made(
    record: R, make: Callable[[R], Row | list[Row] | None], unread: UnreadKeys | None
) -> list[Row]:
    """The rows of a record; what is wrong with it is told with its place."""
    try:
        found = make(record)
        if unread is not None:
            unread.look(record)
    except (DataError, ModelError) as error:
        raise error.at(place(record)) from None
    listed = found if isinstance(found, list) else [found]
    return [row for row in listed if row is not None]


def _tell_leaks(
    known: set[int], asked: Sequence[int], held_out: TokenRows[Any], context: StageContext
) -> None:
    """Say how many evaluation rows ask what was trained on: they flatter every number."""
    leaked = [position for position, prompt in enumerate(asked) if prompt in known]
    if leaked:
        context.say(
            f"{len(leaked)} of {len(held_out)} evaluation rows have a prompt that is trained on, "
            f"the first is {held_out[leaked[0]].where}; alignkit data split keeps prompts apart"
        )


def fit_to_length(
    rows: TokenRows[Row], config: TrainingConfig, context: StageContext
) -> TokenRows[Row]:
    """Rows within `max_length`, by `on_overlong`; raises DataError when it is `error`."""
    limit = config.max_length
    long = [position for position, length in enumerate(rows.lengths) if length > limit]
    if not long:
        return rows
    first = rows[long[0]].where
    found = (
        f"{len(long)} of {len(rows)} rows are longer than max_length {limit} "
        f"(up to {max(rows.lengths)})"
    )
    if config.on_overlong == "error":
        raise DataError(
            found,
            where=first,
            hint="raise max_length, or set on_overlong to drop or truncate_prompt",
        )
    if config.on_overlong == "drop":
        context.say(f"{found}: dropped, the first at {first}")
        return rows.only([i for i, length in enumerate(rows.lengths) if length <= limit])
    cut = (row.without_start(max(0, row.tokens - limit)) for row in rows)
    kept = TokenRows.write(rows.kind, (row for row in cut if row is not None), context.directory)
    context.say(f"{found}: prompts cut from the left, {len(rows) - len(kept)} dropped")
    return kept


def records_of(
    open_file: Open[R],
    sources: Sequence[str],
    config: TrainingConfig | OnlineConfig | SplitConfig,
    context: StageContext,
) -> Iterator[R]:
    """The records of all files one by one; what was left out is said at the end of each."""
    for source in sources:
        path = context.data_file(source)
        stream = open_file(path, format=config.format, on_bad_row=config.on_bad_row)
        count = 0
        for record in stream:
            count += 1
            yield record
        context.say(f"{path.name}: {count} rows, format {stream.format}")
        _tell_problems(path, stream, context)


def _tell_problems(path: Path, stream: Stream[Any], context: StageContext) -> None:
    for problem in stream.dropped:
        context.say(f"dropped {problem}")
    warnings = [problem for problem in stream.problems if problem.level == "warning"]
    for problem in warnings:
        if problem.line is None:  # of the file as a whole: it stands nowhere else
            context.say(f"warning: {problem}")
    doubtful = [problem for problem in warnings if problem.line is not None]
    if doubtful:
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally(doubtful).items())
        context.say(f"{path.name}: {kinds}; alignkit data check {path} names the lines")


def load_all(
    open_file: Open[R],
    sources: Sequence[str],
    config: TrainingConfig | OnlineConfig | SplitConfig,
    context: StageContext,
) -> list[R]:
    """The records of all files, in memory. Raises DataError when nothing is left."""
    records = list(records_of(open_file, sources, config, context))
    if not records:
        raise DataError("holds no rows", where=", ".join(sources))
    return records
