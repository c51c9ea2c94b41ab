"""What a run tells a person while it works: one line per event, on stderr, as text or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from alignkit.artifacts import without_secrets


@dataclass(frozen=True)
class Teller:
    """`say` writes one event; secrets in it are blotted out."""

    write: Callable[[str], None]

    def say(self, message: str) -> None:
        """Tell one line."""
        if not os.environ.get("ALIGNKIT_QUIET"):
            self.write(str(without_secrets(message)))


def teller(as_json: bool) -> Teller:
    """A teller of plain lines, or of one JSON object a line."""
    return Teller(_json_line if as_json else _text_line)


def _text_line(message: str) -> None:
    click.echo(message, err=True)


def _json_line(message: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    click.echo(json.dumps({"time": now, "message": message}), err=True)
