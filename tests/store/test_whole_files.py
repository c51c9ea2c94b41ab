"""One writer for every file that is replaced: whole or not at all, with the right permissions."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.store.artifacts import publishing, write_manifest
from alignkit.store.whole_files import remove_partial_files, replacing, write_whole
from tests.store.test_artifacts import FIELDS

PACKAGE = Path(__file__).parent.parent.parent / "alignkit"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_target_is_old_until_the_block_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "t"
    target.write_text("old")
    with replacing(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert target.read_text() == "old"
        assert Path(stream.name).read_bytes() == b"new"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["t"]


def write_half(target: Path, stop: type[BaseException]) -> None:
    with replacing(target) as stream:
        stream.write(b"half")
        raise stop


@pytest.mark.parametrize("stop", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_after_any_exception_nothing_has_happened(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    (tmp_path / "t").write_text("old")
    for name in ("t", "absent"):
        with pytest.raises(stop):
            write_half(tmp_path / name, stop)
    assert names(tmp_path) == ["t"]
    assert (tmp_path / "t").read_text() == "old"


def test_permissions_are_those_before_or_the_umask_or_the_ones_asked_for(
    tmp_path: Path, umask: None
) -> None:
    write_whole(tmp_path / "new", b"x")
    (tmp_path / "group").touch(0o640)
    write_whole(tmp_path / "group", b"x")
    write_whole(tmp_path / "own", b"x", mode=0o600)
    (tmp_path / "open").touch(0o644)
    write_whole(tmp_path / "open", b"x", mode=0o600)
    assert {path.name: oct(mode(path)) for path in tmp_path.iterdir()} == {
        "new": "0o644", "group": "0o640", "own": "0o600", "open": "0o600",
    }  # fmt: skip


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path, umask: None) -> None:
    with replacing(tmp_path / "secret", mode=0o600) as stream:
        assert mode(Path(stream.name)) == 0o600


def test_the_first_of_two_keeps_the_name_where_nothing_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "t"
    first = replacing(target, overwrite=False)
    with pytest.raises(FileExistsError), first:
        write_whole(target, b"first")
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == ["t"]


def test_two_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "t") as one, replacing(tmp_path / "t") as two:
        one.write(b"one")
        two.write(b"two")
    assert (tmp_path / "t").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["n" * 255, "ä" * 127])
def test_a_name_as_long_as_names_may_be(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_what_a_killed_writer_left_goes_into_no_result(tmp_path: Path) -> None:
    """The name it is left under is the one that a writer uses, and no other file's."""
    (tmp_path / "out.partial" / "sub").mkdir(parents=True)
    if not (child := os.fork()):
        with replacing(tmp_path / "out.partial" / "sub" / "rows.jsonl"):
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = (tmp_path / "out.partial" / "sub").iterdir()
    assert re.fullmatch(r"\.rows\.jsonl\.[0-9a-f]{8}\.partial", left.name)
    mine = tmp_path / "out.partial" / "sub" / "notes.partial"
    mine.write_text("mine")
    with publishing(tmp_path / "out") as partial:
        write_manifest(partial, FIELDS)
    assert names(tmp_path / "out" / "sub") == ["notes.partial"]


def test_removing_what_was_left_touches_nothing_else(tmp_path: Path) -> None:
    kept = [".a.partial", "a.0123abcd.partial", ".a.0123ABCD.partial", ".0123abcd.partial"]
    for name in (*kept, ".a.0123abcd.partial"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert names(tmp_path) == sorted(kept)


# Files that grow (votes), and directories that get their name as a whole.
OTHERS = {
    "store/whole_files.py", "collect/log.py", "store/artifacts.py", "training/checkpoints.py",
    "model/quantized_cache.py", "run/execute.py", "cli/doctor.py",
}  # fmt: skip


def test_no_other_module_replaces_a_file_by_hand() -> None:
    by_hand = re.compile(
        r"os\.(replace|rename|fsync)\(|\.rename\(|(partial|scratch|part)\.replace\("
    )
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    }
    assert found - OTHERS == set()
