"""Derive tickets, orders and signatures that only the holder of a collection's secret can compute.

The secret is a file next to the log. Without it a ticket reveals nothing, the order of completions
does not tell their models, and nobody can forge the signature of a page.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from alignkit.errors import DataError
from alignkit.store.artifacts import disk_full_named
from alignkit.store.whole_files import replacing

_SECRET = re.compile(rb"[0-9a-f]{64}\n?")


def digest(*parts: object) -> str:
    """Return the sha256 of the parts, joined so that different lists of parts never collide."""
    return hashlib.sha256(_joined(parts)).hexdigest()


def _joined(parts: Sequence[object]) -> bytes:
    return orjson.dumps([str(part) for part in parts])


@dataclass(frozen=True)
class Marks:
    """Hexadecimal marks of given parts, reproducible with the same seed and secret.

    Without a secret anybody who knows the seed can compute them. Tasks for other tools are made
    that way, as were mailed pages before they were signed.
    """

    seed: int
    secret: bytes = field(default=b"", repr=False)

    def of(self, *parts: object) -> str:
        """Return HMAC-SHA256 (RFC 2104) of seed and parts; sha256 of the parts without a secret."""
        if not self.secret:
            return digest(*parts)
        return hmac.digest(self.secret, _joined((self.seed, *parts)), "sha256").hex()


def secret_file(log: Path) -> Path:
    """Return the path of a collection's secret."""
    return Path(f"{log}.secret")


def ensure_secret(log: Path) -> bytes:
    """Return the collection's secret, creating it if needed; concurrent processes agree on one."""
    file = secret_file(log)
    try:
        if not file.exists():
            with disk_full_named(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError), replacing(file, mode=0o600, overwrite=False) as new:
                    new.write(secrets.token_hex(32).encode() + b"\n")
        return read_secret(log)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror}", where=str(file)) from None


def read_secret(log: Path) -> bytes:
    """Read the secret; DataError if the file is missing or malformed."""
    file = secret_file(log)
    try:
        with file.open("rb") as stream:
            content = stream.read(128)
    except FileNotFoundError:
        raise DataError(
            "no such file; without its secret a mailed page cannot be distinguished from a"
            " forged one",
            where=str(file),
            hint="Import into the --output file of the command that made the page",
        ) from None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(file)) from None
    if not _SECRET.fullmatch(content):
        raise DataError(
            "does not contain the secret of a collection",
            where=str(file),
            hint="Restore it. If you delete it, mailed pages can no longer be imported",
        )
    return bytes.fromhex(content.decode().strip())


def readable_by_others(log: Path) -> bool:
    """Return whether other users of the machine can read the secret."""
    file = secret_file(log)
    return file.exists() and bool(stat.S_IMODE(file.stat().st_mode) & 0o077)
