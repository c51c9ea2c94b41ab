"""Contents are hashed once for each state of a file, and never taken for another's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from alignkit.store import content_hash as module
from alignkit.store.content_hash import FILE, content_hash, content_hashes, recall, remember

BIG = b"weights" * (module.SMALL // 7 + 1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SETTLED_NANOSECONDS", -1)  # as if the files were old
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a content is hashed."""
    seen: list[int] = []
    own = hashlib.file_digest

    def noting(stream: object, name: str) -> object:
        seen.append(1)
        return own(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(module.hashlib, "file_digest", noting)
    return seen


def test_a_large_file_is_read_once(tmp_path: Path, cache: Path, reads: list[int]) -> None:
    file = tmp_path / "big"
    file.write_bytes(BIG)
    expected = hashlib.sha256(BIG).hexdigest()
    assert [content_hash(file) for _ in range(3)] == [expected] * 3
    assert len(reads) == 1
    link = tmp_path / "link"
    link.symlink_to(file)
    assert content_hash(link) == expected
    assert len(reads) == 1
    assert os.stat(cache / FILE).st_mode & 0o077 == 0
    assert os.stat(cache).st_mode & 0o077 == 0


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, cache: Path) -> None:
    """A program can set the time of the last change of the content, not that of the inode."""
    del cache
    file = tmp_path / "big"
    file.write_bytes(BIG)
    before, times = content_hash(file), os.stat(file)
    with file.open("r+b") as stream:
        stream.write(b"W")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(file).st_mtime_ns == times.st_mtime_ns
    assert content_hash(file) == hashlib.sha256(b"W" + BIG[1:]).hexdigest() != before


def test_another_file_in_its_place_is_seen(tmp_path: Path, cache: Path) -> None:
    del cache
    file, other = tmp_path / "big", tmp_path / "other"
    file.write_bytes(BIG)
    other.write_bytes(BIG[::-1])
    os.utime(other, ns=(os.stat(file).st_atime_ns, os.stat(file).st_mtime_ns))
    content_hash(file)
    other.replace(file)
    assert content_hash(file) == hashlib.sha256(BIG[::-1]).hexdigest()


def test_a_file_that_may_change_within_the_clocks_grain_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "big"
    file.write_bytes(BIG)
    content_hash(file)
    content_hash(file)
    assert len(reads) == 2


def test_a_small_file_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(b"x")
    assert content_hash(file) == hashlib.sha256(b"x").hexdigest()
    assert not cache.exists()


@pytest.mark.parametrize("harm", ["text", "directory", "link", "readonly place"])
def test_a_cache_that_cannot_be_used_only_costs_time(
    tmp_path: Path, cache: Path, harm: str
) -> None:
    file = tmp_path / "big"
    file.write_bytes(BIG)
    if harm == "readonly place":
        cache.write_text("a file where the directory would be")
    else:
        cache.mkdir()
        if harm == "text":
            (cache / FILE).write_text("not a database" * 100)
        elif harm == "directory":
            (cache / FILE).mkdir()
        else:
            (cache / FILE).symlink_to(tmp_path / "victim")
    assert content_hash(file) == hashlib.sha256(BIG).hexdigest()
    assert not (tmp_path / "victim").exists()
    assert recall("anything") is None


def test_several_files_keep_their_order(tmp_path: Path, cache: Path) -> None:
    del cache
    files = [tmp_path / str(n) for n in range(20)]
    for n, file in enumerate(files):
        file.write_text(str(n))
    assert content_hashes(files) == [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20)]
    assert content_hashes([]) == []


def test_what_is_remembered_comes_back(cache: Path) -> None:
    del cache
    assert recall("a") is None
    remember("a", "yes")
    remember("a", "no")
    assert recall("a") == "no"
