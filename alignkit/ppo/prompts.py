"""Prompts to practise on: read, held out, rendered, and fitted to the length there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignkit.data.chat import Encoder
from alignkit.data.edit.split import prompt_key, split_by_prompt
from alignkit.data.read import stream_prompts
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError, RecipeError
from alignkit.ppo.rewards import RolloutPrompt
from alignkit.recipe.settings import OnlineConfig
from alignkit.training.context import StageContext
from alignkit.training.data import load_all
from alignkit.training.rows import place


def practice_prompts(
    config: OnlineConfig, context: StageContext, encoder: Encoder
) -> tuple[list[RolloutPrompt], list[RolloutPrompt]]:
    """Prompts to train on and held-out ones: `eval_prompts`, or a share of `prompts`."""
    records = load_all(stream_prompts, config.prompts, config, context)
    held_out: list[Any] = []
    if config.eval_prompts:
        held_out = load_all(stream_prompts, config.eval_prompts, config, context)
        _tell_shared(records, held_out, context)
    elif config.eval_fraction:
        kept, split_off = split_by_prompt(records, config.eval_fraction, context.seed)
        records, held_out = list(kept), list(split_off)
    fitted = [
        fit_prompts([_rendered(record, encoder) for record in part], config, context)
        for part in (records, held_out)
    ]
    if not fitted[0]:
        raise DataError("no prompts are left to practise on", where=", ".join(config.prompts))
    return fitted[0], fitted[1]


def _tell_shared(records: Sequence[Any], held_out: Sequence[Any], context: StageContext) -> None:
    """A policy that is judged on what it practised on looks better than it is."""
    practised = {prompt_key(record) for record in records}
    shared = sum(prompt_key(record) in practised for record in held_out)
    if shared:
        context.say(
            f"{shared} of {len(held_out)} eval_prompts are among the prompts to practise on: "
            "the best checkpoint is then chosen partly by what was learned by heart"
        )


def fit_prompts(
    prompts: Sequence[RolloutPrompt], config: OnlineConfig, context: StageContext
) -> list[RolloutPrompt]:
    """Prompts that leave room for a completion, by `on_overlong`."""
    room = config.max_length - config.response_length
    long = [prompt for prompt in prompts if len(prompt.ids) > room]
    if not long:
        return list(prompts)
    found = (
        f"{len(long)} of {len(prompts)} prompts are longer than {room} tokens "
        f"(max_length {config.max_length} less response_length {config.response_length})"
    )
    if config.on_overlong == "error":
        raise DataError(
            found,
            where=long[0].where,
            hint="raise max_length, or set on_overlong to drop or truncate_prompt",
        )
    if config.on_overlong == "drop":
        context.say(f"{found}: dropped, the first at {long[0].where}")
        return [prompt for prompt in prompts if len(prompt.ids) <= room]
    context.say(f"{found}: cut from the left")
    return [replace(prompt, ids=prompt.ids[-room:]) for prompt in prompts]


def stop_ids(config: OnlineConfig, encoder: Encoder) -> list[int]:
    """Tokens that end a completion: the model's own, or the one that `stop_token` names."""
    if config.stop_token == "eos":
        return sorted(encoder.stop_token_ids)
    ids = encoder.tokenizer(config.stop_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise RecipeError(
            f"stop_token {config.stop_token!r} is {len(ids)} tokens in this model's vocabulary",
            hint="name a single token, or leave it at eos",
        )
    return [int(ids[0])]


def _rendered(record: Any, encoder: Encoder) -> RolloutPrompt:
    try:
        ids = encoder.prompt_ids(record.prompt, context=TemplateContext.of(record))
    except DataError as error:
        raise error.at(place(record)) from None
    turns = tuple(turn.model_dump(exclude={"train", "extra"}) for turn in record.prompt)
    return RolloutPrompt(place(record), turns, tuple(ids), record.extra)
