"""Sample completions from any causal language model, reproducibly.

`generate` keeps the order given, batches by length, and draws each token from one uniform number
that depends only on (seed, row, step). So a completion does not change with the batch size or with
its neighbours, up to rounding of the logits. The model's own generation_config is ignored: the
arguments alone decide the distribution, so that log-probs are those of what was sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from alignkit.errors import DataError
from alignkit.forward.decoder import Decoder, decoder_for

log = logging.getLogger(__name__)

COMPACT_BELOW = 0.75  # share of unfinished rows below which copying the cache pays for itself


@dataclass(frozen=True)
class Completion:
    """Token ids (with the stop token if one came: `stopped`), and their log-probs if captured."""

    ids: list[int]
    stopped: bool
    logps: list[float] | None = None


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    seed: int,
    batch_size: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    capture_logps: bool = False,
    merge: bool | None = None,
    first_row: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Return one completion per prompt (token ids), in the order given.

    `temperature` 0 is greedy. `capture_logps` adds each token's log-prob under the model's full
    distribution at that temperature (at 1 when greedy); `top_p` does not enter it. `merge` is
    passed to `decoder_for`. `first_row` is the number of the first prompt for sampling, so that a
    part of a list gets the completions that the whole list would give it. `on_progress` is called
    with how many more completions are done. Raise DataError for a prompt without tokens.
    """
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {row + 1} of {len(prompts)} has no tokens")
    numbers = range(first_row, first_row + len(prompts))
    draws = _Draws(seed, numbers, max_new_tokens, temperature, top_p, capture_logps)
    done: list[Completion | None] = [None] * len(prompts)
    with torch.no_grad():
        complete = _completer(model, merge)
        for rows in _batches(prompts, batch_size):
            batch = _Batch(rows, [prompts[row] for row in rows], draws, set(stop_token_ids))
            complete(batch, pad_token_id, on_progress or _silent)
            for row, completion in zip(rows, batch.completions(), strict=True):
                done[row] = completion
    return [completion for completion in done if completion is not None]


def _silent(_done: int) -> None:
    """Ignore progress that nobody asked for."""


def _batches(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of row numbers: longest prompts first, equal prompts together."""
    # Longest first: if a batch does not fit in memory, the first one fails, not the last.
    order = sorted(
        range(len(prompts)), key=lambda row: (len(prompts[row]), tuple(prompts[row])), reverse=True
    )
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class _Draws:
    """Choose tokens by one uniform number in [0, 1) per (seed, row, step)."""

    def __init__(
        self,
        seed: int,
        rows: Sequence[int],
        steps: int,
        temperature: float,
        top_p: float,
        capture_logps: bool,
    ) -> None:
        self.steps = steps
        self.temperature, self.top_p, self.capture_logps = temperature, top_p, capture_logps
        self.uniforms = torch.zeros(len(rows), steps)
        if temperature > 0:
            # One generator per row, and all its numbers now: a row draws the same ones whatever
            # batch it lands in and whenever its neighbours stop.
            for position, row in enumerate(rows):
                drawn = np.random.default_rng((seed, row)).random(steps, dtype=np.float32)
                self.uniforms[position] = torch.from_numpy(drawn)

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Return tokens (rows,) and their log-probs (rows,); NaN when greedy and not captured."""
        logits = logits.float()
        if self.temperature > 0:
            if self.temperature != 1.0:
                logits = logits / self.temperature
            uniforms = self.uniforms[list(rows), step].to(logits.device)
            probabilities = logits.softmax(-1)
            tokens = draw(probabilities, uniforms, self.top_p)
            return tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log()
        tokens = logits.argmax(-1)
        if not self.capture_logps:
            return tokens, torch.full_like(logits[:, 0], float("nan"))
        chosen = logits.gather(-1, tokens[:, None])[:, 0]
        return tokens, chosen - logits.logsumexp(-1)


def draw(probabilities: Tensor, uniforms: Tensor, top_p: float = 1.0) -> Tensor:
    """Sample from probabilities (rows, vocab) by inverse transform, with uniforms u (rows,).

    With `top_p` < 1 only the nucleus takes part: the fewest tokens, likeliest first, that hold at
    least that much probability (arXiv:1904.09751). Return tokens (rows,).
    """
    if top_p >= 1.0:
        return _slice_of(probabilities.cumsum(-1), uniforms)
    likeliest, order = probabilities.sort(dim=-1, descending=True, stable=True)
    # Cut by the probability *before* a token: the token that crosses top_p still belongs to the
    # nucleus, and the likeliest one always does.
    before = likeliest.cumsum(-1) - likeliest
    likeliest = likeliest.masked_fill(before >= top_p, 0.0)
    chosen = _slice_of(likeliest.cumsum(-1), uniforms)
    return order.gather(-1, chosen[:, None])[:, 0]


def _slice_of(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first index whose cumulative sum exceeds u times the total.

    A token of probability 0 has an empty slice and is never drawn. The total is used in place of 1,
    so that neither rounding of the sum nor a nucleus needs to be renormalised.
    """
    goal = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, goal, right=True)[:, 0]
    return index.clamp(max=cumulative.shape[-1] - 1)


class _Batch:
    """The rows of a batch: the tokens of each so far, and which rows are unfinished."""

    def __init__(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        draws: _Draws,
        stop_token_ids: set[int],
    ) -> None:
        self.rows, self.prompts, self.draws, self.stops = rows, prompts, draws, stop_token_ids
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.logps: list[list[float]] = [[] for _ in rows]
        self.open = [draws.steps > 0] * len(rows)

    def take(self, logits: Tensor, members: Sequence[int], step: int) -> tuple[Tensor, int]:
        """Draw the next token of these rows of the batch.

        Return tokens (members,) and how many of the rows finished with them.
        """
        tokens, logps = self.draws(logits, [self.rows[member] for member in members], step)
        finished = 0
        for member, token, logp in zip(members, tokens.tolist(), logps.tolist(), strict=True):
            if not self.open[member]:
                continue
            self.tokens[member].append(token)
            self.logps[member].append(logp)
            if token in self.stops or step + 1 == self.draws.steps:
                self.open[member] = False
                finished += 1
        return tokens, finished

    def completions(self) -> list[Completion]:
        """Return what each row of the batch sampled."""
        return [
            Completion(
                ids=tokens,
                stopped=bool(tokens) and tokens[-1] in self.stops,
                logps=logps if self.draws.capture_logps else None,
            )
            for tokens, logps in zip(self.tokens, self.logps, strict=True)
        ]


_Complete = Callable[[_Batch, int, Callable[[int], None]], None]


def _completer(model: Any, merge: bool | None) -> _Complete:
    """Return the function that completes a batch: our decoder's loop, or transformers'."""
    decoder = decoder_for(model, merge=merge)
    if isinstance(decoder, Decoder):
        return lambda batch, _pad, report: _complete_fast(decoder, model, batch, report)
    log.warning("generating with transformers' own loop, which is slower: %s", decoder)
    return lambda batch, pad, report: _complete_with_transformers(model, batch, pad, report)


def _complete_fast(
    decoder: Decoder,
    model: Any,
    batch: _Batch,
    report: Callable[[int], None],
) -> None:
    """Prefill each distinct prompt once, then step; finished rows leave the batch."""
    device = next(model.parameters()).device
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in batch.prompts))
    number = {prompt: index for index, prompt in enumerate(distinct)}
    logits = decoder.prefill(distinct, batch.draws.steps, device)
    if len(distinct) < len(batch.prompts):
        copies = [number[tuple(prompt)] for prompt in batch.prompts]
        decoder.select(torch.tensor(copies, device=device))
        logits = logits[copies]
    members = list(range(len(batch.prompts)))
    for step in range(batch.draws.steps):
        tokens, finished = batch.take(logits, members, step)
        report(finished)
        live = [index for index, member in enumerate(members) if batch.open[member]]
        if not live:
            return
        if len(live) <= COMPACT_BELOW * len(members):
            rows = torch.tensor(live, device=device)
            decoder.select(rows)
            tokens, members = tokens[rows], [members[index] for index in live]
        logits = decoder.step(tokens)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ids (rows, width), padded on the left, and the padding of each row (rows,)."""
    width = max(len(prompt) for prompt in prompts)
    padding = [width - len(prompt) for prompt in prompts]
    ids = [
        [pad_token_id] * short + list(prompt)
        for short, prompt in zip(padding, prompts, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(padding, device=device)


class _ForceDraws(LogitsProcessor):
    """Make transformers' greedy search follow our draws, so that both loops sample alike."""

    def __init__(self, batch: _Batch, prompt_width: int, report: Callable[[int], None]) -> None:
        self.batch, self.prompt_width, self.report = batch, prompt_width, report

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        tokens, finished = self.batch.take(scores, range(len(scores)), step)
        self.report(finished)
        forced = torch.full_like(scores, float("-inf"))
        return forced.scatter_(1, tokens[:, None], 0.0)


def _complete_with_transformers(
    model: Any, batch: _Batch, pad_token_id: int, report: Callable[[int], None]
) -> None:
    device = next(model.parameters()).device
    ids, padding = left_padded(batch.prompts, pad_token_id, device)
    columns = torch.arange(ids.shape[1], device=device)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with _no_defaults(base):
        base.generate(
            input_ids=ids,
            attention_mask=(columns >= padding[:, None]).long(),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=batch.draws.steps,
                eos_token_id=sorted(batch.stops) or None,
                pad_token_id=pad_token_id,
            ),
            logits_processor=LogitsProcessorList([_ForceDraws(batch, ids.shape[1], report)]),
        )


@contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """Hide the model's generation_config, from which transformers would fill our unset fields."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
