"""Policies compared on prompts they have not seen: scores, KL, lengths and win rates.

for each policy and temperature: one reply (or n) to each prompt
judges score every reply; a reply wins against the baseline's to the same prompt by score
KL to the baseline is the mean log-ratio of replies sampled at temperature 1
every judge's verdicts on every policy stand in one file a temperature, beside the same replies as
candidates for people to rank, so that `alignkit eval winrate` puts all judges in one table
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch

from alignkit.data.chat import Encoder
from alignkit.data.read import load_prompts
from alignkit.data.records import Judgement, Message, Prompt, to_json
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError
from alignkit.evaluation.winrate import winrate_report
from alignkit.forward.generation import Completion, generate
from alignkit.forward.logps import Group, completion_logps
from alignkit.judges.both_orders import prompt_names
from alignkit.judges.contest import for_people
from alignkit.judges.gold import gold_score
from alignkit.model.backbone import POLICY, REFERENCE, Backbone
from alignkit.recipe.settings import EvaluateConfig
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages.cost import Base, Count, prompts_sampled, sampling_cost
from alignkit.stages.trial import CHOSEN, Trial, TrialRows
from alignkit.store.artifacts import write_durably
from alignkit.training.context import StageContext
from alignkit.training.trainer import batches

SAMPLES = 8


@dataclass
class Replies:
    """What one policy said at one temperature, to every prompt `n` times over."""

    policy: str
    temperature: float
    completions: list[Completion]
    texts: list[str]
    kl: float | None = None
    log_ratios: list[float] | None = None  # log pi - log baseline of each reply, at temperature 1
    scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Questions:
    """Prompts as messages and as token ids, each repeated `n_samples` times where sampled."""

    messages: list[list[Message]]
    ids: list[list[int]]
    names: list[str]
    prompts: Sequence[Prompt] = ()


def run(config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
    """Generate, score and judge; rows of the table, samples, and judgements on disk."""
    encoder = Encoder(context.backbone.tokenizer)
    questions = _questions(config, context, encoder)
    policies = list(dict.fromkeys([config.baseline, *config.policies]))
    said = list(_replies(policies, config, context, encoder, questions))
    _score(said, config, context, questions)
    _write_replies(said, questions, context.directory / "replies.jsonl")
    agreement = {
        f"{temperature:g}": _judged(said, temperature, config, context, questions)
        for temperature in config.temperatures
    }
    ordered = [r for name in config.policies for r in said if r.policy == name]
    rows = [_row(replies, config, context, questions) for replies in ordered]
    return {
        "rows": rows,
        "baseline": config.baseline,
        "judge": config.judge[0],
        "agreement": agreement,
        "prompts": len(questions.names),
        "samples": _samples(ordered, questions, config.judge[0]),
    }


def trial(config: EvaluateConfig, rows: TrialRows) -> Trial:
    """Try one batch of the baseline's replies to the longest prompts, judged."""
    prompts, times = rows.records(config.prompts, load_prompts)
    path, _ = rows.longest(prompts[: config.limit], config.batch_size)
    total = len(prompts) * times
    total = min(total, config.limit or total)
    little = config.model_copy(
        update={
            "prompts": (CHOSEN,),
            "policies": (config.baseline,),
            "temperatures": config.temperatures[:1],
            "n_samples": 1,
            "limit": None,
            "gate": {},
        }
    )
    trials = total * _replies_per_prompt(config) / min(config.batch_size, len(prompts))
    return Trial(little, {CHOSEN: path}, trials, as_a_whole=True)


def cost(config: EvaluateConfig, base: Base) -> Count:
    """Count the replies of all policies."""
    prompts = prompts_sampled(config.prompts, config.limit, base)
    replies = prompts * _replies_per_prompt(config)
    return sampling_cost(replies, config.max_new_tokens, config.batch_size, base)


def _replies_per_prompt(config: EvaluateConfig) -> int:
    """Of all policies at all temperatures."""
    sampled = sum(config.n_samples if warm > 0 else 1 for warm in config.temperatures)
    return sampled * len({config.baseline, *config.policies})


def _questions(config: EvaluateConfig, context: StageContext, encoder: Encoder) -> Questions:
    prompts: list[Prompt] = []
    for source in config.prompts:
        prompts += load_prompts(context.data_file(source)).records
    prompts = prompts[: config.limit]
    if not prompts:
        raise DataError("no prompt to evaluate on", where=", ".join(config.prompts))
    messages = [list(p.prompt) for p in prompts]
    ids = [encoder.prompt_ids(p.prompt, context=TemplateContext.of(p)) for p in prompts]
    return Questions(messages, ids, prompt_names(prompts), prompts)


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
        ratios: list[float] | None = None
        for temperature in sorted(config.temperatures, reverse=True):
            replies = _generate(name, adapter, temperature, config, context, encoder, questions)
            if temperature == 1.0:
                ratios = _log_ratios(
                    backbone, adapter, baseline, replies, questions, encoder, config
                )
                replies.log_ratios = ratios
            replies.kl = _mean(ratios)
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
def _log_ratios(
    backbone: Backbone,
    adapter: str | None,
    baseline: str | None,
    replies: Replies,
    questions: Questions,
    encoder: Encoder,
    config: EvaluateConfig,
) -> list[float]:
    """log pi - log baseline of each reply, nats; their mean is the k1 estimate of their KL."""
    groups = _groups(replies, questions)
    sums = []
    for role in (adapter, baseline):
        with backbone.role(role) as model:
            parts = [
                completion_logps(model, part, pad_token_id=encoder.pad_token_id).sums
                for part in batches(groups, config.batch_size)
            ]
        sums.append(torch.cat(parts))
    ratios: list[float] = (sums[0] - sums[1]).tolist()
    return ratios


def _groups(replies: Replies, questions: Questions) -> list[Group]:
    n = len(questions.ids)
    return [Group(questions.ids[i % n], [c.ids]) for i, c in enumerate(replies.completions)]


# --- scores and verdicts ---------------------------------------------------------------------


def _score(
    said: Sequence[Replies], config: EvaluateConfig, context: StageContext, questions: Questions
) -> None:
    """Every judge's score of every reply, the reward model's among them, under its name."""
    for name in _judges(config):
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


def _judges(config: EvaluateConfig) -> list[str]:
    """Whoever scores replies; the first decides the table's win rates."""
    return list(dict.fromkeys([*config.judge, *filter(None, [config.reward_model])]))


def _row(
    replies: Replies, config: EvaluateConfig, context: StageContext, questions: Questions
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
        found |= _win_rate(replies, config, context)
    return found


def _win_rate(replies: Replies, config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
    """The first judge's rate over the baseline, read back from the judgements on disk."""
    report = winrate_report(
        _file(context, "judgements", replies.temperature),
        a=replies.policy,
        b=config.baseline,
        bootstrap=0,
    )
    alone = next((r for r in report["per_judge"] or () if r["judge"] == config.judge[0]), report)
    ci = alone["ci"]
    return {"win_rate": alone["win_rate"], "low": ci["low"], "high": ci["high"]}


def _file(context: StageContext, what: str, temperature: float) -> Path:
    return context.directory / f"{what}-{temperature:g}.jsonl"


def _judged(
    said: Sequence[Replies],
    temperature: float,
    config: EvaluateConfig,
    context: StageContext,
    questions: Questions,
) -> dict[str, Any] | None:
    """Write every judge's verdicts and what people may rank; how far the judges agree."""
    here = [replies for replies in said if replies.temperature == temperature]
    theirs = next(replies for replies in here if replies.policy == config.baseline)
    settings = {
        "temperature": temperature,
        "max_new_tokens": config.max_new_tokens,
        "seed": context.seed,
    }
    judgements = [
        judgement
        for judge in _judges(config)
        for ours in here
        if ours is not theirs
        for judgement in _judgements(ours, theirs, judge, questions, settings)
    ]
    file = _file(context, "judgements", temperature)
    write_durably(file, b"".join(map(to_json, judgements)))
    # One reply of each policy: people need not read every sample.
    answers = {replies.policy: replies.texts[: len(questions.names)] for replies in here}
    for_people(questions.prompts, answers, _file(context, "candidates", temperature))
    if not judgements:
        return None
    found: dict[str, Any] | None = winrate_report(file, baseline=config.baseline)["agreement"]
    return found


def _judgements(
    ours: Replies,
    theirs: Replies,
    judge: str,
    questions: Questions,
    settings: dict[str, Any] | None = None,
) -> Iterator[Judgement]:
    """A score judge has no order to be biased by, so each pair of replies is judged once."""
    n = len(questions.names)
    scores = zip(ours.scores[judge], theirs.scores[judge], strict=True)
    for i, (left, right) in enumerate(scores):
        known = questions.prompts[i % n].extra if questions.prompts else {}
        extra = known | {"score_a": left, "score_b": right}
        if settings is not None:
            extra["settings"] = settings
        if ours.log_ratios is not None:
            extra["log_ratio_a"] = ours.log_ratios[i]
        yield Judgement(
            id=f"{questions.names[i % n]}-{ours.policy}-{judge}-{i // n}",
            prompt_id=questions.names[i % n],
            a=ours.policy,
            b=theirs.policy,
            verdict="a" if left > right else "b" if right > left else "tie",
            judge=judge,
            prompt=questions.messages[i % n],
            output_a=ours.texts[i],
            output_b=theirs.texts[i],
            extra=extra,
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
            "log_ratio": replies.log_ratios[i] if replies.log_ratios else None,
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
