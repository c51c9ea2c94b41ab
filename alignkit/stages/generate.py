"""Sample completions, n per prompt, as candidates that people or judges can rank.

Lines are written as they come. A run that was stopped resumes after the last whole one, and since
every completion depends on (seed, row) alone, the file ends up the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alignkit.data.chat import Encoder
from alignkit.data.read import load_prompts, read_records
from alignkit.data.records import (
    Candidate,
    Candidates,
    Message,
    Prompt,
    template_keys,
    to_json,
)
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, RecipeError
from alignkit.forward.generation import Completion, generate
from alignkit.judges.completions import prompt_ids, text_of
from alignkit.model.backbone import POLICY
from alignkit.model.files import ModelFiles
from alignkit.recipe.settings import OUTPUTS, GenerateConfig
from alignkit.stages.cost import Base, Count, prompts_sampled, sampling_cost
from alignkit.stages.trial import CHOSEN, Trial, TrialRows
from alignkit.store.artifacts import write_durably
from alignkit.training.context import StageContext

BATCHES_A_PART = 4  # batches between two writes: what a stop costs at most


def run(config: GenerateConfig, context: StageContext) -> dict[str, Any]:
    """Write `candidates.jsonl`: n completions per prompt, and those of `merge`."""
    if config.temperature == 0 and config.n > 1:
        raise RecipeError(
            f"n is {config.n}, but at temperature 0 every completion of a prompt is the same",
            hint="set n to 1, or a temperature above 0",
        )
    prompts = _prompts(config, context)
    unfinished = context.directory / "candidates.part.jsonl"
    done = _whole_lines(unfinished, prompts)
    _complete(prompts, len(done), unfinished, config, context)
    items = [r for r in read_records(unfinished, rules=False) if isinstance(r, Candidates)]
    items = without_empty(merged(items, _others(config, context), context.say), context.say)
    write_durably(context.directory / OUTPUTS["generate"][""], b"".join(map(to_json, items)))
    unfinished.unlink()
    return _metrics(items)


def trial(config: GenerateConfig, rows: TrialRows) -> Trial:
    """Try one batch of completions, of the longest prompts."""
    prompts, times = rows.records(config.prompts, load_prompts)
    number = max(1, config.batch_size // config.n)
    path, _ = rows.longest(prompts[: config.limit], number)
    total = round(len(prompts) * times)
    total = min(total, config.limit or total)
    rows.leaves(total, min(number, len(prompts)))
    little = config.model_copy(update={"prompts": (CHOSEN,), "limit": None, "gate": {}})
    return Trial(little, {CHOSEN: path}, total * config.n)


def cost(config: GenerateConfig, base: Base) -> Count:
    """Count the completions of all prompts."""
    completions = prompts_sampled(config.prompts, config.limit, base) * config.n
    return sampling_cost(completions, config.max_new_tokens, config.batch_size, base)


def _prompts(config: GenerateConfig, context: StageContext) -> list[Prompt]:
    found: list[Prompt] = []
    for source in config.prompts:
        found += load_prompts(context.data_file(source)).records
    if not found:
        raise DataError("no prompts", where=", ".join(config.prompts))
    return found[: config.limit]


def _complete(
    prompts: Sequence[Prompt],
    done: int,
    file: Path,
    config: GenerateConfig,
    context: StageContext,
) -> None:
    """Append the completions of the prompts after the first `done`, part by part."""
    if done == len(prompts):
        return
    backbone = context.backbone
    encoder = Encoder(backbone.tokenizer)
    adapter = _load_policy(config, context)
    per_part = max(1, BATCHES_A_PART * config.batch_size // config.n)
    with (
        context.progress(len(prompts) * config.n, "generate") as advance,
        file.open("ab") as stream,
    ):
        advance(done * config.n)
        for start in range(done, len(prompts), per_part):
            part = prompts[start : start + per_part]
            with backbone.role(adapter) as model:
                completions = generate(
                    model,
                    [ids for p in part for ids in [prompt_ids(p, encoder)] * config.n],
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=context.seed,
                    batch_size=config.batch_size,
                    stop_token_ids=sorted(encoder.stop_token_ids),
                    pad_token_id=encoder.pad_token_id,
                    first_row=start * config.n,
                    on_progress=advance,
                )
            for index, prompt in enumerate(part):
                own = completions[index * config.n : (index + 1) * config.n]
                stream.write(to_json(_item(prompt, own, config, context, encoder)))
            stream.flush()
    backbone.clear()


def _policy_name(files: ModelFiles) -> str:
    """The run that was named as the model, else the model itself."""
    if files.adapter is None:
        return files.name
    inner = files.adapter.name == "adapter"
    return files.adapter.parent.name if inner else files.adapter.name


def _load_policy(config: GenerateConfig, context: StageContext) -> str | None:
    """Load the adapter to sample from: the named run's, the one the model came with, or none."""
    backbone = context.backbone
    backbone.clear()
    start = context.adapter(config.policy) if config.policy else backbone.files.adapter
    if start is None:
        return None
    backbone.load_adapter(POLICY, start)
    return POLICY


def _item(
    prompt: Prompt,
    completions: Sequence[Completion],
    config: GenerateConfig,
    context: StageContext,
    encoder: Encoder,
) -> Candidates:
    name = config.policy or _policy_name(context.backbone.files)
    settings = {
        "seed": context.seed,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": config.max_new_tokens,
    }
    return Candidates(
        id=prompt.id,
        prompt=prompt.prompt,
        source=prompt.source,
        extra=prompt.extra,
        **template_keys(prompt),
        candidates=[
            Candidate(
                cid=f"{Path(name).name}-{number}",
                messages=[Message(role="assistant", content=text_of(completion.ids, encoder))],
                model=name,
                gen={**settings, "sample": number, "stopped": completion.stopped},
            )
            for number, completion in enumerate(completions)
        ],
    )


def merged(
    items: Sequence[Candidates], others: Iterator[Candidates], say: Callable[[str], None]
) -> list[Candidates]:
    """Add the candidates that others have for the same prompt; equal texts count once."""
    found = {_key(item): item.model_copy(deep=True) for item in items}
    strangers = 0
    for other in others:
        item = found.get(_key(other))
        if item is None:
            strangers += 1
            continue
        for candidate in other.candidates:
            _add(item, candidate)
    if strangers:
        say(f"{strangers} merged rows are of other prompts and were left out")
    return list(found.values())


def without_empty(items: Sequence[Candidates], say: Callable[[str], None]) -> list[Candidates]:
    """Drop empty completions, which nobody can rank. Raises DataError where none is left."""
    kept, dropped = [], 0
    for item in items:
        speaking = [c for c in item.candidates if c.messages[-1].content.strip()]
        dropped += len(item.candidates) - len(speaking)
        if speaking:
            kept.append(item.model_copy(update={"candidates": speaking}))
    if dropped:
        say(f"{dropped} empty completions were left out")
    if not kept:
        raise DataError("every completion is empty", hint="train the policy first, or longer")
    return kept


def _add(item: Candidates, candidate: Candidate) -> None:
    if any(candidate.messages == own.messages for own in item.candidates):
        return
    taken = {own.cid for own in item.candidates}
    cid, number = candidate.cid, 2
    while cid in taken:
        cid, number = f"{candidate.cid}.{number}", number + 1
    item.candidates.append(candidate.model_copy(update={"cid": cid}))


def _key(item: Candidates) -> str:
    """Equal for items of the same prompt, tools included."""
    turns = [turn.model_dump(exclude={"train", "extra"}) for turn in item.prompt]
    return json.dumps([turns, TemplateContext.of(item).variables], sort_keys=True)


def _others(config: GenerateConfig, context: StageContext) -> Iterator[Candidates]:
    for source in config.merge:
        for record in read_records(context.data_file(source), kinds={"candidates"}):
            if isinstance(record, Candidates):
                yield record


def _whole_lines(file: Path, prompts: Sequence[Prompt]) -> list[bytes]:
    """Keep the whole lines of an unfinished file; cut off a torn last one."""
    if not file.exists():
        return []
    lines = [line for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")]
    if len(lines) > len(prompts):
        lines = []
    write_durably(file, b"".join(lines))
    return lines


def _metrics(items: Sequence[Candidates]) -> dict[str, Any]:
    all_candidates = [candidate for item in items for candidate in item.candidates]
    own = [c for c in all_candidates if c.gen and "stopped" in c.gen]
    texts = {(item.id, c.messages[-1].content) for item in items for c in item.candidates}
    return {
        "prompts": len(items),
        "candidates": len(all_candidates),
        "distinct_share": len(texts) / len(all_candidates),
        "eos_rate": sum(bool(c.gen and c.gen["stopped"]) for c in own) / max(len(own), 1),
    }
