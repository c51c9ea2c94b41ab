"""Keep token rows on disk, so that memory does not grow with their number.

The file is in Apache Arrow's stream format, mapped into memory and unlinked at once: however the
process ends, nothing of it remains.
"""

from __future__ import annotations

import typing
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Generic, overload

import pyarrow as pa
from datasets import Dataset

from alignkit.training.rows import Row

CHUNK = 1000  # rows converted to columns at a time

COLUMNS: dict[Any, pa.DataType] = {
    str: pa.string(),
    float: pa.float64(),
    list[int]: pa.list_(pa.int32()),
    list[bool]: pa.list_(pa.bool_()),
    list[list[int]]: pa.list_(pa.list_(pa.int32())),
    list[float] | None: pa.list_(pa.float64()),
}


class TokenRows(Sequence[Row], Generic[Row]):
    """Rows of one kind, read from disk on access.

    `dataset` has a column per field of the row; `lengths` are the tokens of each row's longest
    sequence, `sizes` those of all its parts.
    """

    def __init__(
        self, kind: type[Row], dataset: Dataset, lengths: array[int], sizes: array[int]
    ) -> None:
        self.kind: type[Row] = kind
        self.dataset = dataset
        self.lengths = lengths
        self.sizes = sizes

    @classmethod
    def write(cls, kind: type[Row], rows: Iterable[Row], directory: Path) -> TokenRows[Row]:
        """Write the rows to a file of their own, on the disk of `directory`."""
        file = directory / "rows.arrow"
        lengths, sizes = array("q"), array("q")

        def measured() -> Iterator[Row]:
            for row in rows:
                lengths.append(row.tokens)
                sizes.append(row.size)
                yield row

        try:
            _write(file, kind, measured())
            mapped = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
            # To `datasets` this is a table in memory, so a spawned worker receives the rows and
            # looks for no file. The default fingerprint would hash every row.
            dataset = Dataset(mapped, fingerprint=uuid.uuid4().hex)
            return cls(kind, dataset, lengths, sizes)
        finally:
            file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return self.kind(**self.dataset[index])

    def __getitems__(self, positions: Sequence[int]) -> list[Row]:
        """Return the rows at these positions; a data loader fetches a batch by this."""
        columns = self.dataset[list(positions)]
        return [
            self.kind(**dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        ]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]

    def only(self, positions: Sequence[int]) -> TokenRows[Row]:
        """Return the rows at these positions, in this order; the file is shared."""
        chosen = self.dataset.select(positions, keep_in_memory=True)
        lengths, sizes = (
            array("q", (numbers[position] for position in positions))
            for numbers in (self.lengths, self.sizes)
        )
        return TokenRows(self.kind, chosen, lengths, sizes)


def _write(file: Path, kind: type[Row], rows: Iterator[Row]) -> None:
    types = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    schema = pa.schema([(name, COLUMNS[types[name]]) for name in names])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while chunk := list(islice(rows, CHUNK)):
            columns = [[getattr(row, name) for row in chunk] for name in names]
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
