"""DPO: TRL as shipped, TRL tuned, TRL with a compact head, and ours, on the same batches.

python -m benchmarks.dpo [--shape M] [--dtype float32] [--nf4] [--batch 4] [--batches 20]
                         [--sides tuned,compact,shipped,cached] [--memory] [--budget TOKENS]
                         [--curve STEPS]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from alignkit.forward.logps import Group, completion_logps
from alignkit.training.batching import batches_by_tokens
from alignkit.training.losses import PairLogps, PairSettings, sigmoid
from benchmarks.common import (
    PAD,
    Measured,
    PeakMemory,
    Setting,
    Side,
    base_model,
    batches_of,
    compact_head,
    compare,
    hh_pairs,
    lora,
    memory_above_model,
    needed_flops,
    on_our_layers,
    report,
    roused,
    spread,
    versions,
)
from benchmarks.tokens import id_tokenizer

BETA = 0.1


class IdsTrainer(DPOTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def trl_trainer(setting: Setting, pairs: list[dict[str, list[int]]], checkpointing: bool) -> Any:
    """TRL's own trainer on the frozen base with a LoRA adapter; its reference is the bare base."""
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=setting.batch,
        beta=BETA,
        max_length=1024,
        disable_tqdm=True,
    )
    trainer = IdsTrainer(
        model=base_model(setting),
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=id_tokenizer(),
        peft_config=lora(),
    )
    trainer.current_gradient_accumulation_steps = 1
    roused(trainer.model)
    return trainer


def trl_side(trainer: Any, checkpointing: bool = False, compact: bool = False) -> Side:
    """One TRL step: its collator, forwards, metrics and backward."""

    def step(pairs: list[dict[str, list[int]]]) -> torch.Tensor:
        with _checkpointing(trainer.model, checkpointing), compact_head(compact):
            return trainer.training_step(trainer.model, trainer.data_collator(pairs))

    return step


def our_side(model: Any, cache: dict[int, torch.Tensor] | None = None) -> Side:
    """Ours: groups, live reference (or cached, by row), the same loss and backward."""

    def step(pairs: list[dict[str, list[int]]]) -> torch.Tensor:
        model.train()
        groups = [Group(p["prompt_ids"], (p["chosen_ids"], p["rejected_ids"])) for p in pairs]
        if cache is None:
            reference = reference_sums(model, groups)
        else:
            reference = torch.stack([cache[id(pair)] for pair in pairs])
        policy = completion_logps(model, groups, pad_token_id=PAD)
        chosen, rejected = policy.sums.view(-1, 2).unbind(1)
        lengths = policy.lengths.view(-1, 2).unbind(1)
        pair = PairLogps(chosen, rejected, *reference.unbind(1), *lengths)
        loss = sigmoid(pair, PairSettings(beta=BETA)).mean()
        loss.backward()
        return loss.detach()

    return on_our_layers(model, step)


@torch.no_grad()
def reference_sums(model: Any, groups: list[Group]) -> torch.Tensor:
    """(pairs, 2) under the bare base."""
    with model.disable_adapter():
        return completion_logps(model, groups, pad_token_id=PAD).sums.view(-1, 2)


def pair_flops(config: Any, passes: float = 3) -> Any:
    def flops(pairs: list[dict[str, list[int]]]) -> float:
        scored = sum(len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
        body = sum(len(p["prompt_ids"]) for p in pairs) + scored
        return needed_flops(config, body, scored, passes)

    return flops


def sides_of(setting: Setting, names: list[str], pairs: list[Any]) -> tuple[Any, dict[str, Side]]:
    """The trainer and the sides asked for, all closed over one model."""
    trainer = trl_trainer(setting, pairs, checkpointing=False)
    model = trainer.model
    sides: dict[str, Side] = {"ours": our_side(model)}
    if "cached" in names:
        groups = [Group(p["prompt_ids"], (p["chosen_ids"], p["rejected_ids"])) for p in pairs]
        cache = {
            id(pair): reference_sums(model, [group])[0]
            for pair, group in zip(pairs, groups, strict=True)
        }
        sides["ours"] = our_side(model, cache)
    for name, options in {
        "tuned": {},
        "shipped": {"checkpointing": True},
        "compact": {"compact": True},
    }.items():
        if name in names:
            sides[f"TRL {name}"] = trl_side(trainer, **options)
    return trainer, sides


def main() -> None:
    arguments = _arguments()
    setting = Setting(
        arguments.shape, arguments.dtype, arguments.nf4, arguments.batch, arguments.batches
    )
    names = arguments.sides.split(",")
    if arguments.child:
        _peak_of(arguments.child, setting)
        return
    print(versions())
    if arguments.budget:
        print(token_budget(setting, arguments.budget))
    elif arguments.memory:
        _memory(arguments)
    elif arguments.curve:
        print(curve(setting, arguments.curve))
    else:
        for line in report(measure(setting, names), dtype=setting.dtype):
            print(line)


def measure(setting: Setting, names: list[str]) -> Measured:
    """The sides of `names` (tuned, compact, shipped; cached changes ours) on the same batches."""
    pairs = hh_pairs(setting.batch * setting.batches, 8000, setting.seed)
    trainer, sides = sides_of(setting, names, pairs)
    cached = "cached" in names
    found = compare(
        f"dpo {setting.name}" + (" cached" if cached else ""),
        trainer.model,
        sides,
        batches_of(pairs, setting.batch),
        gate=1e-4 if setting.dtype == "float32" else 1e-1,
        flops=pair_flops(trainer.model.config, 2 if cached else 3),
    )
    found.tokens = trl_tokens(pairs)
    return found


def trl_tokens(pairs: list[dict[str, list[int]]]) -> int:
    """Tokens of both sequences of each pair, un-padded: the same numerator for every side."""
    return sum(2 * len(p["prompt_ids"]) + len(p["chosen_ids"] + p["rejected_ids"]) for p in pairs)


def token_budget(setting: Setting, budget: int) -> str:
    """Batches filled by a token budget against each of TRL's batch sizes on the same pairs.

    `setting.batches` batches of ours; every side takes the pairs of one in turn.
    """
    pairs = hh_pairs(setting.batches * max(1, budget // SHORT_PAIR), 8000, setting.seed)
    trainer, sides = sides_of(setting, ["tuned"], pairs[:4])
    lengths = [sum(map(len, pair.values())) for pair in pairs]
    ratios: dict[int, list[float]] = {size: [] for size in TRL_SIZES}
    totals: dict[int, float] = dict.fromkeys(TRL_SIZES, 0.0)
    own = tokens = 0.0
    for batch in batches_by_tokens(lengths, budget)[: setting.batches]:
        chosen = [pairs[i] for i in sorted(batch)]
        spent = _seconds(sides["ours"], [chosen], trainer.model)
        own, tokens = own + spent, tokens + trl_tokens(chosen)
        for size in TRL_SIZES:
            parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
            theirs = _seconds(sides["TRL tuned"], parts, trainer.model)
            totals[size] += theirs
            ratios[size].append(theirs / spent)
    best = min(TRL_SIZES, key=totals.__getitem__)
    rates = ", ".join(f"TRL batch {size} {tokens / totals[size]:.0f}" for size in TRL_SIZES)
    return (
        f"tok/s with {budget} tokens a batch: ours {tokens / own:.0f}, {rates}; against TRL's best "
        f"(batch {best}) x{spread(ratios[best])} (total {totals[best] / own:.2f}, "
        f"n {len(ratios[best])})"
    )


TRL_SIZES = (1, 2, 4, 8)
SHORT_PAIR = 100  # tokens; there are more pairs than the batches will hold


def _seconds(step: Side, batches: list[Any], model: Any) -> float:
    start = time.process_time()
    for batch in batches:
        step(batch)
        model.zero_grad(set_to_none=True)
    return time.process_time() - start


def curve(setting: Setting, steps: int) -> str:
    """Both sides trained from the same weights on the same batches; how far their losses part."""
    pairs = hh_pairs(setting.batch * steps, 8000, setting.seed)
    trainer, sides = sides_of(setting, ["tuned"], pairs)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    losses = {}
    for name, step in sides.items():
        with torch.no_grad():
            for parameter, value in zip(trained, start, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        losses[name] = []
        for batch in batches_of(pairs, setting.batch):
            losses[name].append(float(step(batch)))
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    ours, theirs = losses["ours"], losses["TRL tuned"]
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if apart > 1e-3:
        raise SystemExit(f"{steps} steps of dpo {setting.name}: losses part by {apart:.1e}")
    return (
        f"{steps} steps of dpo {setting.name}: losses {theirs[0]:.4f} to {theirs[-1]:.4f} (TRL), "
        f"{ours[0]:.4f} to {ours[-1]:.4f} (ours), at most {apart:.1e} apart"
    )


def _memory(arguments: argparse.Namespace) -> None:
    found = {}
    for side in ("TRL tuned", "ours"):
        options = [f"--shape={arguments.shape}", f"--dtype={arguments.dtype}"]
        options += [f"--batch={arguments.batch}", "--batches=3", f"--child={side}"]
        options += ["--nf4"] if arguments.nf4 else []
        found[side] = memory_above_model("benchmarks.dpo", *options)["mib"]
    ratio = found["TRL tuned"] / found["ours"]
    print(
        f"peak memory above the model: TRL {found['TRL tuned']:.0f} MiB, "
        f"ours {found['ours']:.0f} MiB, 1/{ratio:.1f}"
    )


def _peak_of(side: str, setting: Setting) -> None:
    """Peak memory of the longest batches, printed for the parent."""
    pairs = sorted(hh_pairs(200, 8000), key=lambda p: -len(p["prompt_ids"]))
    batches = batches_of(pairs, setting.batch)[: setting.batches]
    trainer, sides = sides_of(setting, ["tuned"], pairs[:4])
    peak = PeakMemory()
    for batch in batches:
        sides[side](batch)
        trainer.model.zero_grad(set_to_none=True)
    print(json.dumps({"mib": peak.above_start()}))


@contextlib.contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    if wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            model.gradient_checkpointing_disable()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--sides", default="tuned,compact")
    parser.add_argument("--budget", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--curve", type=int, default=0, help="steps to train both sides")
    parser.add_argument("--child", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
