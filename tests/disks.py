"""File systems of a few hundred KiB, for tests of what happens when they are full."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of this size at `place`; the test is skipped where we may not mount one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        gc.collect()  # a run in this process may still map its rows from there
        subprocess.run(["umount", str(place)], check=True)


def filled(place: Path, *, leaving: int) -> Path:
    """A file that takes all but `leaving` KiB of a small disk; removing it makes room again."""
    status = os.statvfs(place)
    path = place / "someone-elses-file"
    path.write_bytes(bytes(status.f_bavail * status.f_frsize - (leaving << 10)))
    return path
