"""Compare policies on prompts they have not seen: scores, KL, lengths and win rates.

for each temperature: every policy samples one completion (or n) per prompt
score judges score every completion; every judge compares it with the baseline's to the same prompt
KL to the baseline is the mean log-ratio of completions sampled at temperature 1
all judgements of a temperature stand in one file, beside the same completions as candidates for
people to rank, so that `alignkit eval winrate` puts all judges in one table
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from alignkit.data.read import load_prompts
from alignkit.data.records import Prompt
from alignkit.errors import DataError
from alignkit.evaluation.winrate import winrate_report
from alignkit.judges import Judge, open_judges
from alignkit.judges.completions import Policy, PolicySampler, Sampling
from alignkit.judges.policies import PolicyComparison, PolicyResult, compare_policies
from alignkit.judges.scores import ScoreJudge
from alignkit.recipe.settings import EvaluateConfig
from alignkit.scorers import Resources
from alignkit.scorers.backbones import Backbones
from alignkit.scorers.reward_run import RewardRun
from alignkit.stages.cost import Base, Count, prompts_sampled, sampling_cost
from alignkit.stages.trial import CHOSEN, Trial, TrialRows
from alignkit.store.artifacts import write_durably
from alignkit.training.context import StageContext

SAMPLES = 8
CACHE = "cache"  # completions and replies of judges, until the stage is complete


def run(config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
    """Sample, score and judge; rows of the table, samples, and judgements on disk."""
    prompts = _prompts(config, context)
    policies = [
        _policy(name, context) for name in dict.fromkeys([config.baseline, *config.policies])
    ]
    with ExitStack() as closing:
        judges = _judges(config, context, closing)
        compared = {
            temperature: _compared(temperature, prompts, policies, judges, config, context)
            for temperature in sorted(set(config.temperatures), reverse=True)
        }
    context.backbone.clear()
    _write_replies(compared, policies, context.directory / "replies.jsonl")
    agreement = {
        f"{temperature:g}": _write_judgements(compared[temperature], temperature, config, context)
        for temperature in config.temperatures
    }
    shutil.rmtree(context.directory / CACHE, ignore_errors=True)
    rows = [
        _row(name, temperature, compared, judges, config, context)
        for name in config.policies
        for temperature in compared
    ]
    return {
        "rows": rows,
        "baseline": config.baseline,
        "judge": judges[0].name,
        "agreement": agreement,
        "prompts": len(prompts),
        "samples": _samples(compared[min(compared)], config.policies, judges[0].name),
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


def _prompts(config: EvaluateConfig, context: StageContext) -> list[Prompt]:
    prompts: list[Prompt] = []
    for source in config.prompts:
        prompts += load_prompts(context.data_file(source)).records
    prompts = prompts[: config.limit]
    if not prompts:
        raise DataError("no prompt to evaluate on", where=", ".join(config.prompts))
    return prompts


def _policy(name: str, context: StageContext) -> Policy:
    """A stage or run on the recipe's backbone; `base` is the bare model."""
    adapter = None if name == "base" else context.adapter(name)
    return Policy(name, replace(context.backbone.files, adapter=adapter))


def _judges(config: EvaluateConfig, context: StageContext, closing: ExitStack) -> list[Judge]:
    """Open all judges, that of `reward_model` last; the first decides the table's win rates."""
    resources = Resources(
        backbones=Backbones.sharing(context.backbone),
        run=context.artifact,
        run_name=str,
        file=context.data_file,
        batch_size=config.batch_size,
        settings={"cache": context.directory / CACHE / "replies.db"},
        say=context.say,
        closing=closing,
    )
    return open_judges([*config.judge, *filter(None, [config.reward_model])], resources)


def _compared(
    temperature: float,
    prompts: Sequence[Prompt],
    policies: Sequence[Policy],
    judges: Sequence[Judge],
    config: EvaluateConfig,
    context: StageContext,
) -> PolicyComparison:
    sampling = Sampling(
        temperature,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=context.seed,
    )
    return compare_policies(
        policies,
        config.baseline,
        prompts,
        judges,
        PolicySampler(
            sampling,
            context.directory / CACHE,
            Backbones.sharing(context.backbone),
            context.progress,
        ),
        settings={
            "temperature": temperature,
            "max_new_tokens": config.max_new_tokens,
            "seed": context.seed,
        },
        n_samples=config.n_samples if temperature > 0 else 1,
    )


def _write_judgements(
    compared: PolicyComparison, temperature: float, config: EvaluateConfig, context: StageContext
) -> dict[str, Any] | None:
    """Write every judge's verdicts and what people may rank; how far the judges agree."""
    file = _file(context, "judgements", temperature)
    compared.write(file, _file(context, "candidates", temperature))
    if not compared.judgements:
        return None
    found: dict[str, Any] | None = winrate_report(file, baseline=config.baseline)["agreement"]
    return found


def _file(context: StageContext, what: str, temperature: float) -> Path:
    return context.directory / f"{what}-{temperature:g}.jsonl"


# --- the table ---------------------------------------------------------------------------------


def _row(
    policy: str,
    temperature: float,
    compared: Mapping[float, PolicyComparison],
    judges: Sequence[Judge],
    config: EvaluateConfig,
    context: StageContext,
) -> dict[str, Any]:
    """One line of the table: a policy at a temperature."""
    result = compared[temperature].results[policy]
    # KL is that of the policy, measured where it can be: on its samples at temperature 1.
    plain = compared.get(1.0) if temperature <= 1.0 else None
    reward = config.reward_model or next((j.name for j in judges if _is_reward(j)), None)
    row = {
        "policy": policy,
        "temperature": temperature,
        "gold": _mean_score(result, "gold"),
        "reward": _mean_score(result, reward),
        "kl": None if plain is None else _mean(plain.results[policy].log_ratios),
        "length": _mean([len(c.ids) for c in result.completions]),
        "eos_rate": _mean([c.stopped for c in result.completions]),
        "distinct": len(set(result.texts)) / len(result.texts),
        "win_rate": None,
        "low": None,
        "high": None,
        "n": len(compared[temperature].prompts),
    }
    if policy != config.baseline:
        row |= _win_rate(policy, temperature, judges[0].name, config, context)
    return row


def _is_reward(judge: Judge) -> bool:
    return isinstance(judge, ScoreJudge) and isinstance(judge.scorer, RewardRun)


def _win_rate(
    policy: str, temperature: float, judge: str, config: EvaluateConfig, context: StageContext
) -> dict[str, Any]:
    """The first judge's rate over the baseline, read back from the judgements on disk."""
    file = _file(context, "judgements", temperature)
    report = winrate_report(file, a=policy, b=config.baseline, bootstrap=0)
    alone = next((r for r in report["per_judge"] or () if r["judge"] == judge), report)
    ci = alone["ci"] or {"low": None, "high": None}
    return {"win_rate": alone["win_rate"], "low": ci["low"], "high": ci["high"]}


def _mean_score(result: PolicyResult, judge: str | None) -> float | None:
    scores = result.scores.get(judge or "", ())
    return _mean([score.value for score in scores if score.value is not None])


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


# --- completions for people to read ------------------------------------------------------------


def _write_replies(
    compared: Mapping[float, PolicyComparison], policies: Sequence[Policy], file: Path
) -> None:
    rows = [
        {
            "prompt_id": comparison.names[i % len(comparison.names)],
            "policy": policy.name,
            "temperature": temperature,
            "reply": completion.text,
            "stopped": completion.stopped,
            "log_ratio": result.log_ratios[i] if result.log_ratios else None,
            "scores": {judge: scores[i].value for judge, scores in result.scores.items()},
        }
        for policy in policies
        for temperature, comparison in compared.items()
        for result in [comparison.results[policy.name]]
        for i, completion in enumerate(result.completions)
    ]
    write_durably(file, b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _samples(
    coolest: PolicyComparison, policies: Sequence[str], judge: str
) -> list[dict[str, Any]]:
    """A few prompts with every policy's least random completion and its score."""
    results = {name: coolest.results[name] for name in policies}
    scored = {name: r.scores[judge] for name, r in results.items() if judge in r.scores}
    return [
        {
            "prompt": prompt.prompt[-1].content,
            "replies": {name: result.texts[i] for name, result in results.items()},
            "scores": {name: scores[i].value for name, scores in scored.items()},
        }
        for i, prompt in enumerate(coolest.prompts[:SAMPLES])
    ]
