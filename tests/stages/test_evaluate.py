"""Comparing policies: verdicts, KL and scores as worked out by hand from what was said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.data.chat import Encoder
from alignkit.data.records import Message, Prompt
from alignkit.errors import DataError
from alignkit.evaluation.winrate import winrate_report
from alignkit.forward.logps import Group
from alignkit.judges.both_orders import CompletionPair, judgement_of
from alignkit.judges.completions import Policy, PolicySampler, SampledCompletion, Sampling
from alignkit.judges.scores import Score, ScoreJudge
from alignkit.model.backbone import POLICY, REWARD
from alignkit.model.heads import ScalarHead
from alignkit.recipe.settings import EvaluateConfig
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.gold import GoldScorer
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages import evaluate
from alignkit.tiny.data import write
from alignkit.tiny.gold import score
from tests.workshop import WORDS, Workshop

PROMPTS = [{"prompt": f"Where is my {word}?"} for word in WORDS]


def leave_adapter(workshop: Workshop, directory: Path, name: str, seed: int, **saved: Any) -> None:
    """A run's directory with an adapter that answers differently from the bare model."""
    workshop.backbone.new_adapter(name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in workshop.backbone.parameters_of(name).values():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    workshop.backbone.save_adapter(name, directory / "adapter", **saved)
    workshop.backbone.clear()


@pytest.fixture
def judged(workshop: Workshop) -> Workshop:
    """With runs called `other`, a policy, and `judge`, a reward model."""
    leave_adapter(workshop, workshop.root / "other", POLICY, seed=3)
    leave_adapter(workshop, workshop.root / "judge", REWARD, seed=4, head=ScalarHead(64, seed=5))
    return workshop


def compare(workshop: Workshop, **settings: Any) -> dict[str, Any]:
    defaults = {
        "policies": ["base", "other"],
        "baseline": "base",
        "judge": "judge",
        "prompts": workshop.write("prompts.jsonl", PROMPTS),
        "max_new_tokens": 8,
    }
    return workshop.run("evaluate", **defaults | settings)


def replies_of(workshop: Workshop, policy: str, temperature: float) -> list[dict[str, Any]]:
    lines = (workshop.root / "evaluate/replies.jsonl").read_text().splitlines()
    return [
        row
        for row in map(json.loads, lines)
        if (row["policy"], row["temperature"]) == (policy, temperature)
    ]


def test_the_table_is_what_the_replies_on_disk_say(judged: Workshop) -> None:
    found = compare(judged, n_samples=2)
    rows = {(row["policy"], row["temperature"]): row for row in found["rows"]}
    assert list(rows) == [("base", 1.0), ("base", 0.0), ("other", 1.0), ("other", 0.0)]
    for (policy, temperature), row in rows.items():
        replies = replies_of(judged, policy, temperature)
        assert len(replies) == len(WORDS) * (2 if temperature else 1)
        assert row["n"] == len(WORDS)
        scores = [reply["scores"]["judge"] for reply in replies]
        assert row["reward"] == pytest.approx(sum(scores) / len(scores))
        assert row["eos_rate"] == sum(r["stopped"] for r in replies) / len(replies)
        assert row["gold"] is None
        if policy == "base":
            assert row["win_rate"] is None
            assert row["kl"] == pytest.approx(0.0, abs=1e-4)
            continue
        theirs = [r["scores"]["judge"] for r in replies_of(judged, "base", temperature)]
        wins = [(a > b) + 0.5 * (a == b) for a, b in zip(scores, theirs, strict=True)]
        assert row["win_rate"] == pytest.approx(sum(wins) / len(wins))
        assert row["win_rate"] != 0.5  # or a swap of the sides would not show
        assert 0 <= row["low"] <= row["win_rate"] <= row["high"] <= 1
        assert abs(row["kl"]) > 0.01
    assert judged.backbone.adapters == []


def test_the_higher_score_wins_and_equal_scores_tie() -> None:
    ours, theirs = map(Score, (2.0, 1.0, 1.0)), map(Score, (1.0, 1.0, 2.0))
    judge = ScoreJudge.of(GoldScorer())
    verdicts = [judge.verdict(*pair) for pair in zip(ours, theirs, strict=True)]
    pair = CompletionPair("p", [Message(role="user", content="?")], "x", "y")
    found = [judgement_of("gold", pair, v, a="ours", b="theirs") for v in verdicts]
    assert [(j.verdict, j.a, j.b, j.prompt_id) for j in found] == [
        (word, "ours", "theirs", "p") for word in ("a", "tie", "b")
    ]
    assert (found[0].extra["score_a"], found[0].extra["score_b"]) == (2.0, 1.0)


def sampler_of(workshop: Workshop, temperature: float = 1.0) -> PolicySampler:
    sampling = Sampling(temperature, max_new_tokens=8, batch_size=64, seed=7)
    context = workshop.context("evaluate")
    backbones = Backbones.sharing(workshop.backbone)
    return PolicySampler(sampling, workshop.root / "kept", backbones, context.progress)


def policy_of(workshop: Workshop, name: str) -> Policy:
    adapter = None if name == "base" else workshop.root / name / "adapter"
    return Policy(name, replace(workshop.backbone.files, adapter=adapter))


ASKED = [Prompt(prompt=[Message(role="user", content=row["prompt"])]) for row in PROMPTS]


def test_kl_is_the_policys_log_prob_minus_the_baselines(judged: Workshop) -> None:
    backbone = judged.backbone
    encoder = Encoder(backbone.tokenizer)
    said = [
        SampledCompletion("", [30, 31, 2], stopped=True),
        SampledCompletion("", [8, 2], stopped=True),
    ]
    policies = policy_of(judged, "other"), policy_of(judged, "base")
    found = sampler_of(judged).log_ratios(*policies, ASKED[:2], said)
    backbone.load_adapter(POLICY, judged.root / "other" / "adapter")

    def summed(role: str | None) -> float:
        total = 0.0
        for prompt, completion in zip(ASKED, said, strict=False):
            start = encoder.prompt_ids(prompt.prompt)
            ids = torch.tensor([start + completion.ids])
            with backbone.role(role) as model, torch.no_grad():
                logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            total += sum(logps[i - 1, ids[0, i]].item() for i in range(len(start), ids.shape[1]))
        return total

    expected = (summed(POLICY) - summed(None)) / 2
    assert abs(expected) > 0.1
    assert found is not None
    assert sum(found) / 2 == pytest.approx(expected, rel=1e-3)


def test_each_reply_gets_the_judges_score_of_its_own_prompt(judged: Workshop) -> None:
    compare(judged, temperatures=(1.0,), n_samples=2)
    encoder = Encoder(judged.backbone.tokenizer)
    said = sampler_of(judged).completions(policy_of(judged, "other"), ASKED * 2)
    model = RewardModel.load(judged.backbone, judged.root / "judge")
    # One that was cut off is read with the end token, as rewards of PPO are.
    end = encoder.end_token_id
    whole = [c.ids if c.stopped else [*c.ids, end] for c in said]
    assert not all(completion.stopped for completion in said)
    scores = [
        model.scores([Group(encoder.prompt_ids(prompt.prompt), [ids])])[0]
        for prompt, ids in zip(ASKED * 2, whole, strict=True)
    ]
    stored = replies_of(judged, "other", 1.0)
    assert [row["reply"] for row in stored] == [completion.text for completion in said]
    assert [row["scores"]["judge"] for row in stored] == pytest.approx(scores, abs=1e-3)


def test_runs_named_by_their_path_are_compared(judged: Workshop) -> None:
    context = judged.context("evaluate")
    path = "../runs/other"
    context = replace(context, inputs={path: judged.root / "other", "judge": judged.root / "judge"})
    config = EvaluateConfig(
        policies=(path,),
        baseline="base",
        judge=("judge",),
        prompts=(judged.write("prompts.jsonl", PROMPTS),),
        temperatures=(0.0,),
        max_new_tokens=4,
    )
    (row,) = evaluate.run(config, context)["rows"]
    assert row["policy"] == path
    file = context.directory / "judgements-0.jsonl"
    assert len(file.read_text().splitlines()) == len(WORDS)


def test_gold_is_the_embedded_tasks_scoring_and_limit_counts_prompts(
    judged: Workshop, tmp_path: Path
) -> None:
    prompts = str(write("test", 0, tmp_path / "test.jsonl"))
    judge = ["gold", "judge"]
    found = compare(judged, prompts=prompts, judge=judge, temperatures=(0.0,), limit=2)
    assert found["prompts"] == 2
    for row in found["rows"]:
        replies = replies_of(judged, row["policy"], 0.0)
        asked = [json.loads(line)["prompt"] for line in Path(prompts).read_text().splitlines()[:2]]
        gold = [
            score(prompt[-1]["content"], reply["reply"])
            for prompt, reply in zip(asked, replies, strict=True)
        ]
        assert row["gold"] == pytest.approx(sum(gold) / 2)
        assert row["reward"] is not None
        assert row["kl"] is None  # KL is measured on samples at temperature 1
    assert [set(sample["replies"]) for sample in found["samples"]] == [{"base", "other"}] * 2


def test_all_judges_stand_in_one_file_and_people_can_join_them(
    judged: Workshop, tmp_path: Path
) -> None:
    """The stage's win rates, KL and agreement are those of `eval winrate` on what it leaves."""
    prompts = str(write("test", 0, tmp_path / "test.jsonl", rows=12))
    found = compare(judged, prompts=prompts, judge=["gold", "judge"], temperatures=(1.0, 0.0))
    (row,) = [r for r in found["rows"] if (r["policy"], r["temperature"]) == ("other", 1.0)]
    folder = judged.root / "evaluate"
    report = winrate_report(folder / "judgements-1.jsonl")
    assert (report["a"], report["b"], report["judges"]) == ("other", "base", ["gold", "judge"])
    gold, learned = report["per_judge"]
    assert row["win_rate"] == gold["win_rate"] != learned["win_rate"]
    assert (row["low"], row["high"]) == (gold["ci"]["low"], gold["ci"]["high"])
    assert row["kl"] == pytest.approx(report["kl"]["value"])
    assert found["agreement"]["1"] == report["agreement"]
    assert report["settings"][0]["temperature"] == 1.0
    assert winrate_report(folder / "judgements-0.jsonl")["kl"] is None
    # Somebody ranks every answer of `other` first: one more judge, beside the two.
    votes = tmp_path / "votes.jsonl"
    items = [json.loads(x) for x in (folder / "candidates-1.jsonl").read_text().splitlines()]
    with votes.open("w") as file:
        for item in items:
            ranks = {c["cid"]: 1 + (c["model"] != "other") for c in item["candidates"]}
            event = {"kind": "event", "id": item["id"], "annotator": "ann", "item": item["id"]}
            texts = {"prompt": item["prompt"], "candidates": item["candidates"]}
            event |= {"action": "pair", "ranks": ranks, "extra": texts}
            file.write(json.dumps(event) + "\n")
    together = winrate_report([folder / "judgements-1.jsonl", votes], baseline="base")
    assert [r["judge"] for r in together["per_judge"]] == ["gold", "judge", "human:ann"]
    assert together["per_judge"][2]["win_rate"] == 1.0
    assert len(together["agreement"]["pairs"]) == 3
    assert together["per_judge"][2]["n"] == len(items)


def test_two_files_with_the_same_ids_are_different_prompts(judged: Workshop) -> None:
    rows = [{"kind": "prompt", "id": str(i), "prompt": [{"role": "user", "content": f"x {i}"}]}
            for i in range(3)]  # fmt: skip
    other = json.loads(json.dumps(rows).replace('"x ', '"y '))
    files = [judged.write("one.jsonl", rows), judged.write("two.jsonl", other)]
    compare(judged, prompts=files, temperatures=(0.0,))
    report = winrate_report(judged.root / "evaluate" / "judgements-0.jsonl")
    assert report["n_prompts"] == 6
    # The same file twice is the same prompts twice.
    compare(judged, prompts=[files[0], files[0]], temperatures=(0.0,))
    assert winrate_report(judged.root / "evaluate" / "judgements-0.jsonl")["n_prompts"] == 3


def test_no_prompt_is_an_error(judged: Workshop) -> None:
    empty = judged.write("empty.jsonl", [])
    with pytest.raises(DataError, match=r"no prompt|empty"):
        judged.run("evaluate", prompts=empty, policies="base", baseline="base")
