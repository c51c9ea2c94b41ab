"""A failure that nobody foresaw: one line for the person, and a report to attach to an issue.

The report names versions, the kind of error and the places in the code it went through. It holds
no message, no argument and no value, because these may hold the person's data.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

import click

from alignkit.store.artifacts import versions
from alignkit.store.secrets import without_secrets


def tell_crash(error: BaseException) -> None:
    """Say what happened, and where the report is."""
    said = " ".join(str(error).split())
    click.echo(without_secrets(f"internal error: {type(error).__name__}: {said:.300}"), err=True)
    path = _write(crash_report(error))
    click.echo(
        f"A report without your data is in {path}. Please attach it to an issue; "
        "--debug shows the traceback here",
        err=True,
    )


def crash_report(error: BaseException) -> str:
    """Versions, machine, command, kinds of errors and places in the code; nothing of the user's."""
    lines = [
        f"alignkit crash report, {datetime.now(UTC).isoformat(timespec='seconds')}",
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{name} {version}" for name, version in versions().items()),
        f"command: {_command()}",
    ]
    link: BaseException | None = error
    while link is not None:
        lines += ["", f"{type(link).__module__}.{type(link).__qualname__}"]
        lines += [_place(frame) for frame in traceback.extract_tb(link.__traceback__)]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(lines) + "\n"


def _command() -> str:
    """The subcommand and the names of its options, without their values."""
    from alignkit.cli import COMMANDS

    words = sys.argv[1:]
    names = [word for word in words if word in COMMANDS]
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return " ".join(names[:1] + options)


def _place(frame: traceback.FrameSummary) -> str:
    parts = Path(frame.filename).parts
    if "site-packages" in parts:
        parts = parts[parts.index("site-packages") + 1 :]
    elif "alignkit" in parts:
        parts = parts[len(parts) - 1 - parts[::-1].index("alignkit") :]
    else:
        parts = parts[-1:]
    return f"  {'/'.join(parts)}:{frame.lineno} in {frame.name}"


def _write(report: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="alignkit-crash-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(report)
    return Path(name)
