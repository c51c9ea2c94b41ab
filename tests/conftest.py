"""Small models made on the spot, and the places tests write to. Nothing here needs a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Further cases of what a shorter one already tests.
LONG = pytest.mark.skipif(
    os.environ.get("ALIGNKIT_LONG_TESTS") != "1", reason="takes a minute; ALIGNKIT_LONG_TESTS=1"
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of 300 tokens with a ChatML template; EOS ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Callable[[str], Path]:
    """`tiny_model("llama")`: the directory of a random model of that shape with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, Path] = {}

    def make(shape: str) -> Path:
        if shape not in made:
            directory = tmp_path_factory.mktemp("models") / shape
            config = AutoConfig.for_model(
                shape,
                vocab_size=320,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            model.save_pretrained(directory)
            tiny_tokenizer.save_pretrained(directory)
            made[shape] = directory
        return made[shape]

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real files; skipped without ALIGNKIT_REAL_DATA, never silently empty."""
    place = os.environ.get("ALIGNKIT_REAL_DATA")
    if not place:
        pytest.skip("ALIGNKIT_REAL_DATA is not set")
    directory = Path(place).resolve()
    assert directory.is_dir(), f"ALIGNKIT_REAL_DATA={place} is not a directory"
    return directory
