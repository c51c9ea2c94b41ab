"""Tokenizers that grow, search for ever or are broken end in another process; real ones pass."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.data.checks.tokens import TokenInspector
from alignkit.errors import ModelError
from alignkit.model import tokenizer_check
from alignkit.model.backbone import load_tokenizer
from alignkit.model.check import check_model
from alignkit.model.files import find_model
from alignkit.model.tokenizer_check import check_tokenizer
from tests.command import with_peak

Make = Callable[[str], Path]
Rules = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_model: Make, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def with_rules(place: Path, **changes: Any) -> None:
    file = place / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replacing(*pairs: tuple[str, str]) -> Rules:
    rules = [{"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in pairs]
    return {"type": "Sequence", "normalizers": rules}


def pattern(regex: str) -> Rules:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ],
    }  # fmt: skip


def charsmap(piece: str) -> Rules:
    """A table of SentencePiece that finds nothing, and has this text in its pool."""
    blob = struct.pack("<I", 1024) + bytes(1024) + piece.encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


TWICE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 200,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
HOSTILE: dict[str, tuple[Rules, str]] = {
    "doubles and doubles": (
        {"normalizer": replacing(*[("a", "aa")] * 40)},
        r"takes more than|makes .* more than 32 times as long",
    ),
    "grows for a rare letter": (
        {"normalizer": replacing(("ʘ", "x" * 5000))},
        r"makes 'ʘ.*more than 32 times as long",
    ),
    "grows in two steps": (
        {"normalizer": replacing(("ʘ", "ʬ" * 20), ("ʬ", "y" * 20))},
        r"more than 32 times as long",
    ),
    "grows for a word": (
        {"normalizer": replacing(("open sesame", "gold " * 500))},
        r"makes 'open sesame.*more than 32 times as long",
    ),
    "grows between letters": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 500}},
        r"more than 32 times as long|cannot be loaded",
    ),
    "repeats the text": ({"post_processor": TWICE}, r"more than 32 times as long"),
    "a table of giants": ({"normalizer": charsmap("z" * 4000)}, r"more than 32 times as long"),
    "searches for ever": (
        {"pre_tokenizer": pattern(r"(q+q+)+w")},
        r"takes more than 3 seconds|cannot be loaded: .*(retry|limit)",
    ),
    "speaks in giants": (
        {"decoder": {"type": "Replace", "pattern": {"String": "e"}, "content": "x" * 9000}},
        r"more than 32 times as long",
    ),
    "no vocabulary": (
        {"model": {"type": "BPE"}},
        r"tokenizer.json: the tokenizer cannot be loaded",
    ),
    "unknown rules": ({"normalizer": {"type": "Magic"}}, r"the tokenizer cannot be loaded"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_tokenizer_is_refused_wherever_it_is_loaded(
    model: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, says = HOSTILE[what]
    with_rules(model, **changes)
    if what == "searches for ever":
        monkeypatch.setattr(tokenizer_check, "TRIAL", short_trial(model.parent, 3))
        monkeypatch.setattr(tokenizer_check, "OUTCOMES", {-24: "takes more than 3 seconds"})
    for load in (
        lambda: load_tokenizer(find_model(str(model))),
        lambda: check_model(find_model(str(model)), None),
        lambda: TokenInspector.load(str(model), max_length=64),
    ):
        with pytest.raises(ModelError, match=says) as refused:
            load()
        assert "\n" not in str(refused.value)


def short_trial(place: Path, seconds: int) -> str:
    """The same program with less time, for a test that does not wait half a minute."""
    text = Path(tokenizer_check.TRIAL).read_text()
    assert "CPU_SECONDS = 30\n" in text
    file = place / "trial.py"
    file.write_text(text.replace("CPU_SECONDS = 30\n", f"CPU_SECONDS = {seconds}\n"))
    return str(file)


def test_the_process_that_asks_stays_small(model: Path) -> None:
    with_rules(model, normalizer=replacing(*[("a", "aa")] * 40))
    (model.parent / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    said, peak = with_peak("data", "check", model.parent / "rows.jsonl", "--model", model)
    assert said.code == 2, said.err
    assert "tokenizer" in said.err
    assert peak < 1 << 30


def test_a_token_longer_than_a_page_is_refused(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["w" * 20_000] = 310
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="a token has more than 16,384 characters"):
        check_tokenizer(model)


def test_tokens_that_other_files_add_are_tried_as_well(model: Path) -> None:
    file = model / "tokenizer_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"extra_special_tokens": ["x" * 20_000]}))
    with pytest.raises(ModelError, match="a token has more than 16,384 characters"):
        load_tokenizer(find_model(str(model)))


def test_cut_and_filled_up_by_a_file_is_no_choice_of_its_user(model: Path) -> None:
    expected = load_tokenizer(find_model(str(model)))
    with_rules(
        model,
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    )
    tokenizer = load_tokenizer(find_model(str(model)))
    text = "The shop opens at nine."
    assert tokenizer(text).input_ids == expected(text).input_ids
    assert tokenizer.backend_tokenizer.encode(text).ids == expected(text).input_ids


def test_settings_of_a_tokenizer_name_no_files_and_no_code(model: Path, tmp_path: Path) -> None:
    expected = load_tokenizer(find_model(str(model)))
    secret = tmp_path / "secret.json"
    secret.write_text((model / "tokenizer.json").read_text().replace("<|im_end|>", "<|secret|>"))
    file = model / "tokenizer_config.json"
    evil = {
        "auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]},
        "tokenizer_file": str(secret),
        "vocab_file": "../secret.json",
        "fast_tokenizer_files": ["../secret.json", "tokenizer.1.0.json"],
        "init_inputs": [str(secret)],
        "from_slow": True,
        "vocab": {"a": 0},
        "trust_remote_code": True,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | evil))
    tokenizer = load_tokenizer(find_model(str(model)))
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer("Shall we?").input_ids == expected("Shall we?").input_ids
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = (tmp_path / "saved" / "tokenizer_config.json").read_text()
    assert "evil" not in saved
    assert "secret" not in saved
    assert "alignkit-" not in saved


def test_what_passed_is_tried_once_for_each_content(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    monkeypatch.setattr(tokenizer_check, "_try_once", lambda place, key: tried.append(place))
    for _ in range(3):
        check_tokenizer(model)
    assert len(tried) == 1
    with_rules(model, normalizer={"type": "NFC"})
    check_tokenizer(model)
    assert len(tried) == 2


ORDINARY: dict[str, Rules] = {
    "unicode": {"normalizer": {"type": "NFKC"}},
    "words": {"pre_tokenizer": pattern(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )},
    "lists": {"normalizer": replacing(
        ("…", "..."), ("œ", "oe"), ("æ", "ae"), ("№", "No"), ("½", "1/2"), (" ", "▁"),
        ("``", '"'), ("''", '"'), ("ﬃ", "ffi"), ("™", "TM"), ("€", "EUR"), ("ß", "ss"),
    )},
    "prepended": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Strip", "strip_left": True,
                                             "strip_right": True}]}},
    "table": {"normalizer": charsmap("صلى الله عليه وسلم")},
}  # fmt: skip


@pytest.mark.parametrize("what", ORDINARY)
def test_what_real_tokenizers_do_passes(model: Path, what: str) -> None:
    with_rules(model, **ORDINARY[what])
    check_tokenizer(model)
    assert load_tokenizer(find_model(str(model))).eos_token == "<|im_end|>"


def test_a_tokenizer_without_a_tokenizer_json_is_tried_as_well(model: Path) -> None:
    """Vocabulary and merges in files of their own, as older models have them."""
    rules = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(rules["vocab"]))
    (model / "merges.txt").write_text("#version: 0.2\n")
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    file.write_text(json.dumps(settings | {"unk_token": "<pad>", "bos_token": "<pad>"}))
    assert load_tokenizer(find_model(str(model))).eos_token == "<|im_end|>"
    (model / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        check_tokenizer(model)
