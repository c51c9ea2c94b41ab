"""What a stage leaves behind: a directory with a manifest, whole or not there at all.

A stage works in `<directory>.partial`. The manifest, written last, lists every file with its
sha256; then the directory gets its name in one rename. Nothing here knows what is in the files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignkit.errors import AlignkitError, DiskFull, ModelError, RecipeError, TrainingFailed
from alignkit.store.secrets import without_secrets
from alignkit.store.whole_files import fsync, remove_partial_files, write_whole

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RECORD = "stage.json"
LOCK = ".lock"
WORK_ONLY = ("checkpoints", LOCK)
MAX_MANIFEST = 16 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.EXDEV, errno.ENOTDIR)
MAKE_ROOM = "Free some space and run the same command again"
RAISE_LIMIT = "Raise the limit on the size of files (ulimit -f) and run the same command again"
PACKAGES = ("alignkit", "torch", "transformers", "trl", "peft", "bitsandbytes", "safetensors")

# The only environment variables that are ever recorded.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "WORLD_SIZE",
)


class FileSeal(BaseModel):
    """What a file must be: its content's sha256, and its size in bytes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """The record of a finished stage; its presence means that the directory is complete."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_version: int
    kind: str
    name: str
    key: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, str]
    backbone: dict[str, Any]
    files: dict[str, FileSeal]
    metrics: dict[str, Any]
    versions: dict[str, str]
    environment: dict[str, str]
    started: str
    finished: str
    command: str
    template_date: str | None = None  # what templates that write today's date wrote


def template_date(directory: Path | None) -> date | None:
    """The date that templates were told in a run, finished or begun, or of an adapter of it."""
    for place in (directory, directory.parent) if directory is not None else ():
        for file in (place / MANIFEST, place / RECORD):
            try:
                stamped = open_sealed_json(file).get("template_date")
                return date.fromisoformat(str(stamped))
            except (AlignkitError, TypeError, ValueError):
                continue  # none there, or one from before dates were stamped
    return None


@contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """Work in `<final>.partial`; at the end, if it has a manifest, it becomes `final`.

    After an exception the partial directory stays, with its checkpoints, to go on from.
    """
    partial = partial_of(final)
    make_directory(partial)
    remove_partial_files(partial)
    with disk_full_named(partial):
        yield partial
        if not (partial / MANIFEST).is_file():
            raise TrainingFailed(f"the stage ended without writing {MANIFEST}", where=str(partial))
        publish(partial, final)


def partial_of(final: Path) -> Path:
    """Where `final` is made."""
    return final.with_name(final.name + ".partial")


def publish(partial: Path, final: Path) -> None:
    """Give a directory with a manifest its final name, durably; then drop what was for work."""
    for path in [partial, *partial.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
            fsync(path)
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        raise RecipeError(
            f"{final} is in the way: {error.strerror}",
            hint=f"The finished work is in {partial}; name a directory that is not there yet",
        ) from None
    fsync(final.parent)
    drop_work(final)


def drop_work(final: Path) -> None:
    """Remove from a finished directory what only an unfinished one needs."""
    for name in WORK_ONLY:
        path = final / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_manifest(directory: Path, fields: Mapping[str, Any]) -> Manifest:
    """Seal all files of a directory and write its manifest; secrets in any text are blotted out."""
    files = {
        path.relative_to(directory).as_posix(): seal_of(path).model_dump()
        for path in stage_files(directory)
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        **fields,
        "files": files,
    }
    plain: dict[str, Any] = without_secrets(plain_value(content))
    manifest = Manifest.model_validate(plain)
    write_durably(directory / MANIFEST, sealed_json(manifest.model_dump()))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished stage. Raises ModelError if absent, damaged or edited."""
    path = directory / MANIFEST
    content = open_sealed_json(path)
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ModelError(
            f"schema_version is {content.get('schema_version')!r:.20}, this alignkit reads "
            f"{SCHEMA_VERSION}",
            where=str(path),
            hint="Use the alignkit that made it, or make it again",
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{field}: {first['msg']}", where=str(path)) from None


def verify(directory: Path) -> Manifest:
    """Check every file against the manifest. Raises ModelError naming the first that differs."""
    manifest = read_manifest(directory)
    for name, seal in manifest.files.items():
        check_file(directory, name, seal)
    return manifest


def verify_part(directory: Path) -> None:
    """Check a directory inside a finished stage, such as its adapter; others have no manifest."""
    stage = directory.parent
    if not (stage / MANIFEST).is_file():
        return
    for name, seal in read_manifest(stage).files.items():
        if Path(name).parts[0] == directory.name:
            check_file(stage, name, seal)


def check_file(directory: Path, name: str, seal: FileSeal) -> None:
    """Raise ModelError unless `directory/name` is an ordinary file inside it with this content."""
    path = inside(directory, name)
    try:
        size = path.stat().st_size
    except OSError:
        raise ModelError(f"{name} is missing", where=str(directory)) from None
    if size != seal.size:
        raise ModelError(f"{name} is {size:,} of {seal.size:,} bytes", where=str(directory))
    if seal_of(path).sha256 != seal.sha256:
        raise ModelError(f"{name} does not match its checksum", where=str(directory))


def inside(directory: Path, name: str) -> Path:
    """`directory/name`, refused when that leads out of the directory, links included."""
    path = directory / name
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise ModelError(f"{name!r:.80} leads out of the directory", where=str(directory))
    for depth in range(1, len(parts) + 1):
        if directory.joinpath(*parts[:depth]).is_symlink():
            raise ModelError(f"{name} is a link; only plain files are read", where=str(directory))
    return path


def seal_of(path: Path) -> FileSeal:
    """sha256 and size of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileSeal(sha256=digest, size=stream.tell())


def stage_files(directory: Path) -> list[Path]:
    """Files that belong to a stage's result: not its checkpoints, lock or manifest."""
    found = []
    for path in sorted(directory.rglob("*")):
        top = path.relative_to(directory).parts[0]
        if top in WORK_ONLY or path == directory / MANIFEST or path.is_dir():
            continue
        if path.is_symlink():
            raise TrainingFailed(f"{path} is a link; a stage leaves only plain files")
        found.append(path)
    return found


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """JSON that carries the sha256 of itself, in one fixed spelling."""
    seal = hashlib.sha256(_render(content)).hexdigest()
    return _render({**content, "seal": seal})


def open_sealed_json(path: Path) -> dict[str, Any]:
    """Content of a file written by `sealed_json`. Raises ModelError if a single byte differs."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from None
    damaged = ModelError(f"{path.name} is damaged or was edited", where=str(path))
    if len(raw) > MAX_MANIFEST:
        raise damaged
    try:
        content = json.loads(raw)
        if not isinstance(content, dict) or _render(content) != raw:
            raise damaged
        seal = content.pop("seal", None)
        if seal != hashlib.sha256(_render(content)).hexdigest():
            raise damaged
    except (ValueError, RecursionError, TypeError):
        raise damaged from None
    return content


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file at once by one for its owner alone; DiskFull where there is no room."""
    with disk_full_named(path.parent):
        write_whole(path, content, mode=0o600)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, for its owner alone; existing ones stay as they are."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for parent in reversed(missing):
        try:
            parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"cannot make {parent}: {error.strerror}", hint="Name a place that can be written"
            ) from None


def check_place(directory: Path) -> None:
    """Raise RecipeError unless `directory` is one, or can be made: asked before work is done."""
    for path in (directory, *directory.parents):
        if not os.path.lexists(path):
            continue
        if not path.is_dir():
            raise RecipeError(
                f"{path} is a file, not a directory", hint="Name a directory for the results"
            )
        if not os.access(path, os.W_OK | os.X_OK):
            raise RecipeError(
                f"{path} cannot be written to", hint="Name a place that can be written"
            )
        return


@contextmanager
def private_files() -> Iterator[None]:
    """Files and directories made inside are for their owner alone, whoever makes them."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def disk_full_named(directory: Path) -> Iterator[None]:
    """No space left, however it is reported, becomes one DiskFull that says where."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise file_too_large(directory) from None
        if error.errno not in FULL:
            raise
        raise disk_full(directory) from None
    except Exception as error:
        # safetensors reports its own class with the system's words in it.
        if "os error 27" in str(error):
            raise file_too_large(directory) from None
        if "os error 28" not in str(error) and "os error 122" not in str(error):
            raise
        raise disk_full(directory) from None


def disk_full(directory: Path) -> DiskFull:
    """The error to raise where there is no space left."""
    free = shutil.disk_usage(existing(directory)).free
    return DiskFull(f"disk full at {directory}: {readable(free)} free", hint=MAKE_ROOM)


def file_too_large(directory: Path) -> DiskFull:
    """The error to raise where a file may not grow as large as it has to."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f" of {readable(limit)}"
    return DiskFull(
        f"a file at {directory} would be larger than the limit{allowed} on files", hint=RAISE_LIMIT
    )


def existing(path: Path) -> Path:
    """The nearest directory at or above this path that exists."""
    return next(parent for parent in (path, *path.resolve().parents) if parent.is_dir())


def readable(size: float) -> str:
    """A number of bytes as people say it: 1.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for this process; RecipeError with the pid when another holds it."""
    make_directory(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise RecipeError(
                f"{what} is in use by process {holder}",
                hint="Wait for it, or stop it; it saves its work when interrupted",
            ) from None
        with disk_full_named(path.parent):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """`beta 0.1 → 0.2` for every entry that differs, nested ones by their dotted name."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{within}{name}.")
        elif old != new:
            found.append(f"{within}{name} {_shown(old)} → {_shown(new)}")
    return found


def versions() -> dict[str, str]:
    """Versions of what the result depends on, without importing any of it."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def plain_value(value: Any) -> Any:
    """Numbers, text, lists and mappings only: what JSON can hold and read back the same."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(entry) for entry in value]
    if isinstance(value, BaseModel):
        return plain_value(value.model_dump())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _shown(value: Any) -> str:
    text = "(not set)" if value is None else str(value)
    if text.startswith("['sha256:") or text.startswith("sha256:"):
        return text.strip("[]'")[7:15]
    return text if len(text) <= 40 else f"{text[:24]}…{text[-4:]}"


def _render(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"
