"""Read a folder whose files are parts of one set of rows, as published data sets are.

A folder holds one split, or the split is named: `folder#train`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from alignkit.errors import DataError, did_you_mean
from alignkit.files.containers import COMPRESSIONS, SUFFIXES, container_of
from alignkit.files.kinds import as_data

# `train-00000-of-00002.parquet`; some add a hash after the numbers.
_SHARD = re.compile(r"(?P<split>.+?)[-_.](?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?:-[0-9a-f]+)?")
_NUMBERED = re.compile(r"(?:(?P<split>.+?)[-_.])?\d+")
# Words that name a split, as used in names of files and folders.
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")
# How deep below a folder its data may be, and how many entries are looked at.
DEPTH = 3
MOST_FILES = 10_000
# Files that describe the data next to them.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def parts_of(name: str) -> list[str] | None:
    """Return the files of a folder that make up one set, in order; None if it is not a folder.

    DataError when there are none, several splits, a missing part, or different containers.
    """
    folder, marker, wanted = name.partition("#")
    # os.path takes a name that is too long for any file for an absent one; Path raises.
    if os.path.isfile(name) or not os.path.isdir(folder):
        return None
    if mistaken := as_data(folder):
        raise DataError(mistaken[0], where=folder, hint=mistaken[1])
    splits = _splits(Path(folder))
    if not splits:
        endings = ", ".join(SUFFIXES)
        raise DataError("a folder without data files", where=name, hint=f"Known: {endings}")
    if marker:
        if wanted not in splits:
            raise DataError(
                f"no split {wanted!r}{did_you_mean(wanted, splits)}",
                where=folder,
                hint=f"Known splits: {_listed(splits)}",
            )
        return _whole(folder, wanted, splits[wanted])
    if len(splits) > 1:
        counted = [f"{split} ({_files(len(files))})" for split, files in splits.items()]
        raise DataError(
            f"a folder of several splits: {_listed(counted)}",
            where=name,
            hint=f"Fix: name one of them: {folder.rstrip('/')}#{_usual(splits)}",
        )
    return _whole(folder, *next(iter(splits.items())))


def _splits(folder: Path) -> dict[str, list[Path]]:
    """Group the data files under a folder by their split, both in order."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(_data_files(folder), key=_natural):
        splits.setdefault(_split_of(path.relative_to(folder).parts), []).append(path)
    return dict(sorted(splits.items()))


def _data_files(folder: Path) -> Iterator[Path]:
    """Yield the data files at most `DEPTH` folders down, hidden ones excluded."""
    seen = 0
    for place, folders, names in os.walk(folder):
        below = len(Path(place).relative_to(folder).parts)
        folders[:] = [n for n in folders if below < DEPTH and not n.startswith((".", "_"))]
        seen += len(names) + len(folders)
        if seen > MOST_FILES:
            raise DataError(
                f"a folder of more than {MOST_FILES:,} files",
                where=str(folder),
                hint="Fix: name the folder that holds the data",
            )
        yield from (
            path for name in names if _is_data(path := Path(place, name)) and name[0] not in "._"
        )


def _is_data(path: Path) -> bool:
    ending = path.with_suffix("").suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    return (
        path.is_file()
        and ending.lower() in SUFFIXES
        and path.name not in _DESCRIPTIONS
        and not (ending.lower() == ".txt" and path.stem.lower() in ("readme", "license", "licence"))
    )


def _split_of(inside: tuple[str, ...]) -> str:
    """Return the split a file belongs to, by its name and the folders above it."""
    *folders, name = inside
    above = [part for part in folders if part != "data"]
    stem = name.split(".", 1)[0]
    if (match := _SHARD.fullmatch(stem)) or (match := _NUMBERED.fullmatch(stem)):
        stem = match["split"] or ""
    if stem and above and above[-1].lower() in _SPLITS:
        return "/".join(above)
    return "/".join([*above, stem]) if stem else "/".join(above) or "data"


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part)
            for part in re.split(r"(\d+)", str(path)) if part]  # fmt: skip


def _whole(folder: str, split: str, files: list[Path]) -> list[str]:
    """Return the files, if no part of a numbered series is missing and all are of one kind."""
    kinds = {container_of(str(path)) for path in files}
    if len(kinds) > 1:
        raise DataError(
            f"{split} exists in several containers: {', '.join(sorted(kinds))}",
            where=folder,
            hint=f"Fix: name the file: {files[0]}",
        )
    series = [match for path in files if (match := _SHARD.fullmatch(path.name.split(".", 1)[0]))]
    for match in series:
        count = int(match["count"])
        missing = sorted(set(range(count)) - {int(other["number"]) for other in series})
        if missing:
            raise DataError(
                f"part {missing[0]} of {count} of {split} is missing (they count from 0)",
                where=folder,
                hint="Fix: download it again",
            )
    return [str(path) for path in files]


def _usual(splits: dict[str, list[Path]]) -> str:
    return next((split for split in splits if "train" in split), next(iter(splits)))


def _listed(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"
