"""Cache a quantized base on disk by content, so that the next command reads it instead.

A CPU quantizes some 40 million weights per second: half a billion cost ten seconds at every start,
and a disk returns them in a fraction of one. On a GPU, quantizing is too fast to be worth a file.
The format is transformers' own. Every byte is checked before use, and a directory that is
incomplete is quantized again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError, RecipeError
from alignkit.store.artifacts import FileSeal as Seal
from alignkit.store.artifacts import (
    check_file,
    make_directory,
    open_sealed_json,
    private_files,
    seal_of,
    sealed_json,
    write_durably,
)
from alignkit.store.content_hash import cache_directory

logger = logging.getLogger(__name__)

FEWEST_WEIGHTS = 50_000_000  # from this many quantized weights, the cache saves over a second
SPARE = 2  # free disk space required, in multiples of the base's size
LIST = "kept.json"


def cache_path(fingerprint: str, dtype: str) -> Path:
    """Return the path for a base with this fingerprint (files and quantization) and dtype."""
    parts = (fingerprint, dtype, version("bitsandbytes"), version("transformers"))
    return cache_directory() / "bases" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def load_cached_base(path: Path, fingerprint: str) -> Path | None:
    """Return `path` if it holds this base complete, else None; remove what is incomplete.

    The directory may hold only the files in its list, because a library might read any other.
    """
    if not path.is_dir():
        return None
    try:
        content = open_sealed_json(path / LIST)
        if content["base"] != fingerprint:
            raise ModelError("is of another base", where=str(path))
        if {LIST, *content["files"]} != {file.name for file in path.iterdir()}:
            raise ModelError("holds other files than its list", where=str(path))
        for name, seal in content["files"].items():
            check_file(path, name, Seal.model_validate(seal))
    except (ModelError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        logger.warning("%s is quantized again: %s", path.name, error)
        shutil.rmtree(path, ignore_errors=True)
        return None
    return path


def save_base(model: Any, path: Path, fingerprint: str) -> None:
    """Save a freshly quantized model if it is large enough; a full disk is only a warning."""
    weights = sum(
        2 * module.weight.numel()  # two weights per byte
        for module in model.modules()
        if type(module).__name__ == "Linear4bit"
    )
    if weights < FEWEST_WEIGHTS or path.exists():
        return
    try:
        with private_files():
            _write(model, path, fingerprint)
    except (OSError, RecipeError) as error:
        logger.warning("the quantized base was not saved: %s", error)


def _write(model: Any, path: Path, fingerprint: str) -> None:
    make_directory(path.parent)
    size = model.get_memory_footprint()
    if shutil.disk_usage(path.parent).free < SPARE * size:
        logger.warning("the quantized base was not saved: the disk has no room for it")
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        model.save_pretrained(part)
        files = {file.name: seal_of(file).model_dump() for file in sorted(part.iterdir())}
        write_durably(part / LIST, sealed_json({"base": fingerprint, "files": files}))
        part.rename(path)
    logger.info("the quantized base is saved in %s", path)
