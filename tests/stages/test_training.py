"""What the trained stages share: honest counts of what moved, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alignkit.backbone import POLICY
from alignkit.errors import TrainingFailed
from alignkit.stages.training import moved_share, snapshot, undisturbed
from tests.stages.conftest import Workshop


def test_the_share_of_entries_that_moved_is_counted() -> None:
    weights = {"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(2, 2))}
    before = snapshot(weights)
    weights["b"].data[0, 1] = 1e-30
    weights["a"].data[:2] = 1.0
    assert moved_share(before, weights) == 3 / 7


def test_a_run_in_which_nothing_moved_fails() -> None:
    weights = {"a": nn.Parameter(torch.ones(3))}
    with pytest.raises(TrainingFailed, match="no trainable weight moved"):
        moved_share(snapshot(weights), weights)


def test_what_a_trainer_does_to_the_model_is_undone(workshop: Workshop) -> None:
    """Weights rounded to bfloat16 come back in fp32, and a patched forward goes."""
    backbone = workshop.backbone
    backbone.new_adapter(POLICY, seed=1)
    before = snapshot(backbone.parameters_of(POLICY))
    with undisturbed(backbone, POLICY):
        backbone.base.forward = lambda *_: None
        for weight in backbone.parameters_of(POLICY).values():
            weight.data = weight.data.bfloat16()
    assert "forward" not in vars(backbone.base)
    for name, weight in backbone.parameters_of(POLICY).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])
