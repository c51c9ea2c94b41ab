"""Measure the log-probs of completions a model has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.data.chat import Encoder
from alignkit.data.records import Demonstration
from alignkit.data.template_input import TemplateContext
from alignkit.errors import DataError
from alignkit.forward.logps import Group, completion_logps
from alignkit.model.backbone import POLICY, Backbone
from alignkit.model.files import find_model
from alignkit.recipe.settings import BackboneConfig
from alignkit.store.progress import progress_bar


@torch.no_grad()
def completion_log_probabilities(
    model: str,
    demonstrations: Sequence[Demonstration],
    quantization: str,
    batch_size: int,
    chat_template: str | None = None,
) -> tuple[list[float], list[int]]:
    """Sum the log-probs of each last assistant turn, stop token included; count its tokens.

    In a plain text all tokens count but the first, which nothing predicts.
    """
    files = find_model(model)
    config = BackboneConfig.model_validate(
        {
            "model_name_or_path": model,
            "quantization": quantization,
            "chat_template": chat_template,
        }
    )
    backbone = Backbone.load(config)
    encoder = Encoder(backbone.tokenizer)
    adapter = None
    if files.adapter is not None:
        backbone.load_adapter(POLICY, files.adapter)
        adapter = POLICY
    groups = [_group(demonstration, encoder) for demonstration in demonstrations]
    sums: list[float] = []
    with (
        backbone.role(adapter) as network,
        progress_bar(len(groups), "perplexity") as advance,
    ):
        for start in range(0, len(groups), batch_size):
            part = groups[start : start + batch_size]
            found = completion_logps(network, part, pad_token_id=encoder.pad_token_id)
            sums += found.sums.tolist()
            advance(len(part))
    return sums, [len(group.completions[0]) for group in groups]


def _group(demonstration: Demonstration, encoder: Encoder) -> Group:
    if demonstration.plain:
        ids = encoder.encode_text(demonstration.messages[0].content).ids
        return Group(ids[:1], [ids[1:]])
    *prompt, last = demonstration.messages
    if last.role != "assistant" or not prompt:
        source = demonstration.source
        where = None if source is None else f"{source.file}:{source.row + 1}"
        raise DataError("does not end in an answer to something", where=where)
    context = TemplateContext.of(demonstration)
    answer = encoder.completion_ids(prompt, [last], context=context)
    return Group(encoder.prompt_ids(prompt, context=context), [answer])
