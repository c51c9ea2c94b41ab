"""Files as they come and as they are written: what stands in them is what comes out."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.cli import main
from alignkit.data.edit.convert import convert
from alignkit.errors import AlignkitError, DataError
from alignkit.files.problems import Problem
from alignkit.files.rows import read_rows
from alignkit.files.write import _mode_of, whole_file, write_rows

ROW = {"prompt": "P?", "chosen": "a", "rejected": "b"}
TORN = '{"prompt": "P?", "cho'


def lines(path: Path, rows: Sequence[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


def read(path: Path | str) -> tuple[list[dict[str, Any]], list[Problem]]:
    problems: list[Problem] = []
    return [row.value for row in read_rows(path, problems.append)], problems


# --- nothing is lost unsaid ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "data convert {} -o {}/o.jsonl",
        "data clean {} -o {}/o.jsonl",
        "data split {} -o {}/{{}}.jsonl",
        "data mix {} -o {}/o.jsonl",
        "data pairs {} -o {}/o.jsonl",
        "data stats {} --html {}/o.html",
    ],
)
def test_a_torn_last_row_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path / "d.jsonl", [ROW, ROW | {"prompt": "Q?"}], TORN)
    assert run(*command.format(path, tmp_path).split()) == 0
    assert f"{path}:3: last line incomplete" in capsys.readouterr().err
    assert run("data", "check", path) == 0  # a warning there, too


def test_undoing_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [ROW | {"prompt": " e\u0301"}, ROW])
    assert run("data", "clean", path, "-o", tmp_path / "c.jsonl") == 0
    with (tmp_path / "c.jsonl").open("r+") as stream:
        stream.truncate(os.path.getsize(tmp_path / "c.jsonl") - 5)
    log = tmp_path / "c.jsonl.changes.jsonl"
    undo = run("data", "clean", tmp_path / "c.jsonl", "--undo", log, "-o", tmp_path / "u.jsonl")
    assert (undo, (tmp_path / "u.jsonl").exists()) == (2, False)


def test_whoever_reads_without_asking_is_told_of_it_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from alignkit.data.read import read_records

    path = lines(tmp_path / "d.jsonl", [ROW], TORN)
    assert len(list(read_records(path))) == 1
    assert f"{path}:2: last line incomplete" in caplog.text


# --- where output goes --------------------------------------------------------------------------


def through(pipe: Path) -> tuple[threading.Thread, list[bytes]]:
    """What comes out of a pipe, read in a thread."""
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    return reader, got


def test_a_pipe_gets_the_rows_and_stays_a_pipe(tmp_path: Path) -> None:
    path, pipe = lines(tmp_path / "d.jsonl", [ROW] * 3), tmp_path / "pipe"
    os.mkfifo(pipe)
    reader, got = through(pipe)
    assert run("data", "convert", path, "--to", "preference", "-o", pipe) == 0
    reader.join(20)
    assert [json.loads(line) for line in got[0].splitlines()] == [ROW] * 3
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_whoever_waits_at_a_pipe_is_let_go_when_the_input_is_bad(tmp_path: Path) -> None:
    path, pipe = lines(tmp_path / "d.jsonl", [ROW] * 3, "{\n{}\n"), tmp_path / "pipe"
    os.mkfifo(pipe)
    reader, got = through(pipe)
    while run("data", "convert", path, "-o", pipe) == 2 and reader.is_alive():
        reader.join(0.1)  # the reader may not have opened it the first time
    assert (got, stat.S_ISFIFO(pipe.stat().st_mode)) == ([b""], True)


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    path, real = lines(tmp_path / "d.jsonl", [ROW]), tmp_path / "real.jsonl"
    real.touch(mode=0o600)
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    (tmp_path / "to-come.jsonl").symlink_to("not-yet.jsonl")
    for name in ("link.jsonl", "to-come.jsonl"):
        convert([path], tmp_path / name, to="preference")
        assert (tmp_path / name).is_symlink()
    assert json.loads(real.read_text()) == ROW
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert (tmp_path / "not-yet.jsonl").is_file()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="too many links"):
        write_rows(tmp_path / "loop", [ROW])


SHELL = f"""
cd "$1"; ak() {{ {sys.executable} -m alignkit data convert d.jsonl --to preference "$@"; }}
ak -o /dev/stdout > a.jsonl
ak -o /dev/fd/5 5> b.jsonl
ak -o >(cat > c.jsonl); wait $!
ak -o /dev/stdout | cat > d2.jsonl
"""


def test_descriptors_of_the_shell_get_the_rows(tmp_path: Path) -> None:
    lines(tmp_path / "d.jsonl", [ROW] * 2)
    subprocess.run(["bash", "-c", SHELL, "bash", tmp_path], check=True, stderr=subprocess.PIPE)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d2.jsonl"):
        assert (tmp_path / name).read_text().count('"rejected":"b"') == 2, name


def test_what_is_no_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a device, not a file"):
        _mode_of(Path("/dev/zero"))
    with pytest.raises(DataError, match=r"is a directory. Fix: name a file: .*NAME\.jsonl"):
        write_rows(tmp_path, [ROW])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(DataError, match="is a socket, not a file"):
            write_rows(tmp_path / "s", [ROW])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is a file, not a folder"):
        write_rows(tmp_path / "file" / "o.jsonl", [ROW])
    with pytest.raises(DataError, match="/dev/fd/99: is not open for writing"):
        write_rows("/dev/fd/99", [ROW])
    assert sorted(os.listdir(tmp_path)) == ["file", "s"]


def test_a_protected_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(DataError, match=r"is write-protected. Fix: chmod u\+w"):
        write_rows(path, [ROW])
    assert path.read_text() == "old"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "é" * 124 + ".jsonl"  # 254 bytes of the 255 a name may have
    write_rows(tmp_path / name, [ROW])
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["o.xlsx", "o.XLS", "o.arrow", "o.feather", "o.zip", "o.pkl",
                                  "o.jsonl.lz4", "o.sqlite", "o.html"])  # fmt: skip
def test_a_name_that_promises_another_kind_of_file_is_refused(name: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [ROW])
    with pytest.raises(DataError, match=r"files cannot be written. Fix: end the name in \.jsonl"):
        convert([path], tmp_path / name)
    assert os.listdir(tmp_path) == ["d.jsonl"]


def test_every_command_that_writes_a_file_knows_where_it_may(tmp_path: Path) -> None:
    """Reports, exports, pages and logs end in the same writer."""
    path = lines(tmp_path / "d.jsonl", [ROW])
    ranked = {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2], "annotator": "ann"}
    votes = lines(tmp_path / "v.jsonl", [ranked])
    folder = tmp_path / "folder"
    folder.mkdir()
    for words in (
        ["data", "stats", path, "--html", folder],
        ["data", "clean", path, "-o", tmp_path / "o.jsonl", "--log", folder],
        ["data", "split", path, "-o", f"{tmp_path}/{{}}.xlsx"],
        ["agreement", votes, "--output", folder],
        ["agreement", votes, "--html", tmp_path / "o.docx"],
        ["rank", path, "--annotator", "a", "--export-html", folder],
        ["rank", "export", path, "--to", "argilla", "-o", folder],
        ["rank", path, "--annotator", "a", "--terminal", "-o", folder],
    ):
        assert run(*words) == 2, words
    assert sorted(os.listdir(tmp_path)) == ["d.jsonl", "folder", "v.jsonl"]
    assert os.listdir(folder) == []


def test_exports_take_the_container_from_the_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [ROW])
    assert run("rank", "export", path, "--to", "argilla", "-o", tmp_path / "o.jsonl.gz") == 0
    assert read(tmp_path / "o.jsonl.gz")[0][0]["fields"]["prompt"] == "P?"


def test_an_event_log_is_a_plain_file(tmp_path: Path) -> None:
    path, pipe = lines(tmp_path / "d.jsonl", [ROW]), tmp_path / "pipe"
    os.mkfifo(pipe)
    assert run("rank", path, "--annotator", "a", "--terminal", "-o", pipe) == 2
    assert sorted(os.listdir(tmp_path)) == ["d.jsonl", "pipe"]


def test_output_into_the_folder_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines(tmp_path / "in" / "train.jsonl", [ROW])
    assert run("data", "convert", tmp_path / "in", "-o", tmp_path / "in" / "o.jsonl") == 2
    assert run("data", "convert", tmp_path / "in", "-o", tmp_path / "o.jsonl") == 0


def test_a_stream_may_be_opened_by_its_name(tmp_path: Path) -> None:
    with whole_file(tmp_path / "o") as stream:
        Path(stream.name).write_bytes(b"written by a library")
    assert (tmp_path / "o").read_bytes() == b"written by a library"


# --- limits -------------------------------------------------------------------------------------


def meant(times: int, text: str) -> pa.Array:
    """The same text many times, stored once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


def bombs(folder: Path) -> None:
    long = "a" * (8 << 20)
    one, two = pa.array(["x"]), pa.array(["y"])
    turns = pa.StructArray.from_arrays([meant(600, "user"), meant(600, long)], ["role", "content"])
    zeros = pa.nulls(40_000_000, pa.int8())
    tables = {
        "values": {"prompt": meant(300, long)},
        "one-list": {"prompt": one, "chosen": two,
                     "many": pa.ListArray.from_arrays([0, 400], meant(400, long))},
        "messages": {"messages": pa.ListArray.from_arrays(list(range(0, 601, 2)), turns)},
        "nulls": {"prompt": one, "zeros": pa.ListArray.from_arrays([0, len(zeros)], zeros)},
        "one-cell": {"prompt": pa.array(["a" * (70 << 20)])},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd")
    prefixes = pa.table({"prompt": [long + str(i) for i in range(10)]})
    coded = {"column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}, "use_dictionary": False}
    pq.write_table(prefixes, folder / "prefixes.parquet", compression="zstd", **coded)


READ_ALL = """
import os, sys
from alignkit.files.rows import read_rows
from alignkit.errors import DataError
for name in sorted(os.listdir(sys.argv[1])):
    try:
        rows = sum(1 for _ in read_rows(f"{sys.argv[1]}/{name}", lambda problem: None))
    except DataError as error:
        rows = str(error).partition(": ")[2]
    status = open("/proc/self/status").read()
    print(name, "|", rows, "|", int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""


def test_parquet_bombs_of_kilobytes_stop_within_half_a_gigabyte(tmp_path: Path) -> None:
    bombs(tmp_path)
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True, check=True
    )
    told = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(told) == 6
    for name, said, mebibytes in told:
        assert said.startswith("decompresses to more than 200 times its size"), name
        assert int(mebibytes) < 500, name


def test_ordinary_parquet_is_read_whole(tmp_path: Path) -> None:
    """Long and short texts, repeated and not, nested and not, in groups of several sizes."""
    words = [f"word {n % 7} " * (n % 50) for n in range(3000)]
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{n}"}],
         "text": text, "n": n, "tags": ["a", text[:9]] * (n % 3)}
        for n, text in enumerate(words)
    ]  # fmt: skip
    for size in (7, 1000, 10_000):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=size)
        assert read(tmp_path / "p.parquet") == (rows, [])


def test_nested_texts_that_may_be_too_much_are_read_all_the_same(tmp_path: Path) -> None:
    """80,000 values of up to 4 kB might be 320 MB: they are a few, and all come out."""
    texts = ["x" * 4000, *(str(n % 10) for n in range(3))]
    turns = [[{"role": "user", "content": texts[n % 4 if n < 40 else 1]}] * 40 for n in range(2000)]
    pq.write_table(pa.table({"messages": turns}), tmp_path / "p.parquet")
    rows, problems = read(tmp_path / "p.parquet")
    assert (len(rows), problems) == (2000, [])
    assert [row["messages"] for row in rows] == turns


def test_a_parquet_column_that_calls_itself_json_and_is_not_is_told(tmp_path: Path) -> None:
    mark = {"alignkit": "json"}
    schema = pa.schema([pa.field("meta", pa.string(), metadata=mark)])
    pq.write_table(pa.table({"meta": ['{"a": 1}', "{no"]}, schema=schema), tmp_path / "d.parquet")
    told: list[Any] = []
    rows = [row.value for row in read_rows(tmp_path / "d.parquet", told.append)]
    assert rows == [{"meta": {"a": 1}}, {"meta": "{no"}]
    assert [(problem.kind, problem.line, problem.level) for problem in told] == [
        ("json", 2, "warning")
    ]


def test_a_parquet_row_over_the_limit_is_told_and_the_others_read(tmp_path: Path) -> None:
    noise = os.urandom(9 << 20).hex()
    pq.write_table(pa.table({"text": ["a", noise, "b"]}), tmp_path / "p.parquet")
    rows, (problem,) = read(tmp_path / "p.parquet")
    assert [row["text"] for row in rows] == ["a", "b"]
    assert str(problem).startswith(f"{tmp_path}/p.parquet:2: row is 18.0 MiB, the limit is 16 MiB")


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    from datetime import date, datetime
    from decimal import Decimal

    table = pa.table({
        "when": [datetime(2026, 1, 2, 3, 4, 5)], "day": [date(2026, 1, 2)],
        "price": [Decimal("12.50")], "big": [Decimal("12345678901234567890.5")],
        "raw": [b"bytes"], "score": [float("nan")],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet")
    rows, (problem,) = read(tmp_path / "p.parquet")
    assert rows == [{"when": "2026-01-02T03:04:05", "day": "2026-01-02", "price": 12.5,
                     "big": "12345678901234567890.5", "raw": "bytes", "score": None}]  # fmt: skip
    assert (problem.level, problem.message) == (
        "warning", '"score" holds NaN or infinity; read as null'
    )  # fmt: skip


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_bombs_stop(ending: str, tmp_path: Path) -> None:
    import bz2
    import gzip
    import lzma

    content = (b" " * (1 << 20) + b"\n") * 66
    packed = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lambda data: lzma.compress(data, preset=0),
        "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[ending](content)  # fmt: skip
    (tmp_path / f"b.jsonl.{ending}").write_bytes(packed)
    with pytest.raises(DataError, match="decompresses to more than 200 times"):
        read(tmp_path / f"b.jsonl.{ending}")


def test_a_table_row_without_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n" + b"x," * (9 << 20))
    rows, (problem,) = read(tmp_path / "t.csv")
    assert len(rows) == 1
    assert str(problem).startswith(f"{tmp_path}/t.csv:3: row is 16.0 MiB, the limit is 16 MiB")


def test_an_xz_header_may_not_ask_for_gigabytes(tmp_path: Path) -> None:
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    path = tmp_path / "d.jsonl.xz"
    path.write_bytes(lzma.compress(json.dumps(ROW).encode() + b"\n", filters=filters))
    rows, (problem,) = read(path)
    assert (rows, problem.kind) == ([], "compression")


# --- tables and JSON as they come ---------------------------------------------------------------

AB = [{"instruction": "a", "output": "c"}, {"instruction": "b", "output": "d"}]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("semi.csv", '\ufeffprompt;chosen\n"a; b";"c\r\nd"\n',
         [{"prompt": "a; b", "chosen": "c\r\nd"}]),
        ("comma-in-cell.csv", "prompt;chosen\na,b;c\n", [{"prompt": "a,b", "chosen": "c"}]),
        ("tabs.csv", "prompt\tchosen\na,b\tc\n", [{"prompt": "a,b", "chosen": "c"}]),
        ("bars.tsv", "prompt|chosen\na|c\n", [{"prompt": "a", "chosen": "c"}]),
        ("excel.csv", "sep=;\nprompt;chosen\na;c\n", [{"prompt": "a", "chosen": "c"}]),
        ("quoted.csv", '"a;b",c\n1,2\n', [{"a;b": "1", "c": "2"}]),
        ("one.csv", "text\nhello\n", [{"text": "hello"}]),
        ("old-mac.csv", "a,b\r1,2\r", [{"a": "1", "b": "2"}]),
        ("bom.txt", "\ufeffgood\t1\n", [{"text": "good", "label": "1"}]),
        ("wrapped.json", json.dumps({"version": "0.1.0", "data": AB}), AB),
        ("wrapped-wide.json", json.dumps({"rows": AB, "n": {"x": [1]}}, indent=2), AB),
        ("columns.json", json.dumps({"instruction": {"0": "a", "1": "b"},
                                     "output": {"0": "c", "1": "d"}}), AB),
        ("lists.json", json.dumps({"instruction": ["a", "b"], "output": ["c", "d"]}), AB),
        ("index.json", json.dumps({"0": AB[0], "1": AB[1]}), AB),
        ("split.json", json.dumps({"columns": ["instruction", "output"], "index": [0, 1],
                                   "data": [["a", "c"], ["b", "d"]]}), AB),
        ("table.json", json.dumps({"schema": {"fields": []}, "data": AB}), AB),
        ("one-row.json", json.dumps(ROW, indent=2), [ROW]),
        ("one-chat.json", json.dumps({"messages": [{"role": "user", "content": "x"}]}),
         [{"messages": [{"role": "user", "content": "x"}]}]),
        ("task.json", json.dumps({"data": {"prompt": "x"}, "annotations": []}),
         [{"data": {"prompt": "x"}, "annotations": []}]),
        ("lines.json", '{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("column-gap.json", json.dumps({"a": {"0": "x", "2": "z"}, "b": {"0": "y"}}),
         [{"a": "x", "b": "y"}, {"a": "z", "b": None}]),
    ],
)  # fmt: skip
def test_what_a_file_holds_is_read(
    name: str, content: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, newline="")
    found, problems = read(tmp_path / name)
    assert found == rows
    assert [problem for problem in problems if problem.level != "note"] == []


def in_code(code: str) -> bytes:
    return "prompt,chosen\ncafé,très\n".encode(code)


@pytest.mark.parametrize(
    ("name", "content", "where", "said"),
    [
        ("l.csv", in_code("latin-1"), ":2:4", "byte 0xe9 at column 4 is not UTF-8. "
         "Fix: iconv -f WINDOWS-1252 -t UTF-8 {} > l.utf8.csv"),
        ("u.csv", in_code("utf-16"), ":1", "looks like UTF-16. Fix: iconv -f UTF-16 -t UTF-8"),
        ("v.csv", in_code("utf-16-le"), ":1", "looks like UTF-16"),
        ("w.jsonl", '{"a": "é"}\n'.encode("latin-1"), ":1:8", "byte 0xe9 at column 8 is not UTF-8. "
         "Fix: iconv -f WINDOWS-1252 -t UTF-8 {} > w.utf8.jsonl"),
        ("x.json", '[{"a": "é"}]'.encode("utf-16"), ":1", "looks like UTF-16. Fix: iconv"),
        ("y.json", '[{"a": "é"}]'.encode("utf-32"), ":1", "looks like UTF-32. Fix: iconv"),
        ("z.txt", "é\t1\n".encode("latin-1"), ":1:1", "byte 0xe9 at column 1 is not UTF-8"),
        ("two.csv", b"prompt,chosen,chosen\na,b,c\n", ":1", '2 columns are called "chosen"'),
        ("no.csv", b"prompt,,chosen,\na,b,c,d\n", ":1", "2 columns have no name"),
        ("book.csv", b"PK\x03\x04rest", ":1", "a zip archive or a workbook"),
        ("a.jsonl", b"ARROW1\x00\x00", ":1", "an Arrow file. Fix: write it as Parquet"),
        ("p.parquet", b"version https://git-lfs.github.com/spec/v1\n", ":1",
         "a Git LFS pointer, not the data. Fix: git lfs pull"),
        ("torn.csv", b'a,b\n1,"2', ":2", "not a table: unexpected end of data"),
        ("s.json", json.dumps({"train": AB, "test": AB}).encode(), ":1",
         'rows under "train" and under "test". Fix: choose one of them: jq -c'),
        ("n.json", b'{"a": ["x"], "b": ["y", "z"]}', ":1", 'columns of different lengths: "a" 1'),
        ("w.json", b'{"data": [{"a": 1},\n{"a":', ":2", "the array ends in the middle of an item"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_the_command(
    name: str, content: bytes, where: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    _, problems = read(path)
    told = [str(problem) for problem in problems if problem.level == "error"]
    assert len(told) == 1
    assert told[0].startswith(f"{path}{where}: {said.format(path)}")


def test_a_parquet_column_that_stands_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["chosen", "chosen"])
    pq.write_table(table, tmp_path / "p.parquet")
    rows, (problem,) = read(tmp_path / "p.parquet")
    assert (rows, problem.message) == ([], '2 columns are called "chosen"')


# --- folders ------------------------------------------------------------------------------------


def part(path: Path, *prompts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": prompts, "chosen": ["a"] * len(prompts),
                             "rejected": ["b"] * len(prompts)}), path)  # fmt: skip


def test_a_folder_of_parts_is_one_set(tmp_path: Path) -> None:
    for number in (10, 2, 0, 1, *range(3, 10)):
        part(tmp_path / "data" / f"train-{number:05}-of-00011.parquet", f"p{number}")
    (tmp_path / "README.md").write_text("about it")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jsonl").write_text("no data")
    rows, problems = read(tmp_path)
    assert ([row["prompt"] for row in rows], problems) == ([f"p{n}" for n in range(11)], [])
    convert([tmp_path], tmp_path.with_suffix(".jsonl"), to="preference")
    assert len(tmp_path.with_suffix(".jsonl").read_text().splitlines()) == 11
    (tmp_path / "data" / "train-00004-of-00011.parquet").unlink()
    with pytest.raises(DataError, match="part 4 of 11 of train is missing"):
        read(tmp_path)


def test_a_folder_of_several_splits_names_them(tmp_path: Path) -> None:
    part(tmp_path / "train" / "0000.parquet", "a")
    part(tmp_path / "train" / "0001.parquet", "b")
    part(tmp_path / "test" / "0000.parquet", "c")
    said = (
        r"a folder of several splits: test \(1 file\), train \(2 files\)\. "
        "Fix: name one of them: .*#train"
    )
    with pytest.raises(DataError, match=said):
        read(tmp_path)
    assert [row["prompt"] for row in read(f"{tmp_path}#train")[0]] == ["a", "b"]
    assert [row["prompt"] for row in read(f"{tmp_path}#test")[0]] == ["c"]
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        read(f"{tmp_path}#trian")


def test_a_bad_row_of_a_folder_is_named_by_its_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(tmp_path / "train-00000-of-00002.jsonl", [ROW])
    lines(tmp_path / "train-00001-of-00002.jsonl", [ROW, {"prompt": "P?", "chosen": 1}])
    for words in (["check", tmp_path], ["convert", tmp_path, "-o", tmp_path.with_suffix(".jsonl")]):
        assert run("data", *words) == 2
        told = capsys.readouterr()
        assert "train-00001-of-00002.jsonl:2: " in told.out + told.err


def test_folders_without_data_or_in_two_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder without data files"):
        read(tmp_path)
    part(tmp_path / "train.parquet", "a")
    lines(tmp_path / "train.jsonl", [ROW])
    with pytest.raises(DataError, match="train exists in several containers: jsonl, parquet"):
        read(tmp_path)


def test_a_run_takes_a_folder_that_holds_one_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignkit.files.shards import parts_of
    from alignkit.recipe.file import _check_source
    from alignkit.recipe.settings import Reads
    from alignkit.run.plan import _data_hash

    (tmp_path / "in").mkdir()
    one = lines(tmp_path / "in" / "train-00000-of-00001.jsonl", [ROW])
    assert parts_of(str(tmp_path / "in")) == [str(one)]
    assert _check_source("in", Reads(("preference",)), {}, tmp_path) is None
    before = _data_hash(tmp_path / "in")
    lines(one, [ROW, ROW])
    assert _data_hash(tmp_path / "in") != before
    lines(tmp_path / "in" / "test-00000-of-00001.jsonl", [ROW])
    assert run("dpo", "--data", tmp_path / "in", "--output", tmp_path / "run") == 2
    assert "several splits: test (1 file), train (1 file)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["dpo", "--output", "run", "--data"], ["data", "check"]])
def test_the_name_of_a_published_set_gets_the_command_that_fetches_it(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words, "owner/name") == 2
    said = 'load_dataset("owner/name", split="train").to_json("name.jsonl")'
    assert said in capsys.readouterr().err


# --- what stands in a file comes out ------------------------------------------------------------

TEXTS = ["", "a", "ä\u2028\x85", "🎉", 'q"u, o; t\te', "a\nb", "c\r\nd", " e ", "\0", "[1, 2]",
         '{"a": 1}', "{no", "null", "NaN", "1.0", "=1+1", "\ufeff"]  # fmt: skip
WORDS = st.sampled_from(TEXTS)
NUMBERS = st.sampled_from([0, -1, 2**53 + 1, 2**63, 2**64, -(10**30), 0.1, 1e300, -0.0, 5e-324])
VALUES = st.recursive(
    WORDS | NUMBERS | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
    ),
    max_leaves=5,
)
EXTRA = st.fixed_dictionaries({}, optional={"note": VALUES, "n2": VALUES, "meta": VALUES})


@pytest.mark.parametrize("name", ["o.jsonl", "o.json", "o.jsonl.gz", "o.jsonl.bz2", "o.jsonl.xz",
                                  "o.json.zst", "o.parquet"])  # fmt: skip
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(WORDS, EXTRA), min_size=1, max_size=4))
def test_rows_come_out_of_every_container_as_they_went_in(
    name: str, tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, dict[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("p")
    rows = [ROW | {"prompt": f"{text}?"} | extra for text, extra in drawn]
    lines(folder / "s.jsonl", rows)
    convert([folder / "s.jsonl"], folder / name, to="preference")
    convert([folder / name], folder / "b.jsonl", to="preference")
    back = [json.loads(line) for line in (folder / "b.jsonl").read_bytes().splitlines()]
    assert list(map(exactly, back)) == list(map(exactly, rows))
    if "parquet" not in name:  # a table has one order of columns
        assert [list(row) for row in back] == [list(row) for row in rows]


def exactly(value: Any) -> str:
    """Text that tells 1 from 1.0 and from true, and null from nothing."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("name", ["o.csv", "o.tsv", "o.csv.gz"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, VALUES), min_size=1, max_size=4))
def test_a_table_gives_back_what_it_was_given_or_refuses_it(
    name: str, tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("t")
    rows = [ROW | {"prompt": f"{text}?", "note": value} for text, value in drawn]
    lines(folder / "s.jsonl", rows)
    refused = None
    try:
        convert([folder / "s.jsonl"], folder / name, to="preference")
    except AlignkitError as error:
        refused = str(error)
    if refused is not None:
        assert "accept the loss with --lossy" in refused
        assert not (folder / name).exists()
        return
    back, problems = read(folder / name)
    assert problems == []
    assert [list(row) for row in back] == [list(row) for row in rows]
    for row, given_ in zip(back, rows, strict=True):
        note = given_["note"]
        typed = isinstance(note, int | float)  # numbers and booleans are texts in a table
        assert row["prompt"] == given_["prompt"]
        assert exactly(row["note"]) == exactly(json.dumps(note) if typed else note)


def test_the_header_keeps_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [ROW, {"prompt": "Q?", "system": "s", "chosen": "a", "rejected": "b", "z": None}]
    write_rows(tmp_path / "o.parquet", rows)
    names = pq.read_schema(tmp_path / "o.parquet").names
    assert names == ["prompt", "system", "chosen", "rejected", "z"]
    assert read(tmp_path / "o.parquet")[0] == rows
