"""Try a tokenizer in another process, with little time and memory, before it is loaded.

A tokenizer.json is a kind of program: it may replace one letter by a thousand, again and again,
repeat the text, or search it with a pattern that never ends. It is tried once per content, on texts
made of what its own rules look for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError
from alignkit.model import tokenizer_trial
from alignkit.model.files import EMBEDDED, READ, ModelFiles, staged
from alignkit.model.tokenizer_trial import CPU_SECONDS, GROWS, MEMORY, MEMORY_BYTES, TOKENIZER
from alignkit.store.content_hash import content_hashes, recall, remember

FORMAT = "1"  # part of the key of a passed trial: raise it when more is tried
HINT = "Take the tokenizer that the model's makers published"
TOO_LONG = f"the tokenizer takes more than {CPU_SECONDS} seconds for a few short texts"
TOO_MUCH = f"the tokenizer takes more than {MEMORY_BYTES >> 30} GiB for a few short texts"
TRIAL = tokenizer_trial.__file__
OUTCOMES = {-9: TOO_LONG, -24: TOO_LONG, -6: TOO_MUCH, MEMORY: TOO_MUCH}


def check_tokenizer(model: Path) -> None:
    """Try a model's tokenizer. Raises ModelError when it takes too long, grows a text or is broken.

    The embedded model's tokenizer is our own. A tokenizer that passed once is remembered by
    content.
    """
    if model in EMBEDDED.values():
        return
    files = sorted(file for file in model.iterdir() if READ.fullmatch(file.name))
    contents = zip(files, content_hashes(files), strict=True)
    text = "\0".join(f"{file.name} {content}" for file, content in contents)
    key = f"tokenizer {FORMAT} {hashlib.sha256(text.encode()).hexdigest()}"
    if recall(key) is None:
        _try_once(model, key)
        remember(key, "yes")


def checked_tokenizer(files: ModelFiles, **settings: Any) -> Any:
    """Try a model's tokenizer, then load it. Raises ModelError when it cannot be used.

    Truncation and padding in a tokenizer.json are switched off: they are the user's choice.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as noise

    check_tokenizer(files.path)
    noise.set_verbosity_error()  # it warns about every long text; we count those ourselves
    noise.disable_progress_bar()
    try:
        with staged(files) as place:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
    except Exception as error:  # the library underneath raises bare exceptions
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the tokenizer cannot be loaded: {reason[0]:.300}", where=str(files.path)
        ) from error
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = str(files.path)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


@cache
def _try_once(model: Path, key: str) -> None:
    """Load and use the tokenizer in another process, once per content and process."""
    del key
    with staged(ModelFiles(model.name, model, None)) as place:
        try:
            done = subprocess.run(
                [sys.executable, "-I", TRIAL, str(place)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=6 * CPU_SECONDS,
                env=_environment(),
            )
        except subprocess.TimeoutExpired:
            raise ModelError(TOO_LONG, where=str(model), hint=HINT) from None
    output = done.stdout.decode(errors="replace").strip()
    if done.returncode in OUTCOMES:
        raise ModelError(OUTCOMES[done.returncode], where=str(model), hint=HINT)
    if done.returncode:
        reason = output.splitlines()[0] if output else f"exit {done.returncode}"
        where = model / TOKENIZER if (model / TOKENIZER).is_file() else model
        raise ModelError(
            reason
            if done.returncode == GROWS
            else f"the tokenizer cannot be loaded: {reason:.200}",
            where=str(where),
            hint=HINT if done.returncode == GROWS else None,
        )


def _environment() -> dict[str, str]:
    """Return an environment with one thread, whose memory can be counted, and no network."""
    settings = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **settings, "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
