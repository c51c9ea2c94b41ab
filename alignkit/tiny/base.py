"""Build the embedded base model from nothing: corpus, tokenizer, a small Llama, pretraining.

The result is in `alignkit/tiny/model` and ships with the package; `alignkit tiny-base` builds it
again from a seed. On another processor the last bits differ, but the losses do not.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alignkit.errors import TrainingFailed
from alignkit.tiny import task
from alignkit.tiny.corpus import ASSISTANT, BOS, END, PAD, SYSTEM, USER, documents

SHIPPED = Path(__file__).parent / "model"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class BaseConfig:
    """Every setting of the embedded base; saved with the weights."""

    seed: int = 0
    vocab_size: int = 1024
    tokenizer_documents: int = 20_000
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 384
    longest_document: int = 160  # tokens
    documents_per_step: int = 32
    steps: int = 2400
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    decay_from: float = 0.4  # share of the steps after which the rate falls linearly to zero
    weight_decay: float = 0.05

    def rate(self, step: int) -> float:
        """Return the learning rate at a step: linear warm-up, constant, then linear to zero."""
        rise = min(1.0, (step + 1) / self.warmup_steps)
        fall = min(1.0, (self.steps - step) / (self.steps * (1 - self.decay_from)))
        return self.learning_rate * rise * fall


def build(config: BaseConfig, output: Path, *, log: Callable[[int, float], None]) -> float:
    """Train tokenizer and model, save both to `output`, and return the mean final loss."""
    tokenizer = train_tokenizer(config)
    torch.manual_seed(config.seed)
    model = new_model(config, tokenizer)
    losses = pretrain(model, tokenizer, config, log)
    save(model, tokenizer, output)
    (output / "pretraining.json").write_text(json.dumps(account(config, losses), indent=1) + "\n")
    return losses_by_hundred(losses)[-1]


def train_tokenizer(config: BaseConfig) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with every word of the shop as one token; bos, end and pad differ."""
    special = [PAD, BOS, END, SYSTEM, USER, ASSISTANT]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = islice(documents(config.seed), config.tokenizer_documents)
    tokenizer.train_from_iterator(map(without_role_tokens, texts), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    refuse_split_words(fast)
    return fast


def without_role_tokens(document: str) -> str:
    """Replace role tokens by line breaks, so that no merge is learned from their letters."""
    for token in (BOS, END, SYSTEM, USER, ASSISTANT):
        document = document.replace(token, "\n")
    return document


def refuse_split_words(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise TrainingFailed unless each name is one token: small models copy no longer ones."""
    words = (*task.ITEMS, *task.NAMES, *task.COLOURS)
    split = [word for word in words if len(tokenizer.encode(f" {word}")) != 1]
    if split:
        raise TrainingFailed(
            f"the tokenizer splits {', '.join(split)}", hint="Raise vocab_size or the corpus"
        )


def new_model(config: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama with tied embeddings and fresh weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.05,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast, config: BaseConfig) -> Iterator[Tensor]:
    """Yield right-padded batches of whole documents, shape (documents, length).

    One document per row: with neighbours in its context, a model this small never learns to copy a
    name. Documents of similar length share a batch, so there is little padding.
    """
    stream = documents(config.seed + 1)
    order = random.Random(f"alignkit-tiny/batches/{config.seed}")
    size = config.documents_per_step
    while True:
        pool = [encoded(tokenizer, text, config) for text in islice(stream, 16 * size)]
        pool.sort(key=len)
        groups = [pool[start : start + size] for start in range(0, len(pool), size)]
        order.shuffle(groups)
        yield from (padded(group, tokenizer.pad_token_id) for group in groups)


def encoded(tokenizer: PreTrainedTokenizerFast, text: str, config: BaseConfig) -> list[int]:
    """Return a document's token ids, cut to the longest length allowed."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids[: config.longest_document]


def padded(group: list[list[int]], pad: int) -> Tensor:
    """Return the documents as one tensor (documents, length), padded on the right."""
    width = max(map(len, group))
    return torch.tensor([ids + [pad] * (width - len(ids)) for ids in group])


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: BaseConfig,
    log: Callable[[int, float], None],
) -> list[float]:
    """Train on next tokens in fp32, every row fresh; return the loss of every step.

    Raise TrainingFailed at a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(decay_groups(model, config), betas=(0.9, 0.98))
    stream = batches(tokenizer, config)
    losses: list[float] = []
    model.train()
    for step in range(config.steps):
        loss = next_token_loss(model, next(stream), tokenizer.pad_token_id)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingFailed(f"the loss is {losses[-1]} at step {step}")
        log(step, losses[-1])
    return losses


def account(config: BaseConfig, losses: list[float]) -> dict[str, object]:
    """Return settings and losses, which are saved with the weights to compare a rebuild with."""
    return {
        "settings": asdict(config),
        "first_losses": [round(loss, 5) for loss in losses[:5]],
        "mean_loss_of_each_hundred": [round(loss, 4) for loss in losses_by_hundred(losses)],
    }


def losses_by_hundred(losses: list[float]) -> list[float]:
    """Return the mean loss of each hundred steps."""
    parts = [losses[start : start + 100] for start in range(0, len(losses), 100)]
    return [sum(part) / len(part) for part in parts]


def next_token_loss(model: LlamaForCausalLM, batch: Tensor, pad: int) -> Tensor:
    """Return the mean cross-entropy over every token but padding; batch is (rows, length)."""
    labels = batch.masked_fill(batch == pad, -100)
    return model(input_ids=batch, labels=labels, use_cache=False).loss


def decay_groups(model: LlamaForCausalLM, config: BaseConfig) -> list[dict[str, object]]:
    """Return parameter groups with weight decay on matrices and none on norms."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write a directory that transformers can load."""
    output.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
