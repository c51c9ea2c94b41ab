"""What only the holder of a collection's secret can work out: names of showings, orders, marks.

The secret is a file beside the log. Without it a ticket is a number like any other, the order of
answers tells nothing of whose they are, and nobody can write a page's signature.
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
    """sha256 of the parts, unambiguous: no two different lists of parts collide by joining."""
    return hashlib.sha256(_joined(parts)).hexdigest()


def _joined(parts: Sequence[object]) -> bytes:
    return orjson.dumps([str(part) for part in parts])


@dataclass(frozen=True)
class Marks:
    """Hexadecimal marks of what they are given: the same again with the same seed and secret.

    Without a secret anybody who knows the seed can work them out. Tasks for other tools are made
    so, and mailed pages once were.
    """

    seed: int
    secret: bytes = field(default=b"", repr=False)

    def of(self, *parts: object) -> str:
        """HMAC-SHA256 (RFC 2104) of seed and parts under the secret; without one, plain sha256."""
        if not self.secret:
            return digest(*parts)
        return hmac.digest(self.secret, _joined((self.seed, *parts)), "sha256").hex()


def secret_file(log: Path) -> Path:
    """Where the secret of a collection stands."""
    return Path(f"{log}.secret")


def secret_beside(log: Path) -> bytes:
    """The collection's secret, made when there is none. Two processes agree on one."""
    file = secret_file(log)
    try:
        if not file.exists():
            with disk_full_named(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError), replacing(file, mode=0o600, overwrite=False) as new:
                    new.write(secrets.token_hex(32).encode() + b"\n")
        return known_secret(log)
    except OSError as error:
        raise DataError(f"cannot write: {error.strerror}", where=str(file)) from None


def known_secret(log: Path) -> bytes:
    """The secret that is there. Raises DataError where there is none, or something else."""
    file = secret_file(log)
    try:
        with file.open("rb") as stream:
            content = stream.read(128)
    except FileNotFoundError:
        raise DataError(
            "no such file, and without the secret in it a mailed page cannot be told from a"
            " forged one",
            where=str(file),
            hint="Import into the file that --output named when the page was made",
        ) from None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(file)) from None
    if not _SECRET.fullmatch(content):
        raise DataError(
            "holds no secret of a collection",
            where=str(file),
            hint="Restore it; or delete it, and pages that were mailed can no longer be imported",
        )
    return bytes.fromhex(content.decode().strip())


def readable_by_others(log: Path) -> bool:
    """Whether other users of the machine can read the secret."""
    file = secret_file(log)
    return file.exists() and bool(stat.S_IMODE(file.stat().st_mode) & 0o077)
