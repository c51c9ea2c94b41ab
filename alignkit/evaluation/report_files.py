"""A report's file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from alignkit.files.write import whole_file


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` with `content`; whatever goes wrong, the old file stays as it was."""
    with whole_file(path) as stream:
        stream.write(content)
