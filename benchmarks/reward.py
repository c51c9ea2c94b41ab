"""Reward model: TRL's trainer against prompts computed once, on pairs and on ranked lists.

python -m benchmarks.reward [--shape M] [--batch 4] [--batches 20] [--lists 4]
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import combinations
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from alignkit.forward.logps import Group, completion_states
from benchmarks.common import (
    PAD,
    Measured,
    Setting,
    Side,
    batches_of,
    compare,
    hh_lists,
    needed_flops,
    on_our_layers,
    report,
    roused,
    versions,
    weights,
)
from benchmarks.tokens import id_tokenizer

Ranked = dict[str, Any]  # {"prompt": ids, "completions": best first}


class IdsTrainer(RewardTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def trl_trainer(setting: Setting) -> Any:
    """TRL's own reward trainer: LoRA and a trained score head on the frozen base."""
    arguments = RewardConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        weights(setting.shape, setting.dtype), num_labels=1, dtype=getattr(torch, setting.dtype)
    )
    trainer = IdsTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"chosen_ids": [3], "rejected_ids": [4]}]),
        processing_class=id_tokenizer(),
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules="all-linear",
            task_type="SEQ_CLS",
            modules_to_save=["score"],
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    roused(trainer.model)
    return trainer


def trl_side(trainer: Any) -> Side:
    """One TRL step; a list of k becomes its k (k - 1) / 2 pairs, as TRL's data must be."""

    def step(batch: list[Ranked]) -> torch.Tensor:
        rows = [
            {"chosen_ids": [*row["prompt"], *better], "rejected_ids": [*row["prompt"], *worse]}
            for row in batch
            for better, worse in combinations(row["completions"], 2)
        ]
        return trainer.training_step(trainer.model, trainer.data_collator(rows))

    return step


def our_side(model: Any) -> Side:
    """Ours: each prompt once with all its completions, scored at their last tokens."""

    def step(batch: list[Ranked]) -> torch.Tensor:
        model.train()
        groups = [Group(row["prompt"], row["completions"]) for row in batch]
        states = completion_states(model, groups, pad_token_id=PAD, which="last")
        scores = model.get_base_model().score(states).view(len(batch), -1)
        better, worse = zip(*combinations(range(scores.shape[1]), 2), strict=True)
        loss = -F.logsigmoid(scores[:, better] - scores[:, worse]).mean()
        loss.backward()
        return loss.detach()

    return on_our_layers(model, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="M")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--lists", type=int, default=2, help="completions of each prompt")
    options = parser.parse_args()
    setting = Setting(options.shape, "float32", False, options.batch, options.batches)
    print(versions())
    for line in report(measure(setting, options.lists)):
        print(line)


def measure(setting: Setting, completions: int) -> Measured:
    """TRL against ours on lists of `completions` (2: pairs)."""
    rows = hh_lists(setting.batch * setting.batches, 8000, completions, setting.seed)
    trainer = trl_trainer(setting)
    model = trainer.model

    def flops(batch: list[Ranked]) -> float:
        tokens = sum(len(r["prompt"]) + sum(map(len, r["completions"])) for r in batch)
        return needed_flops(model.config, tokens, 0, passes=2)

    kind = "pairs" if completions == 2 else f"lists of {completions}"
    return compare(
        f"reward {setting.name} {kind}",
        model,
        {"ours": our_side(model), "TRL tuned": trl_side(trainer)},
        batches_of(rows, setting.batch),
        flops=flops,
    )


if __name__ == "__main__":
    main()
