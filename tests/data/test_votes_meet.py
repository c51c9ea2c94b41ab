"""Votes of several people on one prompt and its answers are votes on one item, in every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.cli import main
from alignkit.data.checks.dataset_checks import FilePrints
from alignkit.data.checks.stats import stats_of
from alignkit.data.edit.collect_pairs import pairs_of_files
from alignkit.data.pairs import aggregate, expand
from alignkit.data.read import load_preferences, load_rankings
from alignkit.data.records import Candidate, Message, Ranking
from alignkit.data.voting import Items, aligned
from alignkit.evaluation.agreement import agreement_report
from alignkit.evaluation.judgements import judgements_in

Row = dict[str, Any]
Verdicts = Sequence[tuple[str, str, bool]]  # question, annotator, whether x beats y

# Three people on six items; bob differs on the first. By hand: ann and bob agree on 5 of 6.
SIX: Verdicts = [
    (f"p{item}", who, not (item == 0 and who == "bob"))
    for item in range(6)
    for who in ("ann", "bob", "cid")
]


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_question(verdicts: Verdicts) -> dict[str, list[tuple[str, bool]]]:
    found: dict[str, list[tuple[str, bool]]] = {}
    for question, who, x_wins in verdicts:
        found.setdefault(question, []).append((who, x_wins))
    return found


def label_studio(verdicts: Verdicts) -> list[Row]:
    def annotation(number: int, who: str, x_wins: bool) -> Row:
        value = {"selected": "left" if x_wins else "right"}
        result = {"id": "z", "type": "pairwise", "from_name": "c", "to_name": "p", "value": value}
        return {"id": number, "completed_by": who, "was_cancelled": False, "result": [result]}

    return [
        {"id": number, "data": {"prompt": question, "answer1": "x", "answer2": "y"},
         "annotations": [annotation(n, *vote) for n, vote in enumerate(votes)]}
        for number, (question, votes) in enumerate(by_question(verdicts).items())
    ]  # fmt: skip


def argilla(verdicts: Verdicts) -> list[Row]:
    def response(who: str, x_wins: bool) -> Row:
        ranks = (1, 2) if x_wins else (2, 1)
        value = [{"value": f"r{i + 1}", "rank": rank} for i, rank in enumerate(ranks)]
        return {"value": value, "user_id": who, "status": "submitted"}

    return [
        {"id": f"rec{number}", "fields": {"prompt": question, "r1": "x", "r2": "y"},
         "responses": {"ranking": [response(*vote) for vote in votes]}}
        for number, (question, votes) in enumerate(by_question(verdicts).items())
    ]  # fmt: skip


def prodigy(verdicts: Verdicts) -> list[Row]:
    """Each annotator saw the options in an order of their own."""
    rows = []
    for number, (question, who, x_wins) in enumerate(verdicts):
        texts = ("x", "y") if number % 2 else ("y", "x")
        options = [{"id": n, "text": text} for n, text in enumerate(texts)]
        accept = [texts.index("x" if x_wins else "y")]
        rows.append({"text": question, "options": options, "accept": accept, "answer": "accept",
                     "_annotator_id": who})  # fmt: skip
    return rows


def mt_bench(verdicts: Verdicts) -> list[Row]:
    """One row a vote, the judge in a column, the sides as they were shown."""
    rows = []
    for number, (question, who, x_wins) in enumerate(verdicts):
        sides = [("one", "x"), ("two", "y")] if number % 2 else [("two", "y"), ("one", "x")]
        wins = "model_a" if (sides[0][1] == "x") == x_wins else "model_b"
        row: Row = {"question_id": 80 + int(question[1:]), "winner": wins, "judge": who, "turn": 1}
        for place, (model, answer) in zip("ab", sides, strict=True):
            row[f"model_{place}"] = model
            row[f"conversation_{place}"] = [{"role": "user", "content": question},
                                            {"role": "assistant", "content": answer}]  # fmt: skip
        rows.append(row)
    return rows


def ranked(verdicts: Verdicts) -> list[Row]:
    rows = []
    for number, (question, who, x_wins) in enumerate(verdicts):
        texts = ["x", "y"] if number % 2 else ["y", "x"]
        ranks = [1 if (text == "x") == x_wins else 2 for text in texts]
        rows.append({"prompt": question, "completions": texts, "ranks": ranks, "annotator": who,
                     "id": f"vote-{number}"})  # fmt: skip
    return rows


def preferences(column: str) -> Callable[[Verdicts], list[Row]]:
    def rows(verdicts: Verdicts) -> list[Row]:
        return [
            {"prompt": question, "chosen": "x" if x_wins else "y",
             "rejected": "y" if x_wins else "x", column: who}
            for question, who, x_wins in verdicts
        ]  # fmt: skip

    return rows


def numbered(verdicts: Verdicts) -> list[Row]:
    """Annotators who are numbers, 0 among them."""
    names = {"ann": 0, "bob": 1, "cid": 2}
    return [row | {"annotator": names[row["annotator"]]} for row in ranked(verdicts)]


FORMS: dict[str, Callable[[Verdicts], list[Row]]] = {
    "label-studio": label_studio,
    "argilla": argilla,
    "prodigy": prodigy,
    "mt-bench": mt_bench,
    "ranked": ranked,
    "numbered": numbered,
    "annotator column": preferences("annotator"),
    "worker column": preferences("worker_id"),
}


@pytest.mark.parametrize("form", FORMS)
def test_six_items_by_three_people(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", FORMS[form](SIX))
    report = agreement_report([path], bootstrap=0)
    assert (report["n_items"], report["n_votes"], len(report["annotators"])) == (6, 18, 3)
    shares = {tuple(pair["annotators"]): pair["agreement"] for pair in report["pairs"]}
    assert sorted(shares.values()) == [pytest.approx(5 / 6), pytest.approx(5 / 6), 1.0]
    made, told = pairs_of_files([str(path)], aggregate_by="majority")
    said = {(pair.prompt[0].content, pair.chosen[-1].content) for pair in made}
    assert (len(made), said) == (6, {(f"p{n}", "x") for n in range(6)})
    assert [problem.message for problem in told] == ["18 votes by 3 annotators on 6 items"]
    assert list(FilePrints(near=False).problems("none")) == contradictions(made) == []
    # Uncombined, each vote weighs one, whatever it is read for.
    assert sum(pair.weight for pair in load_preferences(path).records) == 18
    assert len(load_rankings(path).records) == 18


def contradictions(made: Sequence[Any]) -> list[str]:
    across = FilePrints(near=False)
    for line, record in enumerate(made, start=1):
        across.add(record, line)
    return [problem.kind for problem in across.problems("made")]


@pytest.mark.parametrize("form", FORMS)
def test_our_own_records_of_them_say_the_same(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", FORMS[form](SIX))
    for name in ("own.jsonl", "own.jsonl.gz", "own.parquet"):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "convert", str(path), "-o", str(tmp_path / name)])
        assert stopped.value.code == 0
        report = agreement_report([tmp_path / name], bootstrap=0)
        assert (report["n_items"], report["n_votes"]) == (6, 18)
        assert report["inputs"][0]["rows"] == 18


def test_a_table_of_votes(tmp_path: Path) -> None:
    rows = ranked(SIX)
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    pq.write_table(table, tmp_path / "v.parquet")
    report = agreement_report([tmp_path / "v.parquet"], bootstrap=0)
    assert (report["n_items"], report["n_votes"], len(report["pairs"])) == (6, 18, 3)


def test_several_files_meet(tmp_path: Path) -> None:
    """Label Studio asked ann, Prodigy bob: the items are the same ones."""
    one = write(tmp_path / "a.jsonl", label_studio([v for v in SIX if v[1] == "ann"]))
    other = write(tmp_path / "b.jsonl", prodigy([v for v in SIX if v[1] == "bob"]))
    report = agreement_report([one, other], bootstrap=0)
    assert (report["n_items"], report["n_votes"]) == (6, 12)
    assert report["pairs"][0]["agreement"] == pytest.approx(5 / 6)


# --- one person, two votes ----------------------------------------------------------------------

TWICE = [
    {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2], "annotator": "ann"},
    {"prompt": "p", "completions": ["x", "y"], "ranks": [2, 1], "annotator": "ann"},
    {"prompt": "p", "completions": ["y", "x"], "ranks": [1, 2], "annotator": "bob"},
    {"prompt": "p", "completions": ["x", "y"], "ranks": [2, 1], "annotator": "cid"},
    {"prompt": "p", "completions": ["y", "x"], "ranks": [1, 3], "annotator": "cid"},
]


def test_the_last_vote_of_a_person_counts_and_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", TWICE)
    report = agreement_report([path], bootstrap=0)
    assert (report["n_items"], report["n_votes"]) == (1, 3)
    assert [pair["agreement"] for pair in report["pairs"]] == [1.0, 1.0, 1.0]
    said = [
        f"{path}:2: ann voted differently on line 1: the last vote counts. "
        "Fix: remove the vote that is wrong",
        f"{path}:5: cid voted the same on line 4: counted once.",
    ]
    assert report["replaced"] == said
    for method in ("majority", "borda", "mean-rank"):
        (made,), told = pairs_of_files([str(path)], aggregate_by=method)  # type: ignore[arg-type]
        assert (made.chosen[0].content, made.weight) == ("y", 1.0)
        assert [str(problem) for problem in told[:2]] == said
    single, told = pairs_of_files([str(path)])
    assert [pair.chosen[0].content for pair in single] == ["y", "y", "y"]
    assert [str(problem) for problem in told] == said


def test_votes_without_a_name_are_of_several_people(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "annotator"} for row in TWICE]
    path = write(tmp_path / "v.jsonl", rows)
    report = agreement_report([path], bootstrap=0)
    assert (report["n_items"], report["n_votes"], report["pairs"]) == (1, 5, [])
    (made,), told = pairs_of_files([str(path)], aggregate_by="majority")
    assert made.chosen[0].content == "y"
    assert told[-1].message == "5 votes by anonymous people on 1 item"


def test_statistics_count_the_agreement_of_one_item(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", ranked(SIX))
    # 18 pairs of votes on 6 items; the two with bob on the first item differ.
    assert stats_of(load_rankings(path).records).agreement() == pytest.approx(16 / 18)


# --- what a name is worth -----------------------------------------------------------------------


def ranking(
    item: str,
    texts: dict[str, str],
    ranks: dict[str, int],
    who: str | None = None,
    prompt: str = "p",
) -> Ranking:
    return Ranking(
        id=f"{item}@{who}",
        item=item,
        prompt=[Message(role="user", content=prompt)],
        candidates=[
            Candidate(cid=cid, messages=[Message(role="assistant", content=text)])
            for cid, text in texts.items()
        ],
        ranks=ranks,
        annotator=who,
    )


def test_a_name_that_means_two_things_joins_nothing() -> None:
    votes = [
        ranking("1", {"a": "x", "b": "y"}, {"a": 1, "b": 2}, "ann"),
        ranking("1", {"a": "v", "b": "w"}, {"a": 2, "b": 1}, "bob"),
        ranking("1", {"a": "x", "b": "y"}, {"a": 2, "b": 1}, "bob", prompt="q"),
    ]
    assert [vote.item for vote in aligned(votes)] == ["1", "1 (2)", "1 (3)"]
    assert [vote.ranks for vote in aggregate(votes, "majority")] == [vote.ranks for vote in votes]


def test_a_name_joins_votes_on_parts_of_the_answers() -> None:
    votes = [
        ranking("1", {"a": "x", "b": "y"}, {"a": 1, "b": 2}, "ann"),
        ranking("1", {"b": "y", "c": "z"}, {"b": 1, "c": 2}, "bob"),
    ]
    (made,) = aggregate(votes, "borda")
    assert made.ranks == {"a": 1, "b": 2, "c": 3}
    assert [c.messages[0].content for c in made.candidates] == ["x", "y", "z"]


def test_names_do_not_keep_equal_items_apart() -> None:
    votes = [
        ranking("one", {"a": "x", "b": "y"}, {"a": 1, "b": 2}, "ann"),
        ranking("two", {"b": " x\n", "a": "y"}, {"b": 1, "a": 2}, "bob"),
    ]
    (made,) = aggregate(votes, "majority")
    assert (made.item, made.ranks) == ("one", {"a": 1, "b": 2})


TEXTS = st.lists(st.sampled_from(["x", "y", "z", "x "]), min_size=2, max_size=5)


@settings(max_examples=60)
@given(
    TEXTS, st.randoms(use_true_random=False), st.lists(st.integers(1, 3), min_size=5, max_size=5)
)
def test_the_order_of_answers_changes_nothing(
    texts: list[str], random: Any, ranks: list[int]
) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    items = Items()
    first = items.of(ranking("", {f"c{i}": t for i, t in enumerate(texts)}, {}))
    again = items.of(ranking("", {f"c{n}": texts[i] for n, i in enumerate(order)}, {}))
    assert first.item == again.item
    assert sorted(again.cids.values()) == sorted(again.cids)
    for n, i in enumerate(order):
        same = texts[int(again.cids[f"c{n}"][1:])]
        assert same.strip() == texts[i].strip()
    assert again.ranks({f"c{n}": ranks[n] for n in range(len(order))}).keys() == set(again.cids)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.permutations(["x", "y", "z"])), max_size=12))
def test_the_majority_leaves_no_contradiction(votes: list[tuple[int, list[str]]]) -> None:
    cast = [
        ranking("", {f"c{i}": text for i, text in enumerate(said)},
                {f"c{i}": i + 1 for i in range(3)}, f"a{n}", prompt=f"p{question}")
        for n, (question, said) in enumerate(votes)
    ]  # fmt: skip
    made = aggregate(cast, "majority")
    assert len(made) == len({question for question, _ in votes})
    assert contradictions([pair for each in made for pair in expand(each)]) == []


# --- win rates ----------------------------------------------------------------------------------


def test_votes_of_two_people_are_one_prompt_of_a_win_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", mt_bench(SIX))
    with pytest.raises(SystemExit):
        main(["data", "convert", str(path), "-o", str(tmp_path / "own.jsonl")])
    found = [row for row, _, _ in judgements_in([tmp_path / "own.jsonl"], [])]
    assert len({row.prompt_id for row in found}) == 6
    wins = [row.score if row.a == "one" else 1 - row.score for row in found]
    assert sum(wins) == 17


def test_equal_answers_of_other_models_stay_theirs(tmp_path: Path) -> None:
    """Two pairs of models gave the same two answers: each vote is about its own models."""
    rows = mt_bench([("p0", "ann", True)]) + [
        row | {"model_a": "three", "model_b": "four"} for row in mt_bench([("p0", "bob", True)])
    ]
    path = write(tmp_path / "v.jsonl", rows)
    with pytest.raises(SystemExit):
        main(["data", "convert", str(path), "-o", str(tmp_path / "own.jsonl")])
    found = [row for row, _, _ in judgements_in([tmp_path / "own.jsonl"], [])]
    assert {frozenset((row.a, row.b)) for row in found} == {
        frozenset(("one", "two")), frozenset(("three", "four"))
    }  # fmt: skip


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["annotator", "worker_id"])
def test_training_takes_the_last_vote_of_each_person(column: str, tmp_path: Path) -> None:
    said = [("p", "ann", True), ("p", "ann", False), ("p", "bob", False), ("q", "ann", True)]
    path = write(tmp_path / "v.jsonl", preferences(column)(said))
    plain = load_preferences(path)
    assert [(r.prompt[0].content, r.chosen[0].content) for r in plain.records] == [
        ("p", "y"), ("p", "y"), ("q", "x")
    ]  # fmt: skip
    assert [str(problem) for problem in plain.problems] == [
        f"{path}:1: the same annotator voted on these completions again: the last vote counts. "
        "Fix: remove the vote that is wrong"
    ]
    ranked_ = load_rankings(path)
    assert [record.ranks for record in ranked_.records] == [{"chosen": 1, "rejected": 2}] * 3
    assert sum(record.weight for record in plain.records) == 3
    own = write(tmp_path / "own.jsonl", [json.loads(r.model_dump_json()) for r in ranked_.records])
    assert len(load_rankings(own).records) == 3
