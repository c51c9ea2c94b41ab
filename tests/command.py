"""The command line as a user has it: exit code, stdout and stderr, and the memory it took."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from alignkit.cli import main


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def alignkit(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Said:
    """Run `alignkit` with these arguments."""
    capsys.readouterr()
    given = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["alignkit", *given])
        with pytest.raises(SystemExit) as stop:
            main(given)
    written = capsys.readouterr()
    return Said(int(stop.value.code or 0), written.out, written.err)


# The peak of this program alone: what getrusage tells counts the process it was forked from.
WITH_PEAK = """
import re, sys
from alignkit.cli import main
try:
    main(sys.argv[1:])
finally:
    status = open("/proc/self/status").read()
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""


def with_peak(*arguments: Any) -> tuple[Said, int]:
    """A command in a process of its own, and the bytes of memory it had at its peak."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    said, _, peak = done.stdout.rpartition("peak ")
    return Said(done.returncode, said, done.stderr), int(peak) << 10
