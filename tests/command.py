"""The command line called in this process: exit code, stdout and stderr, as a user gets them."""

from __future__ import annotations

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
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    written = capsys.readouterr()
    return Said(int(stop.value.code or 0), written.out, written.err)
