"""What fuzzing found, for good, and a little more of it each time: no reader breaks."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alignkit.training.checkpoints  # noqa: F401  imported here, so that no input pays for torch
from tests.fuzz.mutate import changed
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, one_input

LONG = "x" * 300  # longer than the name of any file

# Inputs that once raised something else than an AlignkitError, and what it was.
FOUND: dict[str, tuple[str, bytes]] = {
    "gzip data with a wrong distance: zlib.error": (
        "data",
        bytes.fromhex(
            "061f8b080057fe006b02ffab562a28cacf2d2851b25250f2c8b457d251504a06f273524b"
            "32f3f3c082a939a4a4a439f97a4ab55c0033afad39dc000000"
            ""
        ),
    ),
    "checkpoint without fingerprint: KeyError": ("checkpoint", b'{"step": 4, "files": {}}'),
    "fingerprint that is a number: AttributeError": (
        "checkpoint",
        b'{"step": 4, "files": {}, "fingerprint": 3}',
    ),
    "tree with a list for a key: TypeError": ("checkpoint", b'["dict", [[["list", []], 1]]]'),
    "record whose settings are no mapping: TypeError": ("manifest", b'{"settings": 3}'),
    "tokenizer that is no UTF-8: UnicodeDecodeError": ("model", b'\x02{"chat_template": "\xc5"}'),
    "tokenizer that is a list: AttributeError": ("model", b"\x02[]"),
    "header without sizes: KeyError": (
        "model",
        b'\x01\x0b\x00\x00\x00\x00\x00\x00\x00{"a": {} }  ',
    ),
    "header that is a list: AttributeError": ("model", b"\x01\x02\x00\x00\x00\x00\x00\x00\x00[]"),
    "sizes in words: ValueError": ("model", b'\x00{"hidden_size": "a"}'),
    "nested configuration: RecursionError": ("model", b"\x00" + b"[" * 100_000),
    "home of nobody: RuntimeError": (
        "model",
        b'\x03{"base_model_name_or_path": "~nobody-here/x"}',
    ),
    "long name of a base: OSError": (
        "model",
        b'\x03{"base_model_name_or_path": "./%s"}' % LONG.encode(),
    ),
    "adapter that is its own base: RecursionError": (
        "model",
        b'\x03{"base_model_name_or_path": "."}',
    ),
    "long name of a data file: OSError": (
        "recipe",
        f"name: x\nstages:\n  - sft: {{data: {LONG}}}\n".encode(),
    ),
    "long name of a run: OSError": (
        "recipe",
        f"name: x\nstages:\n  - sft: {{data: rows.jsonl, policy: {LONG}}}\n".encode(),
    ),
}


def tried(target: str, content: bytes) -> None:
    """One input to a target: nothing may be raised, and it may not take long."""
    with tempfile.TemporaryDirectory() as place:
        began = time.process_time()
        one_input(target, content, Path(place))
        assert time.process_time() - began < 2


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, content = FOUND[name]
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    tried(target, content)
    one_input(target, content, tmp_path)  # with the model where "." is


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_read_or_refused(target: str) -> None:
    for content in SEEDS[target]:
        tried(target, content)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 2**32), rounds=st.integers(1, 4))
def test_changed_seeds_are_read_or_refused(target: str, number: int, rounds: int) -> None:
    draw = random.Random(number)
    content = draw.choice(SEEDS[target])
    for _ in range(rounds):
        content = changed(content, draw)
    tried(target, content)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=120))
def test_bytes_are_read_or_refused(target: str, content: bytes) -> None:
    tried(target, content)
