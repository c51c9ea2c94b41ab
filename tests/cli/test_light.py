"""The command line answers at once: no help, plan of data or error of a recipe imports torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.cli import COMMANDS

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "bitsandbytes", "accelerate", "scipy")


def modules_after(arguments: list[str], place: Path) -> tuple[int, set[str], float]:
    """Exit code, heavy modules imported and CPU seconds of a command in a process of its own."""
    program = (
        "import json, sys, time\n"
        "from alignkit.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as stop:\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    report = [stop.code or 0, heavy, time.process_time()]\n"
        "    sys.stderr.write('\\n' + json.dumps(report))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=place
    )
    code, heavy, seconds = json.loads(done.stderr.splitlines()[-1])
    return code, set(heavy), seconds


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_light(command: str, tmp_path: Path) -> None:
    code, heavy, seconds = modules_after([*command.split(), "--help"], tmp_path)
    assert (code, heavy) == (0, set())
    assert seconds < 1.0  # half a second on an idle machine; CPU time, doubled for a busy one


def test_the_overview_takes_less_than_half_a_second(tmp_path: Path) -> None:
    """CPU seconds, start of Python included: on an idle machine that is what a person waits."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "alignkit", "--help"], capture_output=True, check=True, cwd=tmp_path
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
