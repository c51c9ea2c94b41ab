"""Read the prompts to train on, hold some out, render them, and fit them to the length allowed."""

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


def read_prompts(
    config: OnlineConfig, context: StageContext, encoder: Encoder
) -> tuple[list[RolloutPrompt], list[RolloutPrompt]]:
    """Return prompts to train on and held-out ones: `eval_prompts`, or a share of `prompts`.

    Raise DataError when none is left to train on.
    """
    records = load_all(stream_prompts, config.prompts, config, context)
    held_out: list[Any] = []
    if config.eval_prompts:
        held_out = load_all(stream_prompts, config.eval_prompts, config, context)
        _warn_of_shared(records, held_out, context)
    elif config.eval_fraction:
        train, split_off = split_by_prompt(records, config.eval_fraction, context.seed)
        records, held_out = list(train), list(split_off)
    fitted = [
        fit_prompts([_render(record, encoder) for record in part], config, context)
        for part in (records, held_out)
    ]
    if not fitted[0]:
        raise DataError("no prompts are left to train on", where=", ".join(config.prompts))
    return fitted[0], fitted[1]


def _warn_of_shared(records: Sequence[Any], held_out: Sequence[Any], context: StageContext) -> None:
    """Warn about held-out prompts that are trained on: they make the policy look too good."""
    trained = {prompt_key(record) for record in records}
    shared = sum(prompt_key(record) in trained for record in held_out)
    if shared:
        context.say(
            f"{shared} of {len(held_out)} eval_prompts are among the training prompts: "
            "the best checkpoint is then chosen partly by what the policy memorised"
        )


def fit_prompts(
    prompts: Sequence[RolloutPrompt], config: OnlineConfig, context: StageContext
) -> list[RolloutPrompt]:
    """Return prompts that leave room for a completion; treat the others as `on_overlong` says.

    Raise DataError naming the first one when it says `error`.
    """
    room = config.max_length - config.response_length
    long = [prompt for prompt in prompts if len(prompt.ids) > room]
    if not long:
        return list(prompts)
    problem = (
        f"{len(long)} of {len(prompts)} prompts are longer than {room} tokens "
        f"(max_length {config.max_length} less response_length {config.response_length})"
    )
    if config.on_overlong == "error":
        raise DataError(
            problem,
            where=long[0].where,
            hint="raise max_length, or set on_overlong to drop or truncate_prompt",
        )
    if config.on_overlong == "drop":
        context.say(f"{problem}: dropped, the first at {long[0].where}")
        return [prompt for prompt in prompts if len(prompt.ids) <= room]
    context.say(f"{problem}: cut from the left")
    return [replace(prompt, ids=prompt.ids[-room:]) for prompt in prompts]


def stop_ids(config: OnlineConfig, encoder: Encoder) -> list[int]:
    """Return the tokens that end a completion: the model's own, or the one that `stop_token` names.

    Raise RecipeError when that is not a single token.
    """
    if config.stop_token == "eos":
        return sorted(encoder.stop_token_ids)
    ids = encoder.tokenizer(config.stop_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise RecipeError(
            f"stop_token {config.stop_token!r} is {len(ids)} tokens in this model's vocabulary",
            hint="name a single token, or keep the default, eos",
        )
    return [int(ids[0])]


def _render(record: Any, encoder: Encoder) -> RolloutPrompt:
    try:
        ids = encoder.prompt_ids(record.prompt, context=TemplateContext.of(record))
    except DataError as error:
        raise error.at(place(record)) from None
    turns = tuple(turn.model_dump(exclude={"train", "extra"}) for turn in record.prompt)
    return RolloutPrompt(place(record), turns, tuple(ids), record.extra)
