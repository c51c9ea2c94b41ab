"""What the trained stages share: honest counts of what moved, and a model left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from alignkit.errors import TrainingFailed
from alignkit.model.backbone import POLICY
from alignkit.model.files import EMBEDDED
from alignkit.training.trainer import (
    dead_gradients,
    moved_share,
    snapshot,
    teaches_nothing,
    undisturbed,
    weight_change,
)
from tests.command import alignkit
from tests.workshop import Workshop, make_workshop


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


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_sides_that_the_template_makes_equal_are_the_cause_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Not the machine's kernels: every gradient is there, and is zero."""
    monkeypatch.chdir(tmp_path)
    template = (EMBEDDED["tiny"] / "chat_template.jinja").read_text()
    Path("t.jinja").write_text(template.replace("message['content']", "message['content']|upper"))
    Path("p.jsonl").write_text('{"prompt": "Hi?", "chosen": "yes", "rejected": "YES"}\n')
    said = alignkit(
        capsys, kind, "--data", "p.jsonl", "--output", "o", "--chat-template", "t.jinja",
        "--max-steps", 1, "--quantization", "none",
    )  # fmt: skip
    if kind == "dpo":
        assert said.code == 2
        assert "are the same tokens under this chat template" in said.err
        return
    assert said.code == 1
    assert "every gradient is exactly zero at step 1: nothing in this batch can be" in said.err
    assert "the two sides of its pairs are the same tokens" in said.err
    assert "doctor" not in said.err


def test_a_cut_graph_is_told_from_a_flat_loss() -> None:
    model = nn.Module()
    model.lora_B = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(2)])
    model.lora_B[0].grad = torch.zeros(2)
    assert not teaches_nothing(model)  # the second has none
    model.lora_B[1].grad = torch.ones(2)
    assert not teaches_nothing(model)
    model.lora_B[1].grad = torch.zeros(2)
    assert teaches_nothing(model)
    assert dead_gradients(model) == ["lora_B.0", "lora_B.1"]


def test_the_change_of_the_weights_is_that_of_what_the_model_computes(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Against full matrices: |s (BA - B0 A0)| over |W|, summed over the adapted layers."""
    backbone = make_workshop(tiny_model("llama"), tmp_path, quantization="none").backbone
    backbone.new_adapter(POLICY, seed=1)
    weights = backbone.parameters_of(POLICY)
    torch.manual_seed(0)
    for weight in weights.values():
        weight.data.copy_(torch.randn(weight.shape) * 0.1)
    before = snapshot(weights)
    assert weight_change(backbone.model, POLICY, before) < 1e-7
    for weight in weights.values():
        weight.data.add_(torch.randn(weight.shape) * 0.01)
    moved = base = 0.0
    for name, b in weights.items():
        if "lora_B" in name:
            a = name.replace("lora_B", "lora_A")
            change = 2.0 * (b.detach() @ weights[a].detach() - before[name] @ before[a])
            layer = backbone.model.get_submodule(name.partition(".lora_B")[0])
            moved += float(change.square().sum())
            base += float(layer.base_layer.weight.float().square().sum())
    expected = (moved / base) ** 0.5
    assert expected > 1e-3
    assert weight_change(backbone.model, POLICY, before) == pytest.approx(expected, rel=1e-4)
