"""Completions of prompts of real lengths: our decoder against transformers' `generate`.

    python -m benchmarks.generate [--shape M] [--batch 16] [--tokens 48] [--batches 20]

Three ways, batch by batch in turn, greedy so that their tokens must be the same: ours on a 4-bit
base with a LoRA adapter (merging is part of every call), `generate` on that same model (what a
trainer does between its steps), and `generate` on a dense copy with the adapter merged beforehand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoModelForCausalLM, GenerationConfig

from alignkit.forward.generation import generate, left_padded
from benchmarks.common import (
    PAD,
    Measured,
    Setting,
    base_model,
    batches_of,
    hh_pairs,
    needed_flops,
    report,
    versions,
    weights,
    with_adapter,
)

Prompts = list[list[int]]
Complete = Callable[[Prompts], list[list[int]]]


def measure(setting: Setting, tokens: int) -> Measured:
    """Seconds of the three ways over the same prompts; ends when a token differs."""
    count = setting.batch * setting.batches
    prompts = [pair["prompt_ids"] for pair in hh_pairs(count, 8000, setting.seed)]
    model = with_adapter(base_model(setting)).eval()
    merged = dense(model, setting)
    sides = {
        "ours": ours(model, tokens),
        "transformers": theirs(model, tokens),
        "transformers merged": theirs(merged, tokens),
    }
    found = Measured(f"generate {setting.name}")
    found.seconds = {side: [] for side in sides}
    found.wall = {side: [] for side in sides}
    batches = batches_of(prompts, setting.batch)
    for complete in sides.values():  # warm-up, not counted
        complete(batches[0][:2])
    for number, batch in enumerate(batches):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        answers = {}
        for side in names:
            wall, cpu = time.perf_counter(), time.process_time()
            answers[side] = sides[side](batch)
            found.seconds[side].append(time.process_time() - cpu)
            found.wall[side].append(time.perf_counter() - wall)
        check_tokens(found.name, batch, answers, merged)
        found.items += len(batch)
        found.tokens += tokens * len(batch)
        read = sum(map(len, batch))
        found.needed_flops += needed_flops(
            merged.config, read + (tokens - 1) * len(batch), tokens * len(batch), passes=1
        )
    return found


def check_tokens(name: str, batch: Prompts, answers: dict[str, Prompts], judge: Any) -> None:
    """The same greedy tokens on every side, or the benchmark ends.

    Where rows part, `judge` must find the two tokens equally likely to rounding: a random model
    has such ties, and each side may break them its own way.
    """
    for side, rows in answers.items():
        for prompt, own, other in zip(batch, answers["ours"], rows, strict=True):
            if own == other:
                continue
            at = next(i for i, pair in enumerate(zip(own, other, strict=True)) if len({*pair}) > 1)
            with torch.no_grad():
                logits = judge(torch.tensor([prompt + own[:at]])).logits[0, -1]
            gap = abs(float(logits[own[at]] - logits[other[at]]))
            if gap > TIE:
                raise SystemExit(f"{name}: {side} says another token, {gap:.2g} nats from ours")


TIE = 1e-4  # nats


def ours(model: Any, tokens: int) -> Complete:
    """All prompts as one batch through alignkit's decoder."""

    def complete(prompts: Prompts) -> list[list[int]]:
        found = generate(
            model,
            prompts,
            max_new_tokens=tokens,
            temperature=0.0,
            seed=0,
            batch_size=len(prompts),
            stop_token_ids=[],
            pad_token_id=PAD,
            merge=True,
        )
        return [completion.ids for completion in found]

    return complete


def theirs(model: Any, tokens: int) -> Complete:
    """All prompts as one left-padded batch through transformers."""
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=PAD
    )

    def complete(prompts: Prompts) -> list[list[int]]:
        ids, padding = left_padded(prompts, PAD, torch.device("cpu"))
        mask = (torch.arange(ids.shape[1]) >= padding[:, None]).long()
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return out[:, ids.shape[1] :].tolist()

    return complete


@torch.no_grad()
def dense(model: Any, setting: Setting) -> Any:
    """An fp32 model with what `model`'s base and adapter compute together."""
    plain = AutoModelForCausalLM.from_pretrained(
        weights(setting.shape, setting.dtype), dtype=torch.float32
    )
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            weight = dequantize_module_weight(layer.base_layer).float()
            plain.get_submodule(name).weight.copy_(weight + layer.get_delta_weight("default"))
    return plain.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="M")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    print(versions())
    setting = Setting(options.shape, "float32", True, options.batch, options.batches)
    *lines, _ = report(measure(setting, options.tokens))
    print("\n".join(lines))
    print(f"generate {setting.name}: every token is the same on all sides (ties apart)")


if __name__ == "__main__":
    main()
