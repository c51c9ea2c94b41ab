"""Models as speakers of a conversation: words appear as they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from alignkit.collect.chat import Speaker
from alignkit.data.chat import Encoder
from alignkit.data.records import Message
from alignkit.model.backbone import POLICY, Backbone
from alignkit.recipe.settings import BackboneConfig


@dataclass(frozen=True)
class Drawing:
    """How replies are drawn; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 256


def speaker_of(config: BackboneConfig, drawing: Drawing) -> Speaker:
    """A speaker for a model or a finished run, loaded once."""
    backbone = Backbone.load(config)
    adapter = backbone.files.adapter
    if adapter is not None:
        backbone.load_adapter(POLICY, adapter)
    encoder = Encoder(backbone.tokenizer)

    def speak(messages: list[Message], seed: int, tell: Callable[[str], None]) -> str:
        ids = encoder.prompt_ids(messages)
        words = Words(encoder, tell, len(ids))
        with backbone.role(POLICY if adapter is not None else None) as model, torch.no_grad():
            _draw(model, ids, seed, drawing, encoder, words)
        return words.finish()

    return speak


@dataclass
class Words:
    """What transformers calls a streamer: tells text as soon as its characters are whole."""

    encoder: Encoder
    tell: Callable[[str], None]
    prompt_length: int
    ids: list[int] = field(default_factory=list)
    told: str = ""

    def put(self, tokens: torch.Tensor) -> None:
        """The prompt first, then one token at a time."""
        given = tokens.flatten().tolist()
        if self.prompt_length:
            self.prompt_length = 0
            return
        self.ids += given
        text = self.encoder.decode(self.ids)
        # A character may need several tokens; its half is shown as U+FFFD until it is whole.
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> None:
        """transformers says that nothing more comes; `finish` does the rest."""

    def finish(self) -> str:
        """Tell what is left and return the whole reply."""
        self._tell(self.encoder.decode(self.ids))
        return self.told

    def _tell(self, text: str) -> None:
        if text.startswith(self.told) and len(text) > len(self.told):
            self.tell(text[len(self.told) :])
            self.told = text


def _draw(
    model: Any, ids: list[int], seed: int, drawing: Drawing, encoder: Encoder, words: Words
) -> None:
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    sampled = drawing.temperature > 0
    settings = {"temperature": drawing.temperature, "top_p": drawing.top_p} if sampled else {}
    config = GenerationConfig(
        do_sample=sampled,
        max_new_tokens=drawing.max_new_tokens,
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
            streamer=words,
        )
