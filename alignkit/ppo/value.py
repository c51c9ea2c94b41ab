"""Learn the value of a state, with a head on frozen states or with an adapter of its own.

`FrozenTrunk` trains only the head, widened by a small network, on the hidden states of an adapter
that does not change. The states are computed once per iteration; where a reward model is the trunk,
by the forward that scores the completions. Each pass of the update is then a few products of the
head's size. `OwnAdapter` trains an adapter as well: a closer fit, at the price of a forward and a
backward through the whole model in every pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignkit.data.chat import Encoder
from alignkit.forward.logps import completion_states
from alignkit.model.backbone import Backbone
from alignkit.model.heads import ScalarHead
from alignkit.ppo.learners import (
    Averages,
    adamw,
    mini_batches,
    rate_factor,
    set_rate,
    sorted_parts,
    step,
    trainable,
)
from alignkit.ppo.objective import value_terms
from alignkit.ppo.ranks import all_sum
from alignkit.ppo.rewards import Sample
from alignkit.ppo.rollout import Rollout, grouped, in_parts, mask_of, to_rows
from alignkit.recipe.settings import PpoConfig

WIDEST_NETWORK = 1024
# Adam moves every weight by about the learning rate, so the head's output, a sum over `hidden`
# inputs, moves in proportion to `hidden`: its rate is divided by that (arXiv:2203.03466, table 3).
HEAD_LEARNING_RATE = 0.64


@dataclass(eq=False)
class ValueLearner(ABC):
    """Makes clipped value updates; nothing here ever touches the policy.

    `adapter` names the adapter whose states the head reads; `parameters` are what is trained.
    """

    backbone: Backbone
    config: PpoConfig
    head: ScalarHead
    seed: int
    iterations: int
    adapter: str

    def __post_init__(self) -> None:
        self.pad = Encoder(self.backbone.tokenizer).pad_token_id
        self.parameters = [*self.adapter_weights().values(), *self.head.parameters()]
        self.optimizer = adamw(self.parameters)

    @abstractmethod
    def adapter_weights(self) -> Mapping[str, nn.Parameter]:
        """Return the adapter's trained weights by name."""

    @abstractmethod
    def measure(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor | None]:
        """Return values (completions, tokens), zero after the end, and states to keep or None."""

    @abstractmethod
    def _values(self, rollout: Rollout, part: list[int]) -> Tensor:
        """Return the values (tokens,) of some rows of a rollout, flat, with gradients."""

    @property
    @abstractmethod
    def _peak_rate(self) -> float:
        """Learning rate before the schedule."""

    @contextmanager
    def _training(self) -> Iterator[None]:
        self.head.requires_grad_(True)
        yield

    def update(self, rollout: Rollout, returns: Tensor, iteration: int) -> dict[str, float]:
        """Make all passes over one rollout and return what is logged."""
        averages = Averages()
        factor = rate_factor(self.config, iteration, self.iterations)
        set_rate(self.optimizer, self._peak_rate * factor)
        with self._training():
            for epoch in range(self.config.num_ppo_epochs):
                # The 3 sets the value's permutations apart from the policy's.
                for rows in mini_batches(rollout, self.config, (self.seed, iteration, epoch, 3)):
                    self._step(rollout, rows, returns, averages)
        return averages.means()

    def _step(
        self, rollout: Rollout, rows: Sequence[int], returns: Tensor, averages: Averages
    ) -> None:
        """Make one optimizer step on some rows of the rollout."""
        count = float(all_sum(rollout.mask[rows].sum().double()))
        sums = torch.zeros(2, dtype=torch.float64)
        for part in sorted_parts(rows, self.config.per_device_train_batch_size):
            mask = rollout.mask[part]
            terms = value_terms(
                self._values(rollout, part),
                rollout.values[part][mask],
                returns[part][mask],
                cliprange_value=self.config.cliprange_value,
            )
            (self.config.vf_coef * terms.loss / count).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([terms.loss.detach().double(), terms.clipped.double().sum()]).cpu()
        loss, clipped = all_sum(sums).tolist()
        norm = step(self.optimizer, self.parameters, self.config.max_grad_norm, loss)
        averages.add("loss/value_avg", loss, count)
        averages.add("val/clipfrac_avg", clipped, count)
        averages.add("val/grad_norm", norm)

    def _value(self, states: Tensor) -> Tensor:
        """Return values (tokens,) of states (tokens, hidden), in units of the normalised score."""
        return self.head.scale.normalise(self.head(states))


@dataclass(eq=False)
class FrozenTrunk(ValueLearner):
    """Trains head and network; `states_of` returns the trunk's states of completions, flat."""

    states_of: Callable[[Sequence[Sample]], Tensor]

    def __post_init__(self) -> None:
        width = min(4 * self.head.linear.in_features, WIDEST_NETWORK)
        self.head = self.head.widened(width, self.seed)
        super().__post_init__()

    def adapter_weights(self) -> Mapping[str, nn.Parameter]:
        return {}

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor | None]:
        states = self.states_of(samples)
        return to_rows(self._value(states), mask_of(samples).to(states.device)), states

    def _values(self, rollout: Rollout, part: list[int]) -> Tensor:
        assert rollout.states is not None
        # `states` is flat over real tokens, so select the rows' tokens with a mask made flat alike.
        chosen = torch.zeros_like(rollout.mask)
        chosen[part] = True
        return self._value(rollout.states[chosen[rollout.mask]])

    @property
    def _peak_rate(self) -> float:
        hidden = self.head.linear.in_features
        return self.config.value_learning_rate or HEAD_LEARNING_RATE / hidden


class OwnAdapter(ValueLearner):
    """Trains the adapter `value` and the head."""

    def adapter_weights(self) -> Mapping[str, nn.Parameter]:
        return self.backbone.parameters_of(self.adapter)

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor | None]:
        states = trunk_states(
            self.backbone, self.adapter, samples, self.config.rollout_forward_batch_size
        )
        return to_rows(self._value(states), mask_of(samples).to(states.device)), None

    @contextmanager
    def _training(self) -> Iterator[None]:
        checkpointing = self.config.gradient_checkpointing
        with super()._training(), trainable(self.backbone, self.adapter, checkpointing):
            yield

    def _values(self, rollout: Rollout, part: list[int]) -> Tensor:
        groups = grouped([rollout.samples[row] for row in part])
        states = completion_states(
            self.backbone.model, groups, pad_token_id=self.pad, which="tokens"
        )
        return self._value(states)

    @property
    def _peak_rate(self) -> float:
        return self.config.value_learning_rate or self.config.learning_rate


@torch.no_grad()
def trunk_states(
    backbone: Backbone, adapter: str, samples: Sequence[Sample], batch_size: int
) -> Tensor:
    """Return (tokens, hidden): an adapter's states before each token of some completions, flat."""
    pad = Encoder(backbone.tokenizer).pad_token_id
    with backbone.role(adapter) as model:
        parts = [
            completion_states(model, grouped(part), pad_token_id=pad, which="tokens")
            for part in in_parts(samples, batch_size)
        ]
    return torch.cat(parts)
