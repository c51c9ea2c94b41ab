"""Our own records, which name what they are by `kind`."""

from __future__ import annotations

from alignkit.data.formats.fields import Fields, Format, Row, keys
from alignkit.data.records import KINDS, Record
from alignkit.errors import did_you_mean
from alignkit.files.problems import RowError


def read(row: Row) -> Fields:
    """Return the row itself, if its kind is one of ours."""
    kind = row["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        guess = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        raise RowError(
            "kind",
            f"unknown kind {kind!r:.40}{guess}",
            f"use one of {', '.join(KINDS)}",
            field="kind",
        )
    return dict(row)


def write(record: Record) -> Fields:
    """Return the record as it is."""
    return record.model_dump()


FORMATS = [
    Format(
        "alignkit",
        "any",
        keys("kind"),
        read,
        write,
        when=lambda row: row["kind"] in KINDS if isinstance(row["kind"], str) else False,
        about="our own records",
    )
]
