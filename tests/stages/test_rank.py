"""Rankings by a judge: best first, ties share a rank, scores stay with their candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.data.chat import Encoder
from alignkit.data.records import Candidate, Candidates, Message
from alignkit.errors import DataError
from alignkit.forward.logps import Group
from alignkit.model.backbone import REWARD
from alignkit.model.heads import ScalarHead
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages.rank import ranking_of
from alignkit.tiny.data import write
from alignkit.tiny.gold import score
from tests.workshop import Workshop


def item(*texts: str, prompt: str = "Hi") -> Candidates:
    return Candidates(
        id="i1",
        prompt=[Message(role="user", content=prompt)],
        candidates=[
            Candidate(cid=f"c{n}", messages=[Message(role="assistant", content=text)])
            for n, text in enumerate(texts)
        ],
    )


def rankings_of(workshop: Workshop, name: str) -> list[dict[str, Any]]:
    lines = (workshop.root / name / "rankings.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_noisy_score_ranks_and_the_clean_one_is_kept() -> None:
    made = ranking_of(item("x", "y", "z"), [0.1, 0.2, 0.3], [5.0, -1.0, 5.0], "gold")
    assert made.ranks == {"c0": 1, "c1": 2, "c2": 1}
    assert [c.score for c in made.candidates] == [0.1, 0.2, 0.3]
    assert (made.item, made.annotator) == ("i1", "gold")


@pytest.fixture
def candidates(workshop: Workshop) -> str:
    """The embedded candidates of 40 prompts."""
    whole = write("candidates", 0, workshop.root / "all.jsonl")
    file = workshop.root / "candidates.jsonl"
    file.write_text("".join(whole.read_text().splitlines(True)[:40]))
    return str(file)


def test_without_noise_gold_ranks_by_worth(workshop: Workshop, candidates: str) -> None:
    workshop.run("rank", candidates=candidates)
    rankings = rankings_of(workshop, "rank")
    assert len(rankings) > 30
    for row in rankings:
        prompt = row["prompt"][-1]["content"]
        worth = {c["cid"]: score(prompt, c["messages"][-1]["content"]) for c in row["candidates"]}
        assert {c["cid"]: c["score"] for c in row["candidates"]} == worth
        for one, rank in row["ranks"].items():
            for other, behind in row["ranks"].items():
                assert (rank < behind) == (worth[one] > worth[other])
                assert (rank == behind) == (worth[one] == worth[other])


def test_noise_turns_some_pairs_round_and_the_seed_decides_which(
    workshop: Workshop, candidates: str
) -> None:
    for name in ("quiet", "loud", "again"):
        workshop.run("rank", name, candidates=candidates, noise=0.0 if name == "quiet" else 2.0)
    ranks = {
        name: [row["ranks"] for row in rankings_of(workshop, name)]
        for name in ("quiet", "loud", "again")
    }
    assert ranks["loud"] == ranks["again"]
    assert ranks["loud"] != ranks["quiet"]


def test_a_reward_model_ranks_each_candidate_by_its_own_score(workshop: Workshop) -> None:
    backbone = workshop.backbone
    backbone.new_adapter(REWARD, seed=4)
    for weight in backbone.parameters_of(REWARD).values():
        weight.data += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    backbone.save_adapter(REWARD, workshop.root / "judge/adapter", head=ScalarHead(64, seed=5))
    backbone.clear()
    items = [item("Yes.", "No!", "Perhaps so", prompt="One?"), item("Soon", "Never", prompt="Two?")]
    data = workshop.write("c.jsonl", [json.loads(i.model_dump_json()) for i in items])
    workshop.run("rank", candidates=data, judge="judge")
    model, encoder = (
        RewardModel.load(backbone, workshop.root / "judge"),
        Encoder(backbone.tokenizer),
    )
    for row, asked in zip(rankings_of(workshop, "rank"), items, strict=True):
        alone = [
            model.scores(
                [
                    Group(
                        encoder.prompt_ids(asked.prompt),
                        [encoder.completion_ids(asked.prompt, candidate.messages)],
                    )
                ]
            )[0]
            for candidate in asked.candidates
        ]
        assert [c["score"] for c in row["candidates"]] == pytest.approx(alone, abs=1e-4)
        best_first = sorted(range(len(alone)), key=lambda n: -alone[n])
        assert [row["ranks"][f"c{n}"] for n in best_first] == list(range(1, len(alone) + 1))


def test_a_file_without_two_candidates_for_a_prompt_is_refused(
    workshop: Workshop, tmp_path: Path
) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(item("only").model_dump_json() + "\n")
    with pytest.raises(DataError, match="no prompt has two candidates"):
        workshop.run("rank", candidates=str(file))
