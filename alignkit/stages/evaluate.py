"""Policies compared on prompts they have not seen: scores, KL, lengths and win rates.

for each policy and temperature: one reply (or n) to each prompt
judges score every reply; a reply wins against the baseline's to the same prompt by score
KL to the baseline is the mean log-ratio of replies sampled at temperature 1
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch

from alignkit.artifacts import write_durably
from alignkit.backbone import POLICY, REFERENCE, Backbone
from alignkit.data.chat import Encoder
from alignkit.data.read import load_prompts
from alignkit.data.records import Judgement, Message, to_json
from alignkit.errors import DataError
from alignkit.evaluation.winrate import winrate_report
from alignkit.generation import Completion, generate
from alignkit.judges.gold import gold_score
from alignkit.logps import Group, completion_logps
from alignkit.recipe import EvaluateConfig
from alignkit.reward_model import RewardModel
from alignkit.stages.context import StageContext
from alignkit.stages.training import batches

SAMPLES = 8


@dataclass
class Replies:
    """What one policy said at one temperature, to every prompt `n` times over."""

    policy: str
    temperature: float
    completions: list[Completion]
    texts: list[str]
    kl: float | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """Prompts as messages and as token ids, each repeated `n_samples` times where sampled."""

    messages: list[list[Message]]
    ids: list[list[int]]
    names: list[str]


def run(config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
    """Generate, score and judge; rows of the table, samples, and judgements on disk."""
    encoder = Encoder(context.backbone.tokenizer)
    questions = _questions(config, context, encoder)
    policies = list(dict.fromkeys([config.baseline, *config.policies]))
    said = list(_replies(policies, config, context, encoder, questions))
    _score(said, config, context, questions)
    _write_replies(said, questions, context.directory / "replies.jsonl")
    ordered = [r for name in config.policies for r in said if r.policy == name]
    rows = [_row(replies, said, config, context, questions) for replies in ordered]
    return {
        "rows": rows,
        "baseline": config.baseline,
        "judge": config.judge[0],
        "prompts": len(questions.names),
        "samples": _samples(ordered, questions, config.judge[0]),
    }


def _questions(config: EvaluateConfig, context: StageContext, encoder: Encoder) -> Questions:
    prompts = []
    for source in config.prompts:
        prompts += load_prompts(context.data_file(source)).records
    prompts = prompts[: config.limit]
    if not prompts:
        raise DataError("no prompt to evaluate on", where=", ".join(config.prompts))
    messages = [list(p.prompt) for p in prompts]
    names = [p.id or str(i) for i, p in enumerate(prompts)]
    return Questions(messages, [encoder.prompt_ids(m) for m in messages], names)


# --- generation ------------------------------------------------------------------------------


def _replies(
    policies: Sequence[str],
    config: EvaluateConfig,
    context: StageContext,
    encoder: Encoder,
    questions: Questions,
) -> Iterator[Replies]:
    backbone = context.backbone
    baseline = _load(backbone, REFERENCE, config.baseline, context)
    for name in policies:
        adapter = _load(backbone, POLICY, name, context)
        kl = None
        for temperature in sorted(config.temperatures, reverse=True):
            replies = _generate(name, adapter, temperature, config, context, encoder, questions)
            if temperature == 1.0:
                kl = _kl(backbone, adapter, baseline, replies, questions, encoder, config)
            replies.kl = kl
            yield replies
        backbone.delete_adapter(POLICY)
    backbone.clear()


def _load(backbone: Backbone, adapter: str, policy: str, context: StageContext) -> str | None:
    """Put the policy on the backbone; None stands for the bare model."""
    if policy == "base":
        return None
    backbone.load_adapter(adapter, context.adapter(policy))
    return adapter


def _generate(
    name: str,
    adapter: str | None,
    temperature: float,
    config: EvaluateConfig,
    context: StageContext,
    encoder: Encoder,
    questions: Questions,
) -> Replies:
    ids = questions.ids * (config.n_samples if temperature > 0 else 1)
    label = f"{name} at T={temperature:g}"
    with (
        context.backbone.role(adapter) as model,
        context.progress(len(ids), label) as advance,
    ):
        completions = generate(
            model,
            ids,
            max_new_tokens=config.max_new_tokens,
            temperature=temperature,
            seed=context.seed,
            batch_size=config.batch_size,
            stop_token_ids=sorted(encoder.stop_token_ids),
            pad_token_id=encoder.pad_token_id,
            on_progress=advance,
        )
    return Replies(name, temperature, completions, [encoder.decode(c.ids) for c in completions])


@torch.no_grad()
def _kl(
    backbone: Backbone,
    adapter: str | None,
    baseline: str | None,
    replies: Replies,
    questions: Questions,
    encoder: Encoder,
    config: EvaluateConfig,
) -> float:
    """Mean over replies of log pi - log baseline, nats: the k1 estimate of KL(pi || baseline)."""
    groups = _groups(replies, questions)
    sums = []
    for role in (adapter, baseline):
        with backbone.role(role) as model:
            parts = [
                completion_logps(model, part, pad_token_id=encoder.pad_token_id).sums
                for part in batches(groups, config.batch_size)
            ]
        sums.append(torch.cat(parts))
    return float((sums[0] - sums[1]).mean())


def _groups(replies: Replies, questions: Questions) -> list[Group]:
    n = len(questions.ids)
    return [Group(questions.ids[i % n], [c.ids]) for i, c in enumerate(replies.completions)]


# --- scores and verdicts ---------------------------------------------------------------------


def _score(
    said: Sequence[Replies], config: EvaluateConfig, context: StageContext, questions: Questions
) -> None:
    """Every judge's score of every reply, the reward model's among them, under its name."""
    names = list(dict.fromkeys([*config.judge, *filter(None, [config.reward_model])]))
    for name in names:
        if name == "gold":
            for replies in said:
                n = len(questions.messages)
                replies.scores["gold"] = [
                    gold_score(questions.messages[i % n], text)
                    for i, text in enumerate(replies.texts)
                ]
            continue
        model = RewardModel.load(context.backbone, context.artifact(name))
        for replies in said:
            replies.scores[name] = model.scores(_groups(replies, questions), config.batch_size)
        context.backbone.clear()


def _row(
    replies: Replies,
    said: Sequence[Replies],
    config: EvaluateConfig,
    context: StageContext,
    questions: Questions,
) -> dict[str, Any]:
    """One line of the table: a policy at a temperature."""
    reward = config.reward_model or next((j for j in config.judge if j != "gold"), None)
    lengths = [len(c.ids) for c in replies.completions]
    found = {
        "policy": replies.policy,
        "temperature": replies.temperature,
        "gold": _mean(replies.scores.get("gold")),
        "reward": _mean(replies.scores.get(reward)) if reward else None,
        "kl": replies.kl,
        "length": _mean(lengths),
        "eos_rate": _mean([c.stopped for c in replies.completions]),
        "distinct": len(set(replies.texts)) / len(replies.texts),
        "win_rate": None,
        "low": None,
        "high": None,
        "n": len(questions.names),
    }
    if replies.policy != config.baseline:
        other = next(
            r for r in said if r.policy == config.baseline and r.temperature == replies.temperature
        )
        found |= _win_rate(replies, other, config.judge[0], context, questions)
    return found


def _win_rate(
    ours: Replies, theirs: Replies, judge: str, context: StageContext, questions: Questions
) -> dict[str, Any]:
    """Judgements of one pair of policies, written down, and the rate read back from the file."""
    # A policy may be a run's directory, whose path is no part of a file's name.
    policy = re.sub(r"[^A-Za-z0-9_.-]+", "_", ours.policy).strip("._")
    file = context.directory / f"judgements-{policy}-{ours.temperature:g}.jsonl"
    judgements = _judgements(ours, theirs, judge, questions)
    write_durably(file, b"".join(map(to_json, judgements)))
    report = winrate_report(file, a=ours.policy, b=theirs.policy)
    return {
        "win_rate": report["win_rate"],
        "low": report["ci"]["low"],
        "high": report["ci"]["high"],
    }


def _judgements(
    ours: Replies, theirs: Replies, judge: str, questions: Questions
) -> Iterator[Judgement]:
    """A score judge has no order to be biased by, so each pair of replies is judged once."""
    n = len(questions.names)
    scores = zip(ours.scores[judge], theirs.scores[judge], strict=True)
    for i, (left, right) in enumerate(scores):
        yield Judgement(
            id=f"{questions.names[i % n]}-{i // n}",
            prompt_id=questions.names[i % n],
            a=ours.policy,
            b=theirs.policy,
            verdict="a" if left > right else "b" if right > left else "tie",
            judge=judge,
            prompt=questions.messages[i % n],
            output_a=ours.texts[i],
            output_b=theirs.texts[i],
        )


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _write_replies(said: Sequence[Replies], questions: Questions, file: Path) -> None:
    n = len(questions.names)
    rows = [
        {
            "prompt_id": questions.names[i % n],
            "policy": replies.policy,
            "temperature": replies.temperature,
            "reply": text,
            "stopped": replies.completions[i].stopped,
            "scores": {name: scores[i] for name, scores in replies.scores.items()},
        }
        for replies in said
        for i, text in enumerate(replies.texts)
    ]
    write_durably(file, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _samples(said: Sequence[Replies], questions: Questions, judge: str) -> list[dict[str, Any]]:
    """A few prompts with every policy's least random reply and its score, for people to read."""
    coolest = min(r.temperature for r in said)
    return [
        {
            "prompt": questions.messages[i][-1].content,
            "replies": {r.policy: r.texts[i] for r in said if r.temperature == coolest},
            "scores": {r.policy: r.scores[judge][i] for r in said if r.temperature == coolest},
        }
        for i in range(min(SAMPLES, len(questions.names)))
    ]
