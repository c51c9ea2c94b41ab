"""A tokenizer that only carries special ids: benchmark rows are ids already."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def id_tokenizer() -> Any:
    """pad 0, bos 1, eos 2."""
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="</s>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
