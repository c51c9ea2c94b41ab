"""The backbone: roles that leave no trace, gradients that survive evaluation, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.errors import ModelError
from alignkit.model.backbone import Backbone
from alignkit.model.heads import ScalarHead, Scale
from alignkit.recipe.settings import BackboneConfig

IDS = torch.tensor([[5, 9, 40, 77, 12, 30, 8, 200, 6, 19]])


def load(directory: Path, quantization: str = "nf4", **settings: Any) -> Backbone:
    return Backbone.load(
        BackboneConfig(
            model_name_or_path=str(directory), quantization=quantization, lora_r=4, **settings
        )
    )


def logits(backbone: Backbone, adapter: str | None) -> Tensor:
    with backbone.role(adapter) as model, torch.no_grad():
        result: Tensor = model(input_ids=IDS, use_cache=False).logits
    return result


def disturb(backbone: Backbone, adapter: str, seed: int = 1) -> None:
    """Give an adapter an effect: a fresh one has none, its B is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in backbone.parameters_of(adapter).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def llama(tiny_model: Callable[[str], Path]) -> Backbone:
    return load(tiny_model("llama"))


def gradients(backbone: Backbone) -> dict[str, Tensor]:
    backbone.model.zero_grad()
    with backbone.training("default") as model:
        out = model(input_ids=IDS, labels=IDS, use_cache=False)
        out.loss.backward()
        return {
            name: p.grad.clone()
            for name, p in backbone.parameters_of("default").items()
            if p.grad is not None
        }


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_an_evaluation_does_not_change_the_next_gradient(
    tiny_model: Callable[[str], Path], shape: str
) -> None:
    backbone = load(tiny_model(shape))
    backbone.new_adapter("default", seed=0)
    disturb(backbone, "default")
    before = gradients(backbone)
    for role in ("default", None):
        logits(backbone, role)
    with backbone.role("default") as model:
        model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    after = gradients(backbone)
    assert len(before) == 2 * 2 * 7
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert gradient.abs().sum() > 0
        assert torch.equal(gradient, after[name]), name


def test_every_4bit_layer_is_guarded(llama: Backbone) -> None:
    import bitsandbytes as bnb

    layers = [m for m in llama.base.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_a_fresh_adapter_is_the_bare_backbone(llama: Backbone) -> None:
    bare = logits(llama, None)
    llama.new_adapter("default", seed=3)
    assert torch.equal(logits(llama, "default"), bare)
    disturb(llama, "default")
    assert not torch.equal(logits(llama, "default"), bare)
    assert torch.equal(logits(llama, None), bare)


def test_the_same_seed_makes_the_same_adapter(llama: Backbone) -> None:
    llama.new_adapter("default", seed=3)
    first = llama.adapter_hash("default")
    llama.delete_adapter("default")
    llama.new_adapter("default", seed=3)
    assert llama.adapter_hash("default") == first
    llama.delete_adapter("default")
    llama.new_adapter("default", seed=4)
    assert llama.adapter_hash("default") != first


def state(backbone: Backbone) -> tuple[Any, ...]:
    model = backbone.model
    return (
        model.active_adapter,
        list(model.active_adapters),
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_a_role_puts_everything_back(llama: Backbone, fails: bool) -> None:
    for name in ("default", "ref", "reward"):
        llama.new_adapter(name, seed=0)
    with llama.training("default"):
        before = state(llama)
        for role in ("ref", None, "reward"):
            try:
                with llama.role(role):
                    assert not llama.model.training
                    if fails:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                assert fails
            assert state(llama) == before


@pytest.mark.parametrize("role", ["ref", None])
def test_a_frozen_model_stays_frozen(llama: Backbone, role: str | None) -> None:
    """Activating an adapter makes PEFT require its gradients; putting it down must undo that."""
    for name in ("default", "ref"):
        llama.new_adapter(name, seed=0)
    llama.model.requires_grad_(False)
    before = state(llama)
    logits(llama, role)
    assert state(llama) == before
    assert not any(p.requires_grad for p in llama.model.parameters())


def test_only_the_trained_adapter_requires_gradients(llama: Backbone) -> None:
    for name in ("default", "reward"):
        llama.new_adapter(name, seed=0)
    with llama.training("reward"):
        wanted = {n for n, p in llama.model.named_parameters() if p.requires_grad}
    assert wanted == set(llama.parameters_of("reward"))
    assert all(p.dtype == torch.float32 for p in llama.parameters_of("reward").values())


def test_adapters_add_no_second_base(llama: Backbone) -> None:
    def base_bytes() -> int:
        return sum(
            p.numel() * p.element_size()
            for n, p in llama.model.named_parameters()
            if "lora_" not in n
        )

    alone = base_bytes()
    for name in ("default", "ref", "reward", "value"):
        llama.new_adapter(name, seed=0)
    assert base_bytes() == alone


def test_a_copy_is_exact_and_independent(llama: Backbone) -> None:
    llama.new_adapter("default", seed=0)
    disturb(llama, "default")
    llama.copy_adapter("default", "ref")
    assert torch.equal(logits(llama, "default"), logits(llama, "ref"))
    before = logits(llama, "ref")
    disturb(llama, "default", seed=9)
    assert torch.equal(logits(llama, "ref"), before)


def test_plain_transformers_and_peft_load_the_adapter(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    backbone = load(tiny_model("llama"), quantization="none")
    backbone.new_adapter("default", seed=0)
    disturb(backbone, "default")
    backbone.save_adapter("default", tmp_path / "adapter")
    elsewhere = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = elsewhere(input_ids=IDS).logits
    assert (theirs - logits(backbone, "default")).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["default", "reward"])
def test_saved_and_loaded_is_the_same(llama: Backbone, tmp_path: Path, name: str) -> None:
    llama.new_adapter(name, seed=0)
    disturb(llama, name)
    before = logits(llama, name)
    llama.save_adapter(name, tmp_path)
    llama.clear()
    assert llama.adapters == []
    llama.load_adapter("default", tmp_path)
    assert torch.equal(logits(llama, "default"), before)


@pytest.fixture
def saved(llama: Backbone, tmp_path: Path) -> tuple[Backbone, Path]:
    llama.new_adapter("reward", seed=0)
    disturb(llama, "reward")
    llama.save_adapter("reward", tmp_path / "adapter", head=ScalarHead(64, seed=5))
    llama.clear()
    return llama, tmp_path / "adapter"


def test_a_head_comes_back_with_its_weights_and_scale(tmp_path: Path) -> None:
    head = ScalarHead(8, seed=5)
    head.scale = Scale(mean=1.5, std=0.25)
    head.save(tmp_path)
    again = ScalarHead.load(tmp_path)
    assert again.scale == Scale(1.5, 0.25)
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(states), head(states))
    assert again.scale.normalise(torch.tensor([2.0])).item() == 2.0


def test_a_lost_head_is_refused(saved: tuple[Backbone, Path]) -> None:
    _, directory = saved
    (directory / "head.safetensors").unlink()
    with pytest.raises(ModelError, match="the scalar head is missing"):
        ScalarHead.load(directory)


def test_another_head_is_refused(saved: tuple[Backbone, Path]) -> None:
    backbone, directory = saved
    ScalarHead(64, seed=6).save(directory)
    with pytest.raises(ModelError, match="its probe scored"):
        backbone.load_adapter("reward", directory, head=ScalarHead.load(directory))
    assert backbone.adapters == []


def test_changed_weights_are_refused(saved: tuple[Backbone, Path]) -> None:
    from safetensors.torch import load_file, save_file

    backbone, directory = saved
    weights = load_file(directory / "adapter_model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, directory / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="stored logits differ"):
        backbone.load_adapter("reward", directory)


def test_an_adapter_of_another_base_is_refused(
    saved: tuple[Backbone, Path], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    _, directory = saved
    other = shutil.copytree(tiny_model("llama"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="was trained on .* but this is"):
        load(other).load_adapter("reward", directory)


def test_an_adapter_of_another_template_is_refused(
    saved: tuple[Backbone, Path], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    _, directory = saved
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    other = Backbone.load(
        BackboneConfig(
            model_name_or_path=str(tiny_model("llama")),
            quantization="none",
            chat_template=str(template),
        )
    )
    with pytest.raises(ModelError, match="was trained with another chat template"):
        other.load_adapter("reward", directory)


def test_a_missing_model_is_named_with_its_nearest(tmp_path: Path) -> None:
    (tmp_path / "qwen-tiny").mkdir()
    with pytest.raises(ModelError, match=r"no model at .*qwen-tny; the nearest is .*qwen-tiny"):
        load(tmp_path / "qwen-tny")


def test_an_unknown_hub_id_without_a_network_suggests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="did you mean 'tiny'"):
        Backbone.load(BackboneConfig(model_name_or_path="tinyy"))


def broken(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def test_pickle_weights_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = broken(tiny_model, tmp_path)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle weights are refused"):
        load(directory)


def test_truncated_weights_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = broken(tiny_model, tmp_path)
    file = directory / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size - 100])
    with pytest.raises(ModelError, match=f"file is {size - 100:,} of {size:,} bytes"):
        load(directory)


def test_a_git_lfs_pointer_is_named(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = broken(tiny_model, tmp_path)
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="a Git LFS pointer") as error:
        load(directory)
    assert "git lfs pull" in str(error.value)


def test_a_header_that_lies_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    directory = broken(tiny_model, tmp_path)
    (directory / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="the header claims"):
        load(directory)


def test_a_vocabulary_larger_than_the_embedding_is_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = broken(tiny_model, tmp_path)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": 1000 + i, "content": f"<extra{i}>"}
        for i in range(100)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="the model's embedding 320"):
        load(directory)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\x28\xb5\x2f\xfd", "the byte at 1 is not UTF-8"), (b"a" * 70_000, "at most 65,536")],
)
def test_a_file_that_is_no_template_is_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        load(tiny_model("llama"), "none", chat_template=str(tmp_path / "t.jinja"))
