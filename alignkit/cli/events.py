"""What a run tells a person while it works: one line per event, on stderr, as text or JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from alignkit.errors import AlignkitError, ErrorList
from alignkit.store.secrets import without_secrets


@dataclass(frozen=True)
class Teller:
    """`say` writes one event; secrets in it are blotted out."""

    write: Callable[[str], None]

    def say(self, message: str) -> None:
        """Tell one line."""
        if not os.environ.get("ALIGNKIT_QUIET"):
            self.write(" ".join(str(without_secrets(message)).splitlines()))


class Told(logging.Handler):
    """Passes what our own modules log on to a teller."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """One record, as one event."""
        self.say(record.getMessage())


def teller(as_json: bool) -> Teller:
    """A teller of plain lines, or of one JSON object a line; what modules log is told by it too."""
    found = Teller(_json_line if as_json else _text_line)
    logger = logging.getLogger("alignkit")
    logger.handlers[:] = [Told(found.say)]
    return found


def tell_error(error: AlignkitError, as_json: bool) -> None:
    """An error as people read it, or each as a JSON object with its parts."""
    if not as_json:
        click.echo(str(error), err=True)
        return
    for each in error.errors if isinstance(error, ErrorList) else [error]:
        _write_json(
            {
                "level": "error",
                "message": each.message,
                "where": each.where,
                "hint": each.hint,
                "exit_code": error.exit_code,
            }
        )


def _text_line(message: str) -> None:
    click.echo(message, err=True)


def _json_line(message: str) -> None:
    _write_json({"level": "info", "message": message})


def _write_json(content: dict[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    click.echo(json.dumps({"time": now, **without_secrets(content)}), err=True)
