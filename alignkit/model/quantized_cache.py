"""A quantized base kept on disk, found again by content: the next command reads it instead.

A CPU quantizes some 40 million weights a second, so that half a billion cost ten seconds at every
start, and a disk gives them back in a fraction of one. On a GPU quantizing costs nothing that is
worth a file. What is kept is transformers' own format; every byte is checked before it is used, and
a directory that is not whole is quantized anew.
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

FEWEST_WEIGHTS = 50_000_000  # quantized weights from which keeping them saves more than a second
SPARE = 2  # so many times its size must be free before a base is kept
LIST = "kept.json"


def kept_place(fingerprint: str, dtype: str) -> Path:
    """Where a base with this fingerprint (files and quantization) in this dtype is kept."""
    parts = (fingerprint, dtype, version("bitsandbytes"), version("transformers"))
    return cache_directory() / "bases" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def whole_base(place: Path, fingerprint: str) -> Path | None:
    """`place` if the whole base of this fingerprint lies there; what is not whole is removed.

    Nothing but the files that are listed may lie there: a library might read it.
    """
    if not place.is_dir():
        return None
    try:
        kept = open_sealed_json(place / LIST)
        if kept["base"] != fingerprint:
            raise ModelError("is of another base", where=str(place))
        if {LIST, *kept["files"]} != {path.name for path in place.iterdir()}:
            raise ModelError("holds other files than its list", where=str(place))
        for name, seal in kept["files"].items():
            check_file(place, name, Seal.model_validate(seal))
    except (ModelError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        logger.warning("%s is quantized anew: %s", place.name, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    return place


def keep_base(model: Any, place: Path, fingerprint: str) -> None:
    """Keep a freshly quantized model, if it is large enough; a full disk only costs a warning."""
    weights = sum(
        2 * module.weight.numel()  # two weights a byte
        for module in model.modules()
        if type(module).__name__ == "Linear4bit"
    )
    if weights < FEWEST_WEIGHTS or place.exists():
        return
    try:
        with private_files():
            _write(model, place, fingerprint)
    except (OSError, RecipeError) as error:
        logger.warning("the quantized base was not kept: %s", error)


def _write(model: Any, place: Path, fingerprint: str) -> None:
    make_directory(place.parent)
    size = model.get_memory_footprint()
    if shutil.disk_usage(place.parent).free < SPARE * size:
        logger.warning("the quantized base was not kept: the disk has no room for it")
        return
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        part = Path(scratch) / place.name
        model.save_pretrained(part)
        files = {path.name: seal_of(path).model_dump() for path in sorted(part.iterdir())}
        write_durably(part / LIST, sealed_json({"base": fingerprint, "files": files}))
        part.rename(place)
    logger.info("the quantized base is kept in %s", place)
