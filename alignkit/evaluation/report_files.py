"""A report's file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from alignkit.artifacts import disk_full_named
from alignkit.errors import RecipeError


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` with `content`; whatever goes wrong, the old file stays as it was."""
    try:
        with disk_full_named(path.parent):
            _replace(path, content)
    except OSError as error:
        raise RecipeError(f"cannot be written: {error.strerror}", where=str(path)) from None


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
