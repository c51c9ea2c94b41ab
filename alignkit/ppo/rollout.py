"""Sampling completions and measuring them: log-probs, reference log-probs, values and scores.

Which prompts an iteration practises on, and every random number of its sampling, depend on the
seed and the iteration alone: nothing about a run's past is needed to go on with it, and several
ranks together sample what one would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignkit.data.chat import Encoder
from alignkit.forward.generation import Completion, generate
from alignkit.forward.logps import Group, completion_logps
from alignkit.model.backbone import POLICY, Backbone
from alignkit.ppo.ranks import rank, world_size
from alignkit.ppo.remote import RemotePolicy
from alignkit.ppo.rewards import RolloutPrompt, Sample
from alignkit.recipe.settings import OnlineConfig


@dataclass(frozen=True)
class Rollout:
    """Sampled completions with what the update needs, padded to (completions, tokens).

    `mask` is True on real tokens, the stop token included. `values` is zero for RLOO. `states`
    are what a value head on a frozen trunk reads, (real tokens, hidden), or None.
    """

    samples: list[Sample]
    mask: Tensor
    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    raw_scores: Tensor  # (sources, completions)
    scores: Tensor  # (completions,), combined; the penalty for a missing stop included
    stopped: Tensor  # (completions,)
    states: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(completions,): real tokens in each."""
        return self.mask.sum(1)


def practice_order(prompts: int, wanted: int, seed: int, iteration: int) -> list[int]:
    """Prompt numbers of an iteration: the whole list in a new order each time it is through."""
    places = range(iteration * wanted, (iteration + 1) * wanted)
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for place in places:
        lap, position = divmod(place, prompts)
        if lap not in orders:
            orders[lap] = np.random.default_rng((seed, lap, 1)).permutation(prompts)
        chosen.append(int(orders[lap][position]))
    return chosen


def sampling_seed(seed: int, iteration: int) -> int:
    """A seed of its own for each iteration's sampling."""
    return int(np.random.SeedSequence((seed, iteration, 2)).generate_state(1)[0])


class Sampler:
    """Writes completions with the policy and measures them under policy and reference."""

    def __init__(
        self,
        backbone: Backbone,
        config: OnlineConfig,
        stop_token_ids: Sequence[int],
        reference: str | None,
    ) -> None:
        self.backbone, self.config, self.reference = backbone, config, reference
        self.encoder = Encoder(backbone.tokenizer)
        self.stop_token_ids = sorted(stop_token_ids)
        url = config.rollout_url
        vocabulary = backbone.model.get_input_embeddings().weight.shape[0]
        self.remote = RemotePolicy(url, self.stop_token_ids, vocabulary=vocabulary) if url else None
        # Log-probs seen while sampling equal the update's in fp32, up to rounding; elsewhere they
        # are scored again. The loop turns this off where a model rounds too much.
        self.captures_logps = (
            self.remote is None
            and backbone.dtype == torch.float32
            and backbone.config.quantization != "int8"
        )

    def sample(
        self,
        prompts: Sequence[RolloutPrompt],
        *,
        seed: int,
        temperature: float,
        first_row: int = 0,
    ) -> tuple[list[Sample], list[Completion]]:
        """One completion of the policy for each prompt."""
        ids = [prompt.ids for prompt in prompts]
        if self.remote is not None:
            completions = self._sample_remotely(ids, seed + first_row, temperature)
        else:
            completions = self._sample_here(ids, seed, temperature, first_row)
        samples = [
            Sample(prompt, tuple(c.ids), self.encoder.decode(c.ids), c.stopped)
            for prompt, c in zip(prompts, completions, strict=True)
        ]
        return samples, completions

    def _sample_here(
        self, ids: Sequence[Sequence[int]], seed: int, temperature: float, first_row: int
    ) -> list[Completion]:
        with self.backbone.role(POLICY) as model:
            return generate(
                model,
                ids,
                max_new_tokens=self.config.response_length,
                temperature=temperature,
                seed=seed,
                batch_size=self.config.rollout_forward_batch_size,
                stop_token_ids=self.stop_token_ids,
                pad_token_id=self.encoder.pad_token_id,
                capture_logps=self.captures_logps,
                first_row=first_row,
            )

    def _sample_remotely(
        self, ids: Sequence[Sequence[int]], seed: int, temperature: float
    ) -> list[Completion]:
        assert self.remote is not None
        self.remote.load(self.backbone)
        return self.remote.complete(
            ids,
            max_new_tokens=self.config.response_length,
            temperature=temperature,
            seed=seed,
            batch_size=self.config.rollout_forward_batch_size,
        )

    def logps(self, samples: Sequence[Sample], adapter: str | None) -> Tensor:
        """(completions, tokens): log-probs under an adapter (None: the bare backbone)."""
        with self.backbone.role(adapter) as model, torch.no_grad():
            parts = [
                completion_logps(
                    model,
                    grouped(part),
                    pad_token_id=self.encoder.pad_token_id,
                    temperature=self.config.temperature,
                ).per_token
                for part in in_parts(samples, self.config.rollout_forward_batch_size)
            ]
        return to_rows(torch.cat(parts), mask_of(samples).to(parts[0].device))

    def own_logps(self, samples: Sequence[Sample], completions: Sequence[Completion]) -> Tensor:
        """(completions, tokens): the policy's, as captured, or scored again where that differs."""
        if not self.captures_logps:
            return self.logps(samples, POLICY)
        flat = torch.tensor([logp for c in completions for logp in c.logps or ()])
        mask = mask_of(samples)
        return to_rows(flat, mask).to(self.backbone.device)


def local_share(prompts: Sequence[RolloutPrompt]) -> tuple[Sequence[RolloutPrompt], int]:
    """This rank's part of an iteration's prompts, and the number of its first row."""
    size = len(prompts) // world_size()
    return prompts[rank() * size : (rank() + 1) * size], rank() * size


def grouped(samples: Sequence[Sample]) -> list[Group]:
    """Neighbours with the same prompt become one group, so that the prompt is read once."""
    groups: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []
    for sample in samples:
        if groups and groups[-1][0] == sample.prompt.ids:
            groups[-1][1].append(sample.ids)
        else:
            groups.append((sample.prompt.ids, [sample.ids]))
    return [Group(prompt, completions) for prompt, completions in groups]


def in_parts(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Consecutive slices of at most `size`."""
    return (samples[start : start + size] for start in range(0, len(samples), size))


def mask_of(samples: Sequence[Sample]) -> Tensor:
    """(completions, tokens): True on real tokens."""
    lengths = torch.tensor([len(sample.ids) for sample in samples])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]


def to_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """Numbers of all real tokens in order (tokens,) as padded rows, zero behind the end."""
    rows = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    rows[mask] = flat
    return rows
