"""Artifacts: whole or absent, checked byte by byte, private, and free of secrets."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import AlignkitError, DiskFull, ModelError, RecipeError, TrainingFailed
from alignkit.store.artifacts import (
    FileSeal,
    check_file,
    differences,
    locked,
    make_directory,
    open_sealed_json,
    partial_of,
    private_files,
    publishing,
    read_manifest,
    sealed_json,
    verify,
    write_durably,
    write_manifest,
)
from alignkit.store.secrets import without_secrets
from tests.disks import small_disk

FIELDS: dict[str, Any] = {
    "kind": "sft",
    "name": "sft",
    "key": "0" * 64,
    "config": {"learning_rate": 1e-4},
    "seed": 1,
    "inputs": {},
    "backbone": {"model": "tiny"},
    "metrics": {"loss": 0.5},
    "started": "now",
    "finished": "now",
    "command": "alignkit sft",
}


def finished(place: Path) -> Path:
    """A finished artifact of three files."""
    final = place / "out"
    with private_files(), publishing(final) as partial:
        (partial / "adapter").mkdir()
        (partial / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(500))
        (partial / "adapter" / "adapter_config.json").write_text("{}")
        (partial / "metrics.jsonl").write_text('{"step": 1}\n')
        write_manifest(partial, FIELDS)
    return final


def test_nothing_is_there_until_everything_is(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with publishing(final) as partial:
        assert partial == tmp_path / "out.partial"
        (partial / "a").write_text("a")
        assert not final.exists()
        write_manifest(partial, FIELDS)
    assert sorted(path.name for path in final.iterdir()) == ["a", "manifest.json"]
    assert not partial.exists()


def test_a_failure_leaves_no_artifact_but_the_work(tmp_path: Path) -> None:
    final = tmp_path / "out"
    make_directory(partial_of(final))
    (partial_of(final) / "a").write_text("a")
    with pytest.raises(FileNotFoundError), publishing(final) as partial:
        (partial / "gone").read_text()
    assert not final.exists()
    assert (partial_of(final) / "a").read_text() == "a"


def test_an_artifact_without_a_manifest_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="manifest.json"), publishing(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


def test_a_directory_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with (
        pytest.raises(RecipeError, match="in the way"),
        publishing(tmp_path / "out") as partial,
    ):
        write_manifest(partial, FIELDS)
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_checkpoints_and_lock_do_not_stay(tmp_path: Path) -> None:
    with publishing(tmp_path / "out") as partial:
        (partial / "checkpoints").mkdir()
        (partial / "checkpoints" / "big").write_text("x")
        (partial / ".lock").write_text("1")
        write_manifest(partial, FIELDS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_everything_is_for_its_owner_alone(tmp_path: Path) -> None:
    final = finished(tmp_path / "runs")
    for path in [tmp_path / "runs", final, *final.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_verify_takes_what_was_published(tmp_path: Path) -> None:
    assert set(verify(finished(tmp_path)).files) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "metrics.jsonl",
    }


FILES = [
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "metrics.jsonl",
    "manifest.json",
]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_found_and_named(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path) / name
    content = path.read_bytes()
    chance = random.Random(0)
    for position in chance.sample(range(len(content)), min(len(content), 40)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ModelError, match=Path(name).name):
            verify(tmp_path / "out")
    path.write_bytes(content)
    verify(tmp_path / "out")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_found_and_named(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=Path(name).name):
        verify(tmp_path / "out")
    path.unlink()
    with pytest.raises(ModelError, match=Path(name).name):
        verify(tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "adapter/../../secret", "", "a\0b", ".."]
)
def test_paths_in_a_manifest_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(ModelError, match="leads out of the directory"):
        check_file(tmp_path / "out", name, FileSeal(sha256="0" * 64, size=1))


def test_links_in_an_artifact_are_refused(tmp_path: Path) -> None:
    final = finished(tmp_path)
    shutil.move(final / "metrics.jsonl", tmp_path / "elsewhere")
    (final / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link"):
        verify(final)
    shutil.move(final / "adapter", tmp_path / "adapter")
    (final / "adapter").symlink_to(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is a link"):
        verify(final)


def test_a_stage_cannot_leave_a_link(tmp_path: Path) -> None:
    (tmp_path / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(TrainingFailed, match="is a link"):
        write_manifest(tmp_path, FIELDS)


def test_an_own_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_durably(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "link").is_symlink()


def test_a_newer_manifest_is_refused_by_name(tmp_path: Path) -> None:
    path = finished(tmp_path) / "manifest.json"
    content = open_sealed_json(path)
    path.write_bytes(sealed_json({**content, "schema_version": 9}))
    with pytest.raises(ModelError, match="schema_version is 9, this alignkit reads 1"):
        read_manifest(tmp_path / "out")


@given(st.binary(max_size=200))
def test_any_bytes_are_no_manifest_and_no_crash(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "manifest.json").write_bytes(content)
        with pytest.raises(ModelError):
            read_manifest(Path(place))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e9, 1e9),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_sealed_json_is_no_manifest_and_no_crash(value: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "manifest.json"
        path.write_bytes(sealed_json({"schema_version": 1, "x": value}))
        with pytest.raises(ModelError):
            read_manifest(Path(place))


def test_a_nested_manifest_bomb_is_damaged_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match="damaged"):
        read_manifest(tmp_path)


# --- secrets -----------------------------------------------------------------------------------

HF, OPENAI = "hf_" + "x" * 30, "sk-" + "proj-" + "y" * 30


@pytest.mark.parametrize(
    "text",
    [f"token {HF}", f"--set a={OPENAI}", f"https://ann:{'p' * 12}@host/x", "ghp_" + "a" * 36],
)
def test_secrets_are_blotted_out(text: str) -> None:
    shown = without_secrets({"command": text, "list": [text]})
    assert "[secret]" in shown["command"]
    for secret in (HF, OPENAI, "p" * 12, "a" * 36):
        assert secret not in json.dumps(shown)


def test_values_of_secret_variables_are_blotted_out_wherever_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct horse battery")
    assert without_secrets("key=correct horse battery!") == "key=[secret]!"


def test_a_manifest_holds_no_secret_and_only_listed_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", HF)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with publishing(tmp_path / "out") as partial:
        write_manifest(partial, {**FIELDS, "command": f"alignkit sft --set t={OPENAI}"})
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert HF not in text
    assert OPENAI not in text
    assert "HF_TOKEN" not in text
    assert read_manifest(tmp_path / "out").environment["OMP_NUM_THREADS"] == "1"


# --- two runs in one place ---------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom alignkit.store.artifacts import locked\n"
        f"with locked(Path({str(tmp_path / '.lock')!r}), 'runs/x'):\n"
        "    print('held', flush=True)\n    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RecipeError, match=f"runs/x is in use by process {other.pid}"),
            locked(tmp_path / ".lock", "runs/x"),
        ):
            pass
        other.communicate("\n")
    with locked(tmp_path / ".lock", "runs/x"):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


# --- full and forbidden disks ------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    with small_disk(tmp_path / "small", 300) as place:
        yield place


def test_a_full_disk_is_called_full(small: Path) -> None:
    with pytest.raises(DiskFull, match="disk full at .*small"), publishing(small / "out") as p:
        (p / "big").write_bytes(bytes(500_000))
    assert not (small / "out").exists()


def test_a_full_disk_is_called_full_by_safetensors_too(small: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with pytest.raises(DiskFull, match="disk full"), publishing(small / "out") as partial:
        save_file({"a": torch.zeros(200_000)}, partial / "adapter_model.safetensors")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AlignkitError, match="cannot make .*file"):
        make_directory(tmp_path / "file" / "runs")


def test_differences_name_each_setting_with_both_values() -> None:
    before = {"beta": 0.1, "backbone": {"lora_r": 8, "dtype": "auto"}, "old": 1}
    now = {"beta": 0.2, "backbone": {"lora_r": 16, "dtype": "auto"}}
    assert differences(before, now) == [
        "backbone.lora_r 8 → 16",
        "beta 0.1 → 0.2",
        "old 1 → (not set)",
    ]
