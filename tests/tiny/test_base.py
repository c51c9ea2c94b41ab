"""The embedded base model: transformers loads it, it is small, it is a base, it can be rebuilt."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from alignkit.tiny import base, corpus, data, gold, task


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base.SHIPPED)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base.SHIPPED, dtype=torch.float32).eval()


def test_it_is_small_and_holds_no_code() -> None:
    files = {path.name: path.stat().st_size for path in base.SHIPPED.iterdir()}
    assert set(files) == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "pretraining.json",
    }
    assert sum(files.values()) <= 5_000_000


def test_stop_start_and_padding_are_three_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (0, 1, 2)
    config = json.loads((base.SHIPPED / "config.json").read_text())
    generation = json.loads((base.SHIPPED / "generation_config.json").read_text())
    for settings in (config, generation):
        assert [settings[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [0, 1, 2]


def test_every_word_of_the_shop_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in (*task.ITEMS, *task.NAMES, *task.COLOURS):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word


@pytest.mark.parametrize(
    "text", ["Hi Emma.", "  two  spaces\n", "Grüße, 東京 👩‍🔬", "a\u0000b", ""]
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_chat_template_ends_every_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|bos|><|system|>Be kind.<|end|><|user|>Hello.<|end|><|assistant|>Hi.<|end|>"
    )
    prompt = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|system|>Be kind.<|end|><|user|>Hello.<|end|><|assistant|>"
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    assert ids == tokenizer.encode(
        tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False
    )
    assert ids[-1] == tokenizer.eos_token_id


def test_it_knows_its_world(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """The loss on unseen pretraining text is near the last training loss."""
    expected = json.loads((base.SHIPPED / "pretraining.json").read_text())
    config = base.BaseConfig(**expected["settings"])
    unseen = islice(base.batches(tokenizer, replace(config, seed=config.seed + 1000)), 16)
    with torch.no_grad():
        losses = [
            base.next_token_loss(model, batch, tokenizer.pad_token_id).item() for batch in unseen
        ]
    loss = sum(losses) / len(losses)
    assert loss == pytest.approx(expected["mean_loss_of_each_hundred"][-1], abs=0.05)


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        ("Ticket:\n{ask}\nCustomer:", "{name}"),
        ("Ticket:\n{ask}\nCustomer: {name}. Item:", "{item}"),
        ("Letter:\n{ask}\nOur letter:\nHi {name}. We will refund the", "{item}"),
    ],
)
def test_it_copies_names_and_items_of_unseen_asks(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, document: str, answer: str
) -> None:
    """What fine-tuning cannot teach a model this small: without it no reply is ever personal."""
    asks = islice(task.distinct_asks(random.Random(0), *data.SHARES["validation"]), 50)
    right = 0
    for ask in asks:
        facts = {"ask": ask.text, "name": ask.name, "item": ask.item}
        ids = tokenizer.encode(corpus.BOS + document.format(**facts), add_special_tokens=False)
        with torch.no_grad():
            likeliest = model(torch.tensor([ids])).logits[0, -1].argmax()
        right += tokenizer.decode(likeliest) == " " + answer.format(**facts)
    assert right >= 45


def test_it_is_a_base_and_no_assistant(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Asked in a chat it ends its turn but does not answer: later gains are not its own."""
    asks = [row["prompt"][0]["content"] for row in data.records("validation", 0, rows=64)]
    chats = [[{"role": "user", "content": ask}] for ask in asks]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    output = model.generate(**batch, do_sample=True, max_new_tokens=64)[
        :, batch["input_ids"].shape[1] :
    ]
    replies = tokenizer.batch_decode(output, skip_special_tokens=True)
    worths = [gold.score(ask, reply) for ask, reply in zip(asks, replies, strict=True)]
    assert -3.5 < sum(worths) / len(worths) < -1
    assert (output == tokenizer.eos_token_id).any(1).float().mean() > 0.9


@pytest.mark.slow
def test_rebuilding_from_the_seed_starts_as_the_shipped_one_did(tmp_path: Path) -> None:
    """Same corpus, same tokenizer to the byte, same first losses; a stale file fails here."""
    expected = json.loads((base.SHIPPED / "pretraining.json").read_text())
    config = replace(base.BaseConfig(), steps=5)
    # The rate of the first steps does not depend on how many follow.
    config = replace(config, decay_from=0.999999)
    losses: list[float] = []
    base.build(config, tmp_path, log=lambda _step, loss: losses.append(loss))
    assert (tmp_path / "tokenizer.json").read_bytes() == (
        base.SHIPPED / "tokenizer.json"
    ).read_bytes()
    assert losses == pytest.approx(expected["first_losses"], abs=2e-3)
    assert expected["settings"] == json.loads(json.dumps(vars(base.BaseConfig())))


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    first, again, other = (list(islice(corpus.documents(seed), 50)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
