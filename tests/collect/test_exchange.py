"""Into and out of the event file: the command line, mailed pages, other tools, real data."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alignkit.cli import cli
from alignkit.collect.candidates import load_pool, spread
from alignkit.collect.export_html import (
    FORMAT,
    UNSIGNED,
    VERSION,
    Returned,
    import_votes,
    read_returned,
    signature,
    standalone_page,
)
from alignkit.collect.exports import TOOLS, events_from_rankings, export_events, export_tasks
from alignkit.collect.items import pool_of, present, text_mark
from alignkit.collect.log import EventLog, new_id, now, rankings_from_events, read_events
from alignkit.collect.plan import Settings
from alignkit.collect.secret import Marks, ensure_secret
from alignkit.data.read import load_preferences, load_rankings, read_records
from alignkit.data.records import Candidate, Candidates, Message
from alignkit.errors import DataError, DiskFull
from tests.collect.test_session import vote
from tests.collect_data import XSS, collecting, item, items, lines, write


def rank(*arguments: object, typed: str = "") -> Any:
    return CliRunner().invoke(cli, ["rank", *map(str, arguments)], input=typed)


# ---------------------------------------------------------------------------- the command line


def test_the_command_as_it_is_written(tmp_path: Path) -> None:
    candidates, output = write(tmp_path / "c.jsonl", items(3)), tmp_path / "r.jsonl"
    done = rank(candidates, "--output", output, "--annotator", "ann", "--terminal", typed="1\n2\n")
    assert done.exit_code == 0, done.output
    assert len(lines(output)) == 2
    first = rank("--output", output, "--annotator", "ann", "--terminal", candidates, typed="1\n")
    assert first.exit_code == 0 and len(lines(output)) == 3


def test_help_shows_the_options_and_the_subcommands() -> None:
    shown = rank("--help").output
    for part in ("CANDIDATES", "--annotator", "--terminal", "--overlap", "import", "export"):
        assert part in shown
    assert "Merge mailed pages" in rank("import", "--help").output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--repeat", "150%"], "not between 0 and 100%"),
        (["--repeat", "often"], "is no share"),
        (["--overlap", "0"], "x>=1"),
        (["--order", "best"], "is not one of"),
        (["--anotator", "x"], "No such option"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, options: list[str], reason: str) -> None:
    candidates = write(tmp_path / "c.jsonl", items(2))
    done = rank(candidates, "-o", tmp_path / "r.jsonl", "--annotator", "ann", *options)
    assert done.exit_code == 2 and reason in done.output


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no records"),
        ('{"kind":"candidates","id":"a","prompt":[]}\n', "candidates"),
        ('{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n',
         "cannot be ranked"),
    ],
)  # fmt: skip
def test_files_without_anything_to_rank_are_explained(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(content)
    done = rank(path, "-o", tmp_path / "r.jsonl", "--annotator", "ann", "--terminal")
    assert isinstance(done.exception, DataError) and reason in str(done.exception)
    assert not (tmp_path / "r.jsonl").exists()


def test_a_terminal_has_one_annotator(tmp_path: Path) -> None:
    candidates = write(tmp_path / "c.jsonl", items(2))
    names = ["--annotator", "ann", "--annotator", "ben"]
    done = rank(candidates, "-o", tmp_path / "r.jsonl", *names, "--terminal")
    assert "a terminal has one annotator" in str(done.exception)
    assert not list(tmp_path.glob("*.secret"))


def test_gold_items_are_spread_and_marked(tmp_path: Path) -> None:
    gold = [item(f"gold-{n}", prompt="?", gold={"c0": 1, "c1": 2}) for n in range(3)]
    mixed = [record.id for record in spread(items(9), gold)]
    places = [n for n, name in enumerate(mixed) if "gold" in name]
    assert places == [2, 6, 10]
    candidates = write(tmp_path / "c.jsonl", items(2))
    known = write(tmp_path / "g.jsonl", gold[:1])
    done = rank(candidates, "-o", tmp_path / "r.jsonl", "--annotator", "ann", "--terminal",
                "--gold", known, typed="1\n1\n1\n")  # fmt: skip
    assert done.exit_code == 0 and "gold" not in done.output
    assert sorted(event.gold for event in read_events(tmp_path / "r.jsonl")) == [False, False, True]
    plain = write(tmp_path / "p.jsonl", items(1))
    refused = rank(candidates, "-o", tmp_path / "s.jsonl", "--annotator", "ann", "--gold", plain)
    assert "has no expected order" in str(refused.exception)


def test_rankings_and_preferences_can_be_ranked_again(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt":"q","chosen":"yes","rejected":"no"}\n')
    pool = load_pool([path])
    assert [len(i.slots) for i in pool.items.values()] == [2]


# -------------------------------------------------------------------------------- mailed pages


def marks_of(log: Path) -> Marks:
    return Marks(17, ensure_secret(log))


def returned(marks: Marks, acts: list[dict[str, Any]], **head: Any) -> Returned:
    """What ann's page gives back."""
    base = {"format": FORMAT, "v": VERSION, "annotator": "ann", "seed": 17, "acts": acts}
    signed = {"id": "page", "signature": signature(marks, "page", "ann")}
    return Returned.model_validate(base | signed | head)


def act(marks: Marks, record: Candidates, order: str = "1", **fields: Any) -> dict[str, Any]:
    one = pool_of([record]).items[record.id]
    shown = present(one, marks, annotator="ann")
    return {"key": new_id(), "action": "rank", "ts": "2026-01-02T03:04:05.678Z", "order": order,
            "ticket": shown.ticket, "text": text_mark(marks, one)} | fields  # fmt: skip


def test_a_mailed_page_holds_no_markup_of_a_model_and_no_model() -> None:
    record = item("secret-id", [*XSS], prompt=XSS[0])
    pool = pool_of([record])
    page = standalone_page(pool, Settings(), "ann", b"key")
    assert not any(payload in page for payload in XSS)
    assert "\\u003cscript\\u003ewindow.PWN=1" in page
    assert "secret" not in page and '"c0"' not in page
    assert page.count("<script") == 2 and "default-src 'none'" in page
    assert "unsafe-inline" not in page
    # A plain hash of the texts in the file's order would tell which answer stands where.
    assert pool.items[record.id].sha256 not in page


def test_returned_answers_are_merged_once_with_their_times(tmp_path: Path) -> None:
    records = items(3)
    path = tmp_path / "r.jsonl"
    marks = marks_of(path)
    first = act(marks, records[0], "1")
    undo = {"key": new_id(), "action": "undo", "target": first["key"], "ts": now()}
    more = act(marks, records[1], "", action="skip", reason="r")
    acts = [first, undo, act(marks, records[0], "2"), more]
    for wanted in ((4, 0), (0, 4)):
        with EventLog(path) as log:
            merged = import_votes(returned(marks, acts), pool_of(records), log, where="a.json")
        assert (merged.saved, merged.duplicates) == wanted and not merged.conflicts
    events = read_events(path)
    assert events[0].ts == "2026-01-02T03:04:05.678Z"
    assert len(rankings_from_events(events)) == 1


def test_answers_that_disagree_are_named_and_replace_nothing(tmp_path: Path) -> None:
    records = items(2)
    path = tmp_path / "r.jsonl"
    marks = marks_of(path)
    with collecting(path, records) as collection:
        vote(collection.session("ann"), "1")
    with EventLog(path) as log:
        merged = import_votes(
            returned(marks, [act(marks, records[0], "2"), act(marks, records[1], "2")]),
            pool_of(records), log, where="a.json",
        )  # fmt: skip
    assert merged.saved == 1 and merged.conflicts == ["a.json: acts.0: this item is already done"]
    assert len(lines(path)) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": "0" * 32}, "texts have changed"),
        ({"ticket": "0" * 24}, "do not contain the ranked item"),
        ({"action": "drop"}, "unknown action"),
        ({"ts": "yesterday"}, "is not a UTC time"),
        ({"order": "7>1"}, "not one of 1 to 2"),
        ({"key": "../../x"}, "lower-case UUID"),
    ],
)
def test_answers_that_do_not_fit_are_refused_before_anything_is_stored(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    records = items(2)
    path = tmp_path / "r.jsonl"
    acts = [act(marks_of(path), records[0]) | change]
    with EventLog(path) as log, pytest.raises(DataError, match=reason) as caught:
        import_votes(returned(marks_of(path), acts), pool_of(records), log, where="a.json")
    assert caught.value.where == "a.json: acts.0"
    assert lines(path) == []


def mailed(tmp_path: Path, name: str, answers: int = 2) -> dict[str, Any]:
    """What the page of one of two annotators holds, made by the command."""
    candidates, output = tmp_path / "c.jsonl", tmp_path / "r.jsonl"
    write(candidates, items(3, answers))
    page = tmp_path / f"{name}.html"
    done = rank(candidates, "--output", output, "--annotator", name, "--export-html", page)
    assert done.exit_code == 0, done.output
    held: dict[str, Any] = json.loads(
        page.read_text().partition('id="task">')[2].partition("</script>")[0]
    )
    return held


def sent_back(tmp_path: Path, task: dict[str, Any], **head: Any) -> Any:
    """The page's own items ranked, sent back under another head, imported by the command."""
    acts = [
        {"key": new_id(), "action": "rank", "ts": now(), "order": "1",
         "ticket": shown["ticket"], "text": shown["text"]} for shown in task["items"]
    ]  # fmt: skip
    content = {k: v for k, v in task.items() if k != "items"} | {"acts": acts} | head
    returned = tmp_path / "back.json"
    returned.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    options = ["--output", tmp_path / "r.jsonl", "--candidates", tmp_path / "c.jsonl"]
    return rank("import", returned, *options)


def test_nobody_answers_in_the_name_of_another(tmp_path: Path) -> None:
    ann, ben = mailed(tmp_path, "ann"), mailed(tmp_path, "ben")
    forged = [
        {"annotator": "ben"},
        {"annotator": "ben", "signature": "0" * 64},
        {"annotator": "ben", "signature": ""},
        {"annotator": "ben", "signature": None},
        {"annotator": "ben", "id": ben["id"]},
        {"seed": 18},
        {"id": "0"},
    ]
    for head in forged:
        done = sent_back(tmp_path, ann, **head)
        assert done.exit_code == 2 or isinstance(done.exception, DataError)
        assert "the signature does not belong to a page for" in str(done.exception)
    # With ben's signature, which ann cannot know, ann's tickets are still not ben's.
    done = sent_back(tmp_path, ann | {key: ben[key] for key in ("annotator", "signature", "id")})
    assert "do not contain the ranked item" in str(done.exception)
    # A file that calls itself older than signatures is not believed either.
    done = sent_back(tmp_path, ann, v=UNSIGNED)
    assert "before pages were signed" in str(done.exception)
    assert "--unsigned" in str(done.exception)
    assert not (tmp_path / "r.jsonl").exists() or not lines(tmp_path / "r.jsonl")
    done = sent_back(tmp_path, ben)
    assert (done.exit_code, len(lines(tmp_path / "r.jsonl"))) == (0, 3)
    assert {line["annotator"] for line in lines(tmp_path / "r.jsonl")} == {"ben"}


def test_a_page_of_another_collection_is_refused(tmp_path: Path) -> None:
    task = mailed(tmp_path, "ann")
    secret = tmp_path / "r.jsonl.secret"
    kept = secret.read_text()
    secret.write_text(kept[::-1].strip() + "\n")
    assert "belongs to another collection" in str(sent_back(tmp_path, task).exception)
    secret.write_text("short\n")
    assert "does not contain the secret of a collection" in str(sent_back(tmp_path, task).exception)
    secret.unlink()
    assert "no such file; without its secret" in str(sent_back(tmp_path, task).exception)
    assert not secret.exists()  # a new one would only look like the old one
    secret.write_text(kept)
    assert sent_back(tmp_path, task).exit_code == 0


def test_whose_answers_are_imported_can_be_said(tmp_path: Path) -> None:
    task = mailed(tmp_path, "ann")
    assert sent_back(tmp_path, task).exit_code == 0
    options = ["--output", tmp_path / "r.jsonl", "--candidates", tmp_path / "c.jsonl"]
    again = rank("import", tmp_path / "back.json", *options, "--annotator", "ann")
    assert again.exit_code == 0
    other = rank("import", tmp_path / "back.json", *options, "--annotator", "ben")
    assert "answers of 'ann', not of 'ben'" in str(other.exception)


def test_pages_from_before_signatures_are_taken_when_asked(tmp_path: Path) -> None:
    """Their tickets and texts were plain hashes of a public seed."""
    records, output = items(2), tmp_path / "r.jsonl"
    candidates = write(tmp_path / "c.jsonl", records)
    item = pool_of(records).items["item-0"]
    old = {"key": new_id(), "action": "rank", "ts": now(), "order": "1",
           "ticket": present(item, Marks(17), annotator="ann").ticket,
           "item_sha256": item.sha256}  # fmt: skip
    head = {"format": FORMAT, "v": 1, "id": "x", "annotator": "ann", "seed": 17, "acts": [old]}
    (tmp_path / "old.json").write_text(json.dumps(head))
    options = [tmp_path / "old.json", "--output", output, "--candidates", candidates]
    assert "anybody could have written these votes" in str(rank("import", *options).exception)
    assert rank("import", *options, "--unsigned").exit_code == 0
    [kept] = lines(output)
    shown = present(item, Marks(17), annotator="ann").shown
    assert kept["ranks"] == {shown[0]: 1, shown[1]: 2}


def test_a_page_to_mail_needs_its_collection(tmp_path: Path) -> None:
    candidates = write(tmp_path / "c.jsonl", items(2))
    done = rank(candidates, "--annotator", "ann", "--export-html", tmp_path / "ann.html")
    assert done.exit_code == 2
    assert "--output FILE says which collection the page belongs to" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format":"alignkit-answers"}', b"\xff\xfe", b"[" * 100_000,
     b'{"format":"x","v":1,"annotator":"a","seed":1,"acts":[]}'],
)  # fmt: skip
def test_a_file_that_is_no_answers_is_explained(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_returned(path)
    assert caught.value.where == str(path)


def test_pages_for_several_annotators_stay_in_their_directory(tmp_path: Path) -> None:
    candidates = write(tmp_path / "c.jsonl", items(2))
    target = tmp_path / "pages"
    names = ["ann", "../../evil", "a/b"]
    options = [part for name in names for part in ("--annotator", name)]
    output = tmp_path / "out" / "r.jsonl"
    done = rank(candidates, "--output", output, "--export-html", target, *options)
    assert done.exit_code == 0, done.output
    made = sorted(path.name for path in target.iterdir())
    assert len(made) == 3 and "ann.html" in made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "out", "pages"]
    assert [path.name for path in output.parent.iterdir()] == ["r.jsonl.secret"]


# --------------------------------------------------------------------------------- other tools


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(4, 3), "ann", "ben") as collection:
        for name in ("ann", "ben"):
            session = collection.session(name)
            vote(session, "1>*")
            vote(session, "2>*", comment="c", strength=2)
            session.undo(new_id())
            vote(session, "3>*")
            vote(session, "", action="skip")
    return path


@pytest.mark.parametrize("tool", ["argilla", "prodigy"])
def test_what_goes_to_another_tool_comes_back_the_same(
    tmp_path: Path, collected: Path, tool: str
) -> None:
    there, back = tmp_path / f"{tool}.jsonl", tmp_path / "back.jsonl"
    assert rank("export", collected, "--to", tool, "-o", there).exit_code == 0
    for told in ("4 saved, 0 already there", "0 saved, 4 already there"):
        done = rank("import", there, "--format", tool, "-o", back)
        assert done.exit_code == 0 and told in done.output, done.output

    def said(path: Path) -> set[str]:
        return {
            json.dumps([r.annotator, r.prompt[0].content,
                        sorted((c.messages[0].content, r.ranks[c.cid]) for c in r.candidates)])
            for r in load_rankings(path).records
        }  # fmt: skip

    assert said(back) == said(collected) and len(said(back)) == 4


def test_label_studio_takes_full_orders_and_refuses_ties(tmp_path: Path, collected: Path) -> None:
    refused = rank("export", collected, "--to", "label-studio", "-o", tmp_path / "x.json")
    assert "cannot hold ties" in str(refused.exception) and not (tmp_path / "x.json").exists()
    path = tmp_path / "s.jsonl"
    with collecting(path, items(2, 3)) as collection:
        vote(collection.session("ann"), "3>1>2")
    there, back = tmp_path / "there.jsonl", tmp_path / "back.jsonl"
    assert rank("export", path, "--to", "label-studio", "-o", there).exit_code == 0
    assert rank("import", there, "-o", back).exit_code == 0
    one, two = load_rankings(path).records[0], load_rankings(back).records[0]
    assert {c.messages[0].content: one.ranks[c.cid] for c in one.candidates} == {
        c.messages[0].content: two.ranks[c.cid] for c in two.candidates
    }
    assert two.annotator == "ann"


@pytest.mark.parametrize("tool", TOOLS)
def test_items_become_tasks_without_models_or_answers(tmp_path: Path, tool: str) -> None:
    output = tmp_path / "tasks.jsonl"
    assert export_tasks(items(3), tool, output, seed=1) == 3
    text = output.read_text()
    assert "secret-model" not in text and "accept" not in text and "rank" not in text
    assert "question 2?" in text and "answer 2.1" in text


def test_event_files_of_two_machines_are_merged(tmp_path: Path, collected: Path) -> None:
    other, merged = tmp_path / "o.jsonl", tmp_path / "m.jsonl"
    with collecting(other, items(4, 3), "cas") as collection:
        vote(collection.session("cas"), "1>2>3")
    assert rank("import", collected, other, "-o", merged).exit_code == 0
    assert rank("import", other, "-o", merged).exit_code == 0
    assert len(read_events(merged)) == 11
    assert {r.annotator for r in load_rankings(merged).records} == {"ann", "ben", "cas"}


def test_sqlite_holds_every_event_and_says_which_stand(tmp_path: Path, collected: Path) -> None:
    output = tmp_path / "r.db"
    assert rank("export", collected, "--to", "sqlite", "-o", output).exit_code == 0
    database = sqlite3.connect(output)
    try:
        count, stand = database.execute("SELECT count(*), sum(stands) FROM events").fetchone()
        best = database.execute(
            "SELECT count(*) FROM ranks JOIN events ON id = event WHERE rank = 1 AND stands"
        ).fetchone()
    finally:
        database.close()
    assert (count, stand) == (10, 6) and best == (4,)


def test_parquet_and_rankings(tmp_path: Path, collected: Path) -> None:
    import pyarrow.parquet

    assert rank("export", collected, "--to", "parquet", "-o", tmp_path / "r.parquet").exit_code == 0
    table = pyarrow.parquet.read_table(tmp_path / "r.parquet")
    assert table.num_rows == 10 and table["stands"].to_pylist().count(True) == 6
    assert rank("export", collected, "--to", "rankings", "-o", tmp_path / "k.jsonl").exit_code == 0
    rankings = [record for record in read_records(tmp_path / "k.jsonl")]
    assert [record.kind for record in rankings] == ["ranking"] * 4
    assert load_rankings(collected).records[0].ranks == rankings[0].ranks  # type: ignore[attr-defined]
    pairs = load_preferences(collected).records
    assert len(pairs) == 8 and sum(pair.weight for pair in pairs) == pytest.approx(4.0)


def test_an_export_is_complete_or_absent(
    tmp_path: Path, collected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "k.jsonl"
    output.write_text("old")

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFull, match="disk full; nothing was written"):
        export_events(read_events(collected), "rankings", output)
    assert output.read_text() == "old"
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_rankings_without_a_name_need_one(tmp_path: Path) -> None:
    record = load_rankings(_ranked(tmp_path / "k.jsonl")).records[0]
    with pytest.raises(DataError, match="has no annotator"):
        list(events_from_rankings([record], ui="x"))
    assert next(events_from_rankings([record], ui="x", annotator="ann")).annotator == "ann"


def _ranked(path: Path) -> Path:
    path.write_text('{"prompt":"q","completions":["a","b"],"ranks":[2,1]}\n')
    return path


# ----------------------------------------------------------------------------------- real data


def real(name: str) -> Path:
    root = os.environ.get("ALIGNKIT_REAL_DATA")
    if not root:
        pytest.skip("ALIGNKIT_REAL_DATA is not set")
    path = Path(root) / name
    assert path.exists(), f"{path} is missing"
    return path


def of_several_systems(count: int) -> list[Candidates]:
    """Prompts that several systems answered, as candidates."""
    systems = ("davinci-self-instruct", "text-davinci-003")
    rows = [
        [json.loads(line) for line in path.read_text("utf-8").split("\n") if line][:count]
        for path in (real(f"self_instruct_pred_{system}.jsonl") for system in systems)
    ]
    records = []
    for number, answers in enumerate(zip(*rows, strict=True)):
        assert len({row["prompt"] for row in answers}) == 1
        texts = dict(zip(systems, (row["response"] for row in answers), strict=True))
        texts["reference"] = answers[0]["target"]
        candidates = [
            Candidate(
                cid=f"c{place}", model=model, messages=[Message(role="assistant", content=text)]
            )
            for place, (model, text) in enumerate(texts.items())
        ]
        prompt = [Message(role="user", content=answers[0]["prompt"])]
        records.append(Candidates(id=f"task-{number}", prompt=prompt, candidates=candidates))
    return records


@pytest.mark.real_data
def test_llmbar_is_ranked_as_its_labels_say(tmp_path: Path) -> None:
    path = real("llmbar_Natural.json")
    expected = {record.id: record.ranks for record in load_rankings(path).records}  # type: ignore[attr-defined]
    pool = load_pool([path])
    assert len(pool.items) == 100 and not pool.left_out
    output = tmp_path / "r.jsonl"
    with collecting(output, pool, "careful", "careless", repeat=0.1) as collection:
        careful, careless = collection.session("careful"), collection.session("careless")
        while (shown := careful.next()) is not None:
            ranks = expected[shown.item.id]
            best = min(range(2), key=lambda place: ranks[shown.shown[place]])
            vote(careful, str(best + 1))
        while careless.next() is not None:
            vote(careless, "1")
    rankings = load_rankings(output).records
    assert len(rankings) == 200 and len(read_events(output)) == 220
    mine = {r.item: r.ranks for r in rankings if r.annotator == "careful"}
    assert mine == expected
    repeats = [e for e in read_events(output) if e.repeat_of]
    first = {e.id: e for e in read_events(output)}
    same = {name: [r.ranks == first[r.repeat_of or ""].ranks for r in repeats
                   if r.annotator == name] for name in ("careful", "careless")}  # fmt: skip
    assert all(same["careful"]) and not any(same["careless"])


@pytest.mark.real_data
def test_three_systems_of_self_instruct_are_ranked_and_become_pairs(tmp_path: Path) -> None:
    records = of_several_systems(100)
    output = tmp_path / "r.jsonl"
    pool = pool_of(records)
    with collecting(output, pool) as collection:
        session = collection.session("short-is-good")
        while (shown := session.next()) is not None:
            lengths = shown.characters()
            order = sorted(range(len(lengths)), key=lambda place: lengths[place])
            typed = str(order[0] + 1)
            for before, place in zip(order, order[1:], strict=False):
                typed += ("=" if lengths[before] == lengths[place] else ">") + str(place + 1)
            vote(session, typed)
    rankings = load_rankings(output).records
    assert len(rankings) == len(pool.items) >= 95
    for ranking in rankings:
        lengths_by_rank = sorted(
            (ranking.ranks[c.cid], len(c.messages[0].content.strip())) for c in ranking.candidates
        )
        assert lengths_by_rank[0][1] <= lengths_by_rank[-1][1] + 2
    pairs = load_preferences(output).records
    groups = {pair.group for pair in pairs}
    assert sum(pair.weight for pair in pairs) == pytest.approx(len(groups))


def test_collecting_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    candidates = write(tmp_path / "c.jsonl", items(1))
    code = (
        "import sys\nfrom alignkit.cli import cli\n"
        "cli.main(['rank', *sys.argv[1:]], standalone_mode=False)\n"
        "import alignkit.collect.web.server\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    options = [candidates, "-o", tmp_path / "r.jsonl", "--annotator", "ann", "--terminal"]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], input="1\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
