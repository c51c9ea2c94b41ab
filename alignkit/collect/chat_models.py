"""Load models for a chat that streams text while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from alignkit.collect.chat import ChatModel
from alignkit.data.chat import Encoder
from alignkit.data.records import Message
from alignkit.model.backbone import POLICY, Backbone
from alignkit.recipe.settings import BackboneConfig


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 256


def load_chat_model(config: BackboneConfig, sampling: SamplingSettings) -> ChatModel:
    """Load a model or a finished run once and return a function that samples from it."""
    backbone = Backbone.load(config)
    adapter = backbone.files.adapter
    if adapter is not None:
        backbone.load_adapter(POLICY, adapter)
    encoder = Encoder(backbone.tokenizer)

    def complete(messages: list[Message], seed: int, on_text: Callable[[str], None]) -> str:
        ids = encoder.prompt_ids(messages)
        streamer = TextStreamer(encoder, on_text)
        with backbone.role(POLICY if adapter is not None else None) as model, torch.no_grad():
            _sample(model, ids, seed, sampling, encoder, streamer)
        return streamer.finish()

    return complete


@dataclass
class TextStreamer:
    """A streamer for transformers' `generate` that passes on text as its characters complete."""

    encoder: Encoder
    on_text: Callable[[str], None]
    past_prompt: bool = False
    ids: list[int] = field(default_factory=list)
    streamed: str = ""

    def put(self, tokens: torch.Tensor) -> None:
        """Take the prompt first, which is skipped, then one token at a time."""
        if not self.past_prompt:
            self.past_prompt = True
            return
        self.ids += tokens.flatten().tolist()
        text = self.encoder.decode(self.ids)
        # A character may need several tokens; until the last one it decodes to U+FFFD.
        if not text.endswith("\ufffd"):
            self._stream(text)

    def end(self) -> None:
        """Do nothing: transformers calls this at the end, and `finish` does the rest."""

    def finish(self) -> str:
        """Stream the remaining text and return the whole completion."""
        self._stream(self.encoder.decode(self.ids))
        return self.streamed

    def _stream(self, text: str) -> None:
        if text.startswith(self.streamed) and len(text) > len(self.streamed):
            self.on_text(text[len(self.streamed) :])
            self.streamed = text


def _sample(
    model: Any,
    ids: list[int],
    seed: int,
    sampling: SamplingSettings,
    encoder: Encoder,
    streamer: TextStreamer,
) -> None:
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    sampled = sampling.temperature > 0
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampled else {}
    config = GenerationConfig(
        do_sample=sampled,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(encoder.stop_token_ids),
        pad_token_id=encoder.pad_token_id,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            streamer=streamer,
        )
