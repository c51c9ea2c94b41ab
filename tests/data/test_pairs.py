"""Rankings to weighted preferences, several annotators to one ranking, splits by prompt."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.cli import main
from alignkit.data.edit.split import prompt_key, split_by_prompt, split_parts
from alignkit.data.pairs import SELECTIONS, aggregate, expand, ranking_of, standing_votes
from alignkit.data.read import load_preferences, load_prompts, load_rankings
from alignkit.data.records import Candidate, Event, Message, Preference, Ranking
from alignkit.errors import RecipeError

PROMPT = [Message(role="user", content="Two and two?")]


def ranking(
    ranks: dict[str, int], *, unranked: int = 0, item: str = "i", annotator: str | None = None
) -> Ranking:
    cids = [*ranks, *(f"u{n}" for n in range(unranked))]
    if len(cids) < 2:
        cids += ["spare1", "spare2"]
    candidates = [
        Candidate(cid=cid, messages=[Message(role="assistant", content=cid)]) for cid in cids
    ]
    return Ranking(
        id=f"{item}-{annotator}", item=item, prompt=PROMPT, candidates=candidates, ranks=ranks,
        annotator=annotator,
    )  # fmt: skip


def cut(ranks: dict[str, int], pairs: str) -> list[str]:
    made = expand(ranking(ranks), pairs=pairs)  # type: ignore[arg-type]
    return [f"{p.chosen[0].content}>{p.rejected[0].content}" for p in made]


RANKS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 4), max_size=6)


@given(st.lists(RANKS, max_size=8), st.sampled_from(sorted(SELECTIONS)))
def test_weights_sum_to_the_number_of_rankings_with_a_strict_pair(
    all_ranks: list[dict[str, int]], pairs: str
) -> None:
    made = [
        pair
        for number, ranks in enumerate(all_ranks)
        for pair in expand(ranking(ranks, item=str(number)), pairs=pairs)  # type: ignore[arg-type]
    ]
    strict = sum(len(set(ranks.values())) > 1 for ranks in all_ranks)
    assert sum(pair.weight for pair in made) == pytest.approx(strict)
    assert len({pair.group for pair in made}) == strict


@given(RANKS)
def test_all_pairs_are_the_strict_ones(ranks: dict[str, int]) -> None:
    wanted = {
        (a, b) if ranks[a] < ranks[b] else (b, a)
        for a, b in combinations(ranks, 2)
        if ranks[a] != ranks[b]
    }
    made = expand(ranking(ranks), weight="pair")
    assert {(p.chosen[0].content, p.rejected[0].content) for p in made} == wanted
    assert all(pair.weight == 1.0 for pair in made)


def test_which_pairs_of_a_ranking_with_a_tie() -> None:
    ranks = {"a": 2, "b": 1, "c": 2, "d": 5}
    assert cut(ranks, "all") == ["b>a", "b>c", "b>d", "a>d", "c>d"]
    assert cut(ranks, "adjacent") == ["b>a", "b>c", "a>d", "c>d"]
    assert cut(ranks, "best-worst") == ["b>d"]
    assert cut(ranks, "best-vs-rest") == ["b>a", "b>c", "b>d"]


def test_the_unranked_take_no_part() -> None:
    made = expand(ranking({"a": 1, "b": 2}, unranked=2))
    assert [p.id for p in made] == ["i-None/a>b"]


def test_a_preference_is_a_ranking_of_two_and_back() -> None:
    said = [Message(role="assistant", content=text) for text in ("yes", "no")]
    preference = Preference(id="p", prompt=PROMPT, chosen=[said[0]], rejected=[said[1]])
    (back,) = expand(ranking_of(preference))
    assert (back.prompt, back.chosen, back.rejected, back.weight) == (
        preference.prompt, preference.chosen, preference.rejected, 1.0
    )  # fmt: skip
    tie = preference.model_copy(update={"tie": True})
    assert expand(ranking_of(tie)) == []


# --- several annotators -------------------------------------------------------------------------

VOTES = [ranking({"a": 1, "b": 2, "c": 3}, annotator="x"),
         ranking({"a": 1, "b": 3, "c": 2}, annotator="y"),
         ranking({"a": 2, "b": 1, "c": 3}, annotator="z")]  # fmt: skip


@pytest.mark.parametrize("method", ["mean-rank", "borda", "majority"])
def test_three_annotators_become_one_ranking(method: str) -> None:
    (made,) = aggregate(VOTES, method)  # type: ignore[arg-type]
    assert (made.ranks, made.annotator, made.item) == ({"a": 1, "b": 2, "c": 3}, None, "i")


def test_majority_and_mean_rank_may_differ() -> None:
    votes = [ranking({"a": 1, "b": 2}), ranking({"a": 1, "b": 2}), ranking({"a": 9, "b": 1})]
    assert aggregate(votes, "majority")[0].ranks == {"a": 1, "b": 2}
    assert aggregate(votes, "mean-rank")[0].ranks == {"a": 2, "b": 1}


def test_items_without_agreement_are_left_out() -> None:
    # The pairs have majorities of 2/3 (a,b), 3/3 (a,c), 2/3 (b,c): 7/9 in the mean.
    assert len(aggregate(VOTES, "borda", min_agreement=7 / 9 - 1e-9)) == 1
    assert aggregate(VOTES, "borda", min_agreement=7 / 9 + 1e-9) == []


def event(name: str, action: str = "rank", item: str = "i", **more: object) -> Event:
    fields = {"id": name, "ts": "t", "annotator": "ann", "item": item, "action": action}
    if action in ("rank", "pair"):
        fields |= {"ranks": {"a": 1, "b": 2}}  # type: ignore[dict-item]
    return Event.model_validate(fields | more)


def test_only_standing_votes_count() -> None:
    events = [
        event("1"), event("2"),  # the last one on an item counts
        event("3", item="j"), event("4", "undo", item="j", supersedes="3"),
        event("5", "skip", item="k"),
        event("6", item="i", repeat_of="2"),
        event("7", item="l", annotator="bob"),
    ]  # fmt: skip
    assert [vote.id for vote in standing_votes(events)] == ["2", "7"]


def test_votes_become_preferences_with_their_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, texts, out = tmp_path / "v.jsonl", tmp_path / "c.jsonl", tmp_path / "p.jsonl"
    log.write_bytes(event("1").model_dump_json().encode())
    candidates = [c.model_dump() for c in ranking({"a": 1, "b": 2}).candidates]
    record = {"v": 1, "kind": "candidates", "id": "i", "candidates": candidates,
              "prompt": [m.model_dump() for m in PROMPT]}  # fmt: skip
    texts.write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stopped:
        main(["data", "pairs", str(log), "--candidates", str(texts), "-o", str(out)])
    assert stopped.value.code == 0, capsys.readouterr()
    (made,) = load_preferences(out).records
    assert (made.chosen[0].content, made.rejected[0].content, made.group) == ("a", "b", "i@ann")


# --- loading ------------------------------------------------------------------------------------


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rankings_load_as_preferences_and_preferences_as_rankings(tmp_path: Path) -> None:
    row = {"prompt": "P?", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}
    ranked = write(tmp_path / "r.jsonl", row)
    assert [p.weight for p in load_preferences(ranked).records] == [0.5, 0.5]
    plain = write(tmp_path / "p.jsonl", {"prompt": "P?", "chosen": "a", "rejected": "b"})
    assert load_rankings(plain).records[0].ranks == {"chosen": 1, "rejected": 2}


def test_prompts_of_other_kinds_come_once(tmp_path: Path) -> None:
    rows = [{"prompt": "P?", "chosen": "a", "rejected": "b"},
            {"prompt": "P?", "chosen": "a", "rejected": "c"},
            {"prompt": "Q?", "chosen": "a", "rejected": "c"}]  # fmt: skip
    prompts = load_prompts(write(tmp_path / "p.jsonl", *rows)).records
    assert [p.prompt[0].content for p in prompts] == ["P?", "Q?"]


# --- splitting ----------------------------------------------------------------------------------


def preference(prompt: str, group: str | None = None) -> Preference:
    def said(role: str, text: str) -> list[Message]:
        return [Message(role=role, content=text)]  # type: ignore[arg-type]

    return Preference(
        id=f"{prompt}-{group}", prompt=said("user", prompt), chosen=said("assistant", "a"),
        rejected=said("assistant", "b"), group=group,
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 12), st.none() | st.integers(0, 3)), max_size=40),
    st.floats(0.05, 0.95),
    st.integers(0, 99),
)
def test_no_prompt_and_no_group_stands_on_both_sides(
    rows: list[tuple[int, int | None]], fraction: float, seed: int
) -> None:
    records = [preference(f"P{p}", None if g is None else f"g{g}") for p, g in rows]
    train, held_out = split_by_prompt(records, fraction, seed)
    assert sorted(r.id for r in [*train, *held_out]) == sorted(r.id for r in records)
    assert not {prompt_key(r) for r in train} & {prompt_key(r) for r in held_out}
    assert not {r.group for r in train} & {r.group for r in held_out} - {None}
    assert split_by_prompt(records, fraction, seed) == (train, held_out)


def test_shares_hold_within_each_stratum() -> None:
    records = [preference(f"P{n}") for n in range(200)]
    parts = split_parts(records, [0.8, 0.1, 0.1], 3, stratum=lambda r: str(int(r.id[1:-5]) < 50))
    assert [len(part) for part in parts] == [160, 20, 20]
    assert [sum(int(r.id[1:-5]) < 50 for r in part) for part in parts] == [40, 5, 5]


def test_a_small_share_still_holds_out_a_prompt() -> None:
    train, held_out = split_by_prompt([preference(f"P{n}") for n in range(4)], 0.01, 0)
    assert (len(train), len(held_out)) == (3, 1)


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(RecipeError, match="do not sum to 1"):
        split_parts([], [0.5, 0.4], 0)
