"""SFT on completions only: TRL padded, TRL padding_free and TRL with a compact head, against ours.

python -m benchmarks.sft [--shape M] [--batch 4] [--batches 20]
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from alignkit.forward.logps import sequence_logps
from benchmarks.common import (
    PAD,
    Measured,
    Setting,
    Side,
    base_model,
    batches_of,
    compact_head,
    compare,
    hh_pairs,
    lora,
    needed_flops,
    on_our_layers,
    report,
    roused,
    versions,
)
from benchmarks.tokens import id_tokenizer

Row = dict[str, list[int]]  # prompt_ids and chosen_ids


class IdsTrainer(SFTTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def trl_trainer(setting: Setting) -> Any:
    """TRL's own SFT trainer on the frozen base with a LoRA adapter."""
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        max_length=1024,
        disable_tqdm=True,
    )
    trainer = IdsTrainer(
        model=base_model(setting),
        args=arguments,
        train_dataset=Dataset.from_list([{"input_ids": [3, 4], "labels": [-100, 4]}]),
        processing_class=id_tokenizer(),
        peft_config=lora(),
    )
    trainer.current_gradient_accumulation_steps = 1
    roused(trainer.model)
    return trainer


def trl_side(trainer: Any, padding_free: bool = False, compact: bool = False) -> Side:
    """One TRL step with its own collator."""
    collator = DataCollatorForLanguageModeling(PAD, padding_free=padding_free)

    def step(rows: list[Row]) -> torch.Tensor:
        batch = collator(
            [
                {
                    "input_ids": row["prompt_ids"] + row["chosen_ids"],
                    "labels": [-100] * len(row["prompt_ids"]) + row["chosen_ids"],
                }
                for row in rows
            ]
        )
        with compact_head(compact):
            return trainer.training_step(trainer.model, batch)

    return step


def our_side(model: Any) -> Side:
    """Ours: rows packed by segments, targets only through the head."""

    def step(rows: list[Row]) -> torch.Tensor:
        model.train()
        ids = [row["prompt_ids"] + row["chosen_ids"] for row in rows]
        masks = [[0] * len(row["prompt_ids"]) + [1] * len(row["chosen_ids"]) for row in rows]
        loss = -sequence_logps(model, ids, masks, pad_token_id=PAD).per_token.mean()
        loss.backward()
        return loss.detach()

    return on_our_layers(model, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="M")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    print(versions())
    setting = Setting(options.shape, "float32", False, options.batch, options.batches)
    for line in report(measure(setting)):
        print(line)


def measure(setting: Setting) -> Measured:
    """Three ways of TRL against ours."""
    rows = hh_pairs(setting.batch * setting.batches, 8000, setting.seed)
    trainer = trl_trainer(setting)
    model = trainer.model

    def flops(batch: list[Row]) -> float:
        scored = sum(len(row["chosen_ids"]) for row in batch)
        body = sum(len(row["prompt_ids"]) for row in batch) + scored
        return needed_flops(model.config, body, scored, passes=2)

    sides = {
        "ours": our_side(model),
        "TRL padded": trl_side(trainer),
        "TRL padding_free": trl_side(trainer, padding_free=True),
        "TRL compact": trl_side(trainer, compact=True),
    }
    return compare(
        f"sft {setting.name}", model, sides, batches_of(rows, setting.batch), flops=flops
    )


if __name__ == "__main__":
    main()
