"""Tell the container and the compression of a file from its name."""

from __future__ import annotations

from pathlib import Path

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
}


def container_of(name: str) -> str:
    """Return the container that a file name implies: jsonl, json, csv, tsv, txt or parquet."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1] if suffixes else "", "jsonl")


def compression_of(name: str) -> str | None:
    """Return the compression that the last suffix implies, such as `gzip`, or None."""
    return COMPRESSIONS.get(Path(name).suffix.lower())
