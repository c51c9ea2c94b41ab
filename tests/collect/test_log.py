"""The event file keeps what it acknowledged: torn lines, full disks, kills, two writers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkit.collect.items import pool_of
from alignkit.collect.log import Conflict, EventLog, iter_events, new_id, now, read_events
from alignkit.data.read import load_rankings
from alignkit.data.records import Event
from alignkit.errors import AlignkitError, DataError, DiskFull
from tests.collect_data import item, items, lines, write
from tests.disks import small_disk

WRITERS = 8
LONG = "ALIGNKIT_LONG_TESTS"


def event(**fields: object) -> Event:
    base = {"id": new_id(), "ts": now(), "annotator": "ann", "item": "i", "action": "skip"}
    return Event.model_validate(base | fields)


def test_ids_are_version_7_and_sort_by_time() -> None:
    first = new_id()
    time.sleep(0.002)
    second = new_id()
    assert UUID(first).version == 7 and UUID(first).variant == "specified in RFC 4122"
    assert first < second and re.fullmatch(r"[0-9a-f-]{36}", first)


def test_an_event_is_one_line_chained_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with EventLog(path) as log:
        for comment in ("one", "two\u2028still two\x85\x0c", "three"):
            assert log.append(event(comment=comment)) == "saved"
    raw = path.read_bytes().split(b"\n")
    assert len(raw) == 4 and raw[3] == b""
    assert [e.comment for e in read_events(path)] == ["one", "two\u2028still two\x85\x0c", "three"]
    assert lines(path)[0]["prev"] is None
    assert lines(path)[2]["prev"] == hashlib.sha256(raw[1]).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600
    with EventLog(path) as log:  # the chain goes on after a restart
        log.append(event())
    assert lines(path)[3]["prev"] == hashlib.sha256(raw[2]).hexdigest()


def test_the_same_event_is_stored_once_and_another_under_its_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    one = event(comment="x")
    with EventLog(path) as log:
        assert [log.append(one), log.append(one)] == ["saved", "duplicate"]
    with EventLog(path) as log:
        assert log.append(one.model_copy(update={"ts": now(), "wall_ms": 3})) == "duplicate"
        with pytest.raises(Conflict):
            log.append(one.model_copy(update={"comment": "y"}))
    assert len(lines(path)) == 1


@given(cut=st.integers(1, 400))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_torn_line_is_moved_aside_and_reported(tmp_path: Path, cut: int) -> None:
    path = tmp_path / f"{new_id()}.jsonl"
    with EventLog(path) as log:
        log.append(event(comment="whole"))
        log.append(event(comment="torn"))
    whole, torn = path.read_bytes().split(b"\n")[:2]
    kept = torn[: min(cut, len(torn) - 1)]
    path.write_bytes(whole + b"\n" + kept)
    told: list[str] = []
    assert [e.comment for e in read_events(path, on_problem=told.append)] == ["whole"]
    assert "cut short" in told[0]
    with EventLog(path) as log:
        assert f"({len(kept)} bytes, never acknowledged)" in log.reports[0]
        log.append(event(comment="next"))
    assert [e.comment for e in read_events(path)] == ["whole", "next"]
    assert Path(f"{path}.partial").read_bytes() == kept + b"\n"


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    one = event()
    with EventLog(path) as log:
        log.append(one)
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read_events(path)) == 1
    with EventLog(path) as log:
        assert "missing newline" in log.reports[0]
        assert log.append(one) == "duplicate"
        log.append(event())
    assert len(read_events(path)) == 2 and not Path(f"{path}.partial").exists()


def test_a_bad_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with EventLog(path) as log:
        log.append(event())
        log.append(event())
    good = path.read_bytes().split(b"\n")
    for bad, reason in [
        (b'{"kind":"event"', "ends in the middle of a value"),
        (b'{"kind":"event","id":1}', 'not an event: "id" is 1: should be a valid string'),
        (b"NaN", "NaN is not JSON"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"v":%s}' % (b"9" * 5000), "a number of 5,000 digits"),
    ]:
        path.write_bytes(good[0] + b"\n" + bad + b"\n" + good[1] + b"\n")
        with pytest.raises(DataError, match=reason) as caught:
            read_events(path)
        assert str(caught.value).startswith(f"{path}:2:")
        with pytest.raises(DataError), EventLog(path):
            pass  # and collecting into it does not start


def test_a_second_collector_is_refused_with_the_process_that_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with EventLog(path):
        code = (
            "import sys; from pathlib import Path; from alignkit.collect.log import EventLog\n"
            "try:\n    EventLog(Path(sys.argv[1])).__enter__()\n"
            "except Exception as error: print(error); sys.exit(error.exit_code)"
        )
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert other.returncode == 2
        assert f"process {os.getpid()} is collecting into this file" in other.stdout
    with EventLog(path) as log:
        assert log.append(event()) == "saved"


def test_a_file_that_was_replaced_or_edited_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with EventLog(path) as log:
        log.append(event())
        path.rename(tmp_path / "moved.jsonl")
        with pytest.raises(AlignkitError, match="moved or replaced"):
            log.append(event())
        (tmp_path / "moved.jsonl").rename(path)
        log.append(event())
        with path.open("ab") as editor:
            editor.write(b"\n")
        with pytest.raises(AlignkitError, match="another program changed the file"):
            log.append(event())
    assert len(read_events(path)) == 2


def test_an_output_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "r.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot"), EventLog(bad):
            pass


@pytest.mark.parametrize("stage", ["write", "short write", "fsync"])
def test_without_room_the_event_is_refused_and_the_file_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "r.jsonl"
    real_write, real_fsync = os.write, os.fsync
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_(fd: int, data: bytes) -> int:
        if stage == "short write":
            return real_write(fd, data[: len(data) // 2])
        if stage == "write":
            raise full
        return real_write(fd, data)

    syncs = iter([full])

    def fsync(fd: int) -> None:
        if stage == "fsync" and (error := next(syncs, None)):
            raise error
        real_fsync(fd)

    with EventLog(path) as log:
        log.append(event(comment="before"))
        size = path.stat().st_size
        refused = event(comment="refused")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_)
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(DiskFull, match="not saved"):
                log.append(refused)
        assert path.stat().st_size == size
        assert log.append(refused) == "saved"  # the same answer again, once there is room
    assert [e.comment for e in read_events(path)] == ["before", "refused"]


def test_after_a_failing_disk_nothing_more_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with EventLog(tmp_path / "r.jsonl") as log:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(AlignkitError, match="the disk failed"):
            log.append(event())
        monkeypatch.undo()
        with pytest.raises(AlignkitError, match="the disk failed"):
            log.append(event())


def test_on_a_full_disk_what_was_acknowledged_is_readable(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64) as disk:
        path = disk / "r.jsonl"
        acknowledged = []
        with EventLog(path) as log:
            for number in range(200):
                one = event(comment=f"{number} " + "x" * 700)
                try:
                    log.append(one)
                except DiskFull:
                    break
                acknowledged.append(one.id)
            with pytest.raises(DiskFull):
                log.append(event(comment="x" * 4000))
        assert 20 < len(acknowledged) < 100
        assert path.read_bytes().endswith(b"\n")
        assert [e.id for e in read_events(path)] == acknowledged
        with EventLog(path) as log:
            assert log.reports == []


def test_a_file_of_events_is_a_file_of_rankings(tmp_path: Path) -> None:
    from tests.collect.test_session import vote
    from tests.collect_data import collecting

    path = tmp_path / "r.jsonl"
    with collecting(path, [item(1, ["a", "b", "c"]), item(2)]) as collection:
        session = collection.session("ann")
        vote(session, "3>1=2")
        vote(session, "1")
        session.undo(new_id())
        vote(session, "", action="skip")
    rankings = load_rankings(path).records
    assert [ranking.item for ranking in rankings] == ["item-1"]
    assert sorted(rankings[0].ranks.values()) == [1, 2, 2]
    assert rankings[0].prompt[0].content == "question 1?"
    assert {c.messages[0].content for c in rankings[0].candidates} == {"a", "b", "c"}


# ---------------------------------------------------------------- eight writers and many kills

SERVER = """
import sys
from alignkit.cli import main
main(["rank", sys.argv[1], "--output", sys.argv[2], "--port", sys.argv[3], *sys.argv[4:]])
"""


class Server:
    """`alignkit rank --web` in a process of its own, killed and started again at will."""

    def __init__(self, candidates: Path, output: Path, annotators: list[str]) -> None:
        self.arguments = [str(candidates), str(output)]
        self.names = [part for name in annotators for part in ("--annotator", name)]
        self.annotators = annotators
        self.port = 0
        self.links: dict[str, str] = {}
        self.stderr = ""

    def start(self) -> None:
        command = [sys.executable, "-c", SERVER, *self.arguments, str(self.port), *self.names]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        links = {}
        for _ in self.annotators:
            name, _, link = self.process.stdout.readline().strip().partition("  ")
            links[name] = link
        self.port = httpx.URL(links[self.annotators[0]]).port or 0
        self.links = links  # set last: writers wait for it

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        _, self.stderr = self.process.communicate()


class Writer(threading.Thread):
    """One annotator who never gives up: sends each vote until it is acknowledged."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__()
        self.server, self.annotator = server, name
        self.acknowledged: dict[str, str] = {}
        self.retries = 0
        self.failure: BaseException | None = None
        self.client = httpx.Client(timeout=120)
        self.link = ""

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001  told to the main thread
            self.failure = error

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        while True:
            link = self.server.links.get(self.annotator, "")
            origin = link.partition("/?")[0]
            try:
                if link != self.link and self.client.get(link).status_code == 303:
                    self.link = link  # an older link is refused and read again
                headers = {"origin": origin}
                response = self.client.request(method, origin + path, json=body, headers=headers)
                if response.status_code != 403:
                    return response
            except httpx.TransportError:
                self.client.close()
                self.client = httpx.Client(timeout=120)
                self.link = ""
            self.retries += 1
            time.sleep(0.02)

    def work(self) -> None:
        shown = self.call("GET", "/api/next").json()
        while (found := shown["item"]) is not None:
            key = new_id()
            order = "1" if len(self.acknowledged) % 3 else "1=2"
            vote = {"key": key, "ticket": found["ticket"], "order": order}
            response = self.call("POST", "/api/vote", vote)
            assert response.status_code == 200, response.text
            shown = response.json()
            assert shown["saved"]["id"] == key
            self.acknowledged[key] = order
        self.client.close()


@pytest.mark.parametrize(
    ("events_each", "kills_due"),
    [
        pytest.param(40, 3, id="short"),
        pytest.param(
            500,
            20,
            id="long",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not os.environ.get(LONG), reason=f"takes minutes; {LONG}=1"),
            ],
        ),
    ],
)
def test_eight_writers_and_kills_lose_and_double_nothing(
    tmp_path: Path, events_each: int, kills_due: int
) -> None:
    """Every acknowledged vote is in the file once, however often the server is killed.

    The short form, 8 x 40 votes and 3 kills, is always run. The long one, 8 x 500 votes and 20
    kills, takes minutes: ALIGNKIT_LONG_TESTS=1 python -m pytest -k "kills and long".
    """
    candidates = write(tmp_path / "c.jsonl", items(events_each))
    output = tmp_path / "r.jsonl"
    names = [f"ann{n}" for n in range(WRITERS)]
    server = Server(candidates, output, names)
    server.start()
    writers = [Writer(server, name) for name in names]
    for writer in writers:
        writer.start()
    kills = 0
    wanted = WRITERS * events_each
    while any(writer.is_alive() for writer in writers):
        done = sum(len(writer.acknowledged) for writer in writers)
        if kills < kills_due and done >= (kills + 1) * wanted / (kills_due + 2):
            server.kill()
            kills += 1
            server.start()
        time.sleep(0.005)
    server.kill()
    assert [writer.failure for writer in writers] == [None] * WRITERS
    assert kills == kills_due
    stored = Counter(row["id"] for row in lines(output))
    acknowledged = {key for writer in writers for key in writer.acknowledged}
    assert len(acknowledged) == wanted
    assert stored == Counter(acknowledged)
    events = list(iter_events(output))
    assert Counter(e.annotator for e in events) == Counter(dict.fromkeys(names, events_each))
    assert len({(e.annotator, e.item) for e in events}) == wanted
    ties = sum(len(set((e.ranks or {}).values())) == 1 for e in events)
    assert ties == sum(order == "1=2" for w in writers for order in w.acknowledged.values())
    assert sum(writer.retries for writer in writers) > 0  # the kills were felt


def test_a_pool_of_ten_thousand_items_is_ready_in_seconds(tmp_path: Path) -> None:
    from tests.collect_data import collecting

    pool = pool_of(items(10_000, 4))
    started = time.process_time()  # what else runs here does not count
    with collecting(tmp_path / "r.jsonl", pool, repeat=0.05) as collection:
        assert collection.session("ann").next() is not None
    assert time.process_time() - started < 5
    assert json.loads((tmp_path / "r.jsonl").read_text() or "null") is None
