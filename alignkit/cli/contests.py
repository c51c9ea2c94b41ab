"""Sample, judge and write judgements, for `eval winrate --policies` to report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from alignkit.data.read import load_prompts
from alignkit.data.records import Prompt
from alignkit.errors import DataError, RecipeError, did_you_mean, pick
from alignkit.evaluation.winrate import WinrateOptions
from alignkit.judges import open_judges
from alignkit.judges.llm import LlmSettings
from alignkit.recipe.yaml_source import parse_yaml, raise_problems
from alignkit.scorers import Resources


def judge_policies(
    policies: Sequence[str],
    options: WinrateOptions,
    *,
    prompts: Path | None,
    judges: Sequence[str],
    judge_set: Sequence[str],
    work: Path,
    limit: int | None,
    quantization: str,
    chat_template: str | None,
    **sampling: Any,
) -> tuple[Path, WinrateOptions]:
    """Compare the policies and write the judgements; return their file, and whom to report."""
    asked = _prompts(prompts, limit)
    if not judges:
        raise RecipeError("--policies needs a judge", hint="Give --judge gold, a reward run …")
    settings = _judge_settings(judge_set) | {"cache": work / "replies.db"}
    # Checked above without torch; from here on models are loaded.
    from alignkit.judges.completions import PolicySampler, Sampling, parse_policies
    from alignkit.judges.policies import compare_policies
    from alignkit.recipe.settings import BackboneConfig
    from alignkit.run.execute import quiet_libraries
    from alignkit.scorers.backbones import Backbones
    from alignkit.store.progress import progress_bar

    quiet_libraries()
    entrants = parse_policies(policies)
    names = [entrant.name for entrant in entrants]
    baseline = options.baseline or options.b or names[0]
    pick(dict.fromkeys(names), baseline, what="baseline")
    backbones = Backbones(
        BackboneConfig.model_validate(
            {"quantization": quantization, "chat_template": chat_template}
        )
    )
    plan = Sampling(seed=options.seed, **sampling)
    with ExitStack() as closing:
        compared = compare_policies(
            entrants,
            baseline,
            asked,
            open_judges(judges, Resources(backbones, settings=settings, say=_say, closing=closing)),
            PolicySampler(plan, work, backbones, progress_bar),
            settings={
                "temperature": plan.temperature,
                "top_p": plan.top_p,
                "seed": plan.seed,
                "max_new_tokens": plan.max_new_tokens,
            },
        )
    target = work / "judgements.jsonl"
    compared.write(target, work / "candidates.jsonl")
    if len(names) > 2 and options.a is None:
        return target, replace(options, baseline=baseline, b=None)
    others = [name for name in names if name != baseline]
    return target, replace(options, a=options.a or others[0], b=baseline, baseline=None)


def _say(line: str) -> None:
    click.echo(line, err=True)


def names_of(texts: Sequence[str]) -> list[str]:
    """Policies as they were typed, with spaces or with commas between them."""
    return [name for text in texts for name in text.split(",") if name]


def _prompts(path: Path | None, limit: int | None) -> list[Prompt]:
    if path is None:
        raise RecipeError("--policies needs --prompts", hint="Give a file of prompts")
    found = load_prompts(path).records[:limit]
    if not found:
        raise DataError("no prompts", where=str(path))
    return found


def _judge_settings(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE of an llm judge; a template is read from the file it names."""
    settings: dict[str, Any] = {}
    known = {name: kind for name, kind in LlmSettings.__annotations__.items() if name not in _FIXED}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.replace("-", "_")
        if not equals or key not in known:
            raise RecipeError(
                f"--judge-set {text!r} is no setting of an llm judge{did_you_mean(key, known)}",
                hint=f"Known: {', '.join(known)}",
            )
        settings[key] = _template(value) if key == "template" else _value(key, value)
    return settings


def _value(key: str, written: str) -> Any:
    """A value as a recipe would read it: no tags, no aliases, bounded in size and depth."""
    document = parse_yaml(written, file=f"--judge-set {key}")
    raise_problems(document)
    return document.value


def _template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the judge's template cannot be read: {error}", where=path) from None


_FIXED = ("model", "url", "cache")
