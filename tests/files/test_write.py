"""What is written is whole or is not there: full disks, interruptions, torn rows, kills."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.data.edit.convert import convert
from alignkit.data.records import KINDS, json_schema
from alignkit.errors import DataError, DiskFull
from alignkit.files.write import whole_file, write_rows
from alignkit.store.resources import shipped

ROW = {"prompt": "P?", "chosen": "a", "rejected": "b"}


def write(path: Path, count: int, tail: str = "") -> Path:
    path.write_text((json.dumps(ROW) + "\n") * count + tail)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_row_cut_in_half_leaves_no_output(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", 5000, json.dumps(ROW)[:20] + "\n" + json.dumps(ROW))
    with pytest.raises(DataError, match=r"d\.jsonl:5001"):
        convert([path], tmp_path / "out.jsonl")
    assert names(tmp_path) == ["d.jsonl"]


def test_an_interruption_leaves_the_old_output(tmp_path: Path) -> None:
    old = tmp_path / "out.jsonl"
    old.write_text("old\n")

    def rows() -> Iterator[dict[str, Any]]:
        yield from [ROW] * 5000
        raise KeyboardInterrupt

    for name in ("out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.json", "out.csv"):
        with pytest.raises(KeyboardInterrupt):
            write_rows(tmp_path / name, rows())
    assert names(tmp_path) == ["out.jsonl"]
    assert old.read_text() == "old\n"


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", 20000)
    code = (
        "import sys, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from alignkit.cli import main\n"
        f"main(['data', 'convert', {str(path)!r}, '-o', {str(tmp_path / 'out.jsonl')!r}])\n"
    )

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=small_files
    )
    assert ended.returncode in (1, 2), ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(tmp_path / "out.jsonl") in ended.stderr
    assert names(tmp_path) == ["d.jsonl"]


def test_no_space_left_is_a_full_disk(tmp_path: Path) -> None:
    def fill() -> None:
        with whole_file(tmp_path / "out") as stream, open("/dev/full", "wb", buffering=0) as full:
            stream.write(b"x")
            full.write(b"x")

    with pytest.raises(DiskFull, match="disk full; nothing was written"):
        fill()
    assert names(tmp_path) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_conversion_is_not_there(stop: signal.Signals, tmp_path: Path) -> None:
    path, out = write(tmp_path / "d.jsonl", 300_000), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "alignkit", "data", "convert", str(path), "-o", str(out)]

    def heeding() -> None:
        """A shell's background job ignores SIGINT, and so would what it starts."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    ) as running:
        partial: list[Path] = []
        until = time.monotonic() + 60
        while not partial and time.monotonic() < until:
            partial = [p for p in tmp_path.glob(".*.partial") if p.stat().st_size > 0]
            time.sleep(0.01)
        assert partial, "the conversion did not begin"
        running.send_signal(stop)
        _, said = running.communicate()
    assert not out.exists()
    if stop == signal.SIGINT:
        assert (running.returncode, said.strip()) == (130, "interrupted")
        assert names(tmp_path) == ["d.jsonl"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder does not exist"):
        write_rows(tmp_path / "no" / "out.jsonl", [ROW])


def test_a_table_needs_the_same_columns_in_every_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2 has 'x', which the first row lacks"):
        write_rows(tmp_path / "out.csv", [ROW, ROW | {"x": "1"}])


@pytest.mark.parametrize("name", ["o.jsonl", "o.json", "o.csv", "o.tsv", "o.parquet",
                                  "o.jsonl.gz", "o.json.zst", "o.csv.gz"])  # fmt: skip
def test_every_container_is_written_and_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", 3)
    convert([path], tmp_path / name, to="preference")
    convert([tmp_path / name], tmp_path / "back.jsonl", to="preference")
    assert (tmp_path / "back.jsonl").read_text().count('"rejected":"b"') == 3
    assert os.stat(tmp_path / name).st_size > 0


def test_compressed_output_is_the_same_every_time(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", 100)
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        convert([path], tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


# --- schemas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schema_is_that_of_the_code(kind: str) -> None:
    published = json.loads((shipped("data_schemas") / f"{kind}.schema.json").read_text())
    remedy = f"alignkit data schema {kind} > data_schemas/{kind}.schema.json"
    assert published == json_schema(kind), f"the record type has changed; run: {remedy}"


@pytest.mark.parametrize("kind", KINDS)
def test_data_schema_prints_it(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "schema", kind])
    assert json.loads(capsys.readouterr().out) == json_schema(kind)


MINIMAL: dict[str, dict[str, Any]] = {
    "demonstration": {"messages": [{"role": "user", "content": "x"}]},
    "prompt": {"prompt": [{"role": "user", "content": "x"}]},
    "candidates": {"prompt": [], "candidates": [{"cid": "a", "messages": []}]},
    "ranking": {"prompt": [], "ranks": {"a": 1},
                "candidates": [{"cid": "a", "messages": []}, {"cid": "b", "messages": []}]},
    "preference": {"prompt": [], "chosen": [], "rejected": []},
    "label": {"prompt": [], "completion": [], "label": True},
    "event": {"ts": "t", "annotator": "a", "item": "i", "action": "rank"},
    "judgement": {"prompt_id": "p", "a": "x", "b": "y", "verdict": "tie"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_code_agree_on_rows(kind: str) -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json_schema(kind))
    row = {"kind": kind, **MINIMAL[kind]}
    assert validator.is_valid(row)
    record = KINDS[kind].model_validate(row)
    assert validator.is_valid(json.loads(record.model_dump_json()))
    assert not validator.is_valid(row | {"chosn": 1})
    assert not validator.is_valid({k: v for k, v in row.items() if k != "kind"})
    for name in MINIMAL[kind].keys() - {"verdict"}:
        assert not validator.is_valid({k: v for k, v in row.items() if k != name})


def test_an_unknown_kind_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "schema", "preferense"])
    assert stopped.value.code == 2
    assert "did you mean 'preference'?" in capsys.readouterr().err
