"""A model's files are held against what its architecture needs, and genuine ones pass."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from alignkit.errors import ModelError, RecipeError
from alignkit.model import quantized_cache as quantized_base
from alignkit.model.backbone import Backbone
from alignkit.model.files import find_model, staged
from alignkit.model.fit import check_architecture, check_fit
from alignkit.recipe.settings import BackboneConfig

IDS = torch.tensor([[5, 9, 40, 77, 12, 30, 8, 200, 6, 19]])
Make = Callable[[str], Path]
Weights = dict[str, torch.Tensor]


def load(directory: Path, quantization: str = "none", **settings: Any) -> Backbone:
    return Backbone.load(
        BackboneConfig(model_name_or_path=str(directory), quantization=quantization, **settings)
    )


def logits(backbone: Backbone) -> torch.Tensor:
    with backbone.role(None) as model, torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.fixture
def copied(tiny_model: Make, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def with_weights(model: Path, change: Callable[[Weights], Weights | None]) -> None:
    weights = load_file(model / "model.safetensors")
    save_file(change(weights) or weights, model / "model.safetensors", {"format": "pt"})


def with_settings(model: Path, **changes: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def prefixed(part: str) -> Callable[[Path], None]:
    return lambda model: with_weights(model, lambda w: {part + name: v for name, v in w.items()})


def inserted(part: str) -> Callable[[Path], None]:
    """As a wrapper of each layer leaves its keys."""
    return lambda model: with_weights(
        model, lambda w: {re.sub(r"(layers\.\d+\.)", rf"\1{part}", n): v for n, v in w.items()}
    )


def without(text: str) -> Callable[[Path], None]:
    return lambda model: with_weights(
        model, lambda w: {name: value for name, value in w.items() if text not in name}
    )


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda model: with_weights(
        model, lambda w: {name.replace(old, new): value for name, value in w.items()}
    )


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda model: with_settings(model, **changes)


def added(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda model: with_weights(model, lambda w: w | {name: torch.ones(shape)})


def of_a_classifier(model: Path) -> None:
    """What transformers saves for sequences: the head of the language model is not among it."""
    config = AutoConfig.from_pretrained(model)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(model)


def with_an_adapter_inside(model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(model)
    made = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    weights = {name: value.contiguous() for name, value in made.state_dict().items()}
    weights.pop("base_model.model.lm_head.weight")
    save_file(weights, model / "model.safetensors", {"format": "pt"})


LAYER = "model.layers.1."
# The tiny llama has 9 weights a layer, 2 layers, an embedding that the head is tied to, and a norm.
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "compiled": (
        prefixed("_orig_mod."),
        r"20 of 20 weights that LlamaForCausalLM needs are missing: model.embed_tokens.weight, "
        r".* and 17 more.*'_orig_mod\.', likely the prefix.*replace\('_orig_mod\.', '', 1\)",
    ),
    "in parallel": (prefixed("module."), r"20 of 20 .*'module\.', likely the prefix"),
    "of PEFT": (prefixed("base_model.model."), r"20 of 20 .*'base_model\.model\.', likely the"),
    "of two wrappers": (prefixed("_orig_mod.module."), r"20 of 20 .*'_orig_mod\.module\.', likely"),
    "layers wrapped": (
        inserted("_checkpoint_wrapped_module."),
        r"18 of 20 .*'_checkpoint_wrapped_module\.', likely the prefix",
    ),
    "adapter not merged": (with_an_adapter_inside, r"20 of 20 .*merge it \(merge_and_unload\)"),
    "layer lost": (without(LAYER), r"9 of 20 .*model.layers.1.input_layernorm.weight, "),
    "first layer lost": (without("model.layers.0."), r"9 of 20 .*Layer 0 is not in the files"),
    "layer renamed": (renamed(LAYER, "model.layers.one."), r"9 of 20 .*model\.layers\.one\."),
    "weight lost": (without("layers.0.mlp.up_proj"), r"1 of 20 .*layers.0.mlp.up_proj.weight\."),
    "weight renamed": (
        renamed("1.self_attn.q_proj", "1.self_attn.query"),
        r"1 of 20 .*The nearest name in the files is model.layers.1.self_attn.query.weight",
    ),
    "embedding lost": (without("embed_tokens"), r"1 of 20 .*model.embed_tokens.weight"),
    "norm lost": (without("model.norm"), r"1 of 20 .*model.norm.weight"),
    "deeper": (
        settings(num_hidden_layers=5),
        r"27 of 47 .*asks for 5 layers, the files hold 2",
    ),
    "shallower": (
        settings(num_hidden_layers=1),
        r"9 weights have no place .*asks for 1 layers, the files hold 2",
    ),
    "endless": (settings(num_hidden_layers=10**9), r"asks for 1,000,000,000 layers"),
    "endless inside": (
        settings(vision_config={"num_hidden_layers": 10**9}),
        r"asks for 1,000,000,000 layers \(num_hidden_layers\)",
    ),
    "wider": (
        settings(intermediate_size=256),
        r"down_proj.weight is 64 by 128 in the files, and 64 by 256 by config.json, and 5 more",
    ),
    "more tokens": (settings(vocab_size=400), r"embed_tokens.weight is 320 by 64 .*400 by 64"),
    "untied": (
        settings(tie_word_embeddings=False),
        r"1 of 21 weights that LlamaForCausalLM needs are missing: lm_head.weight",
    ),
    "biases left over": (
        added(f"{LAYER}self_attn.q_proj.bias", 64),
        r"1 weights have no place .*layers.1.self_attn.q_proj.bias",
    ),
    "norms left over": (added(f"{LAYER}self_attn.q_norm.weight", 16), r"have no place"),
    "bias of the head": (added("lm_head.bias", 320), r"have no place"),
    "classifier": (
        of_a_classifier,
        r"1 weight .*missing: lm_head.weight; the files hold score.weight",
    ),
    "classifier by name": (
        settings(architectures=["LlamaForSequenceClassification"]),
        r"lm_head.weight; the files hold LlamaForSequenceClassification",
    ),
    "another kind": (settings(model_type="bert"), r"needs are missing"),
    "no causal model": (settings(model_type="t5"), r"t5 is not a causal language model"),
    "unknown": (settings(model_type="nothing_known"), r"cannot be loaded: .*nothing_known"),
    "nonsense": (settings(num_attention_heads="four"), r"cannot be loaded: "),
    "no heads": (settings(num_attention_heads=0, head_dim=None), r"cannot be loaded: "),
    "stored in 4 bits": (
        settings(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"its weights are stored as gptq, but quantization is",
    ),
}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_is_not_the_model_that_was_named_is_refused(
    tiny_model: Make, tmp_path: Path, quantization: str
) -> None:
    for what, (harm, says) in REFUSED.items():
        model = shutil.copytree(tiny_model("llama"), tmp_path / what)
        harm(model)
        with pytest.raises(ModelError) as refused:
            load(model, quantization)
        said = str(refused.value)
        assert re.search(says, said), f"{what}: {said}"
        assert "\n" not in said, what
        assert str(model) in said, what
        assert "alignkit-" not in said, what  # a place of our own tells nobody anything


def test_the_same_is_told_before_anything_is_loaded(copied: Path) -> None:
    prefixed("_orig_mod.")(copied)
    with pytest.raises(ModelError, match="20 of 20 weights"):
        check_architecture(find_model(str(copied)), ("all-linear",))


def test_the_command_in_the_hint_mends_the_file(
    copied: Path, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixed("_orig_mod.")(copied)
    with pytest.raises(ModelError) as refused:
        load(copied)
    command = re.search(r"python (-c .*)$", str(refused.value))
    assert command is not None
    monkeypatch.chdir(copied)
    subprocess.run([sys.executable, *shlex.split(command[1])], check=True)
    (copied / "renamed.safetensors").rename(copied / "model.safetensors")
    assert torch.equal(logits(load(copied)), logits(load(tiny_model("llama"))))


def test_heads_and_towers_beside_the_model_are_left_alone(copied: Path, tiny_model: Make) -> None:
    expected = logits(load(tiny_model("llama")))
    with_weights(
        copied,
        lambda w: (
            w
            | {"lm_head.weight": w["model.embed_tokens.weight"].clone()}
            | {"v_head.summary.weight": torch.ones(1, 64), "score.weight": torch.ones(2, 64)}
            | {"vision_tower.layers.0.q_proj.weight": torch.ones(4, 4)}
            | {"model.mtp.proj.weight": torch.ones(4, 4)}
            | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in (0, 1)}
        ),
    )
    assert torch.equal(logits(load(copied)), expected)


def test_a_head_that_is_stored_untied_is_the_one_that_speaks(copied: Path) -> None:
    """tie_word_embeddings in config.json, and a head of its own in the files: the files count."""
    with_weights(copied, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] * 2})
    once = logits(load(copied))
    own = load_file(copied / "model.safetensors")
    base = load(copied).base
    assert torch.equal(base.get_output_embeddings().weight.float(), own["lm_head.weight"])
    assert once.isfinite().all()


SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4},
    "gemma3_text": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16},
}


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_renames_and_merges_on_its_way_is_genuine(tmp_path: Path) -> None:
    """Experts are stored one by one and loaded as one tensor; one of them lost is missed."""
    for shape, own in SHAPES.items():
        config = AutoConfig.for_model(
            shape,
            **{
                "vocab_size": 64,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **own,
            },
        )
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path / shape)
        check_fit(find_model(str(tmp_path / shape)))
    without("block_sparse_moe.experts.3.w1")(tmp_path / "mixtral")
    stored = load_file(tmp_path / "mixtral" / "model.safetensors")
    assert any("experts.3.w2" in name for name in stored)
    with pytest.raises(ModelError):
        check_fit(find_model(str(tmp_path / "mixtral")))


# --- several files -------------------------------------------------------------------------------


def in_shards(source: Path, model: Path) -> Path:
    shutil.copytree(source, model)
    (model / "model.safetensors").unlink()
    base = AutoModelForCausalLM.from_pretrained(source)
    base.save_pretrained(model, max_shard_size="100KB")
    assert len(list(model.glob("*.safetensors"))) > 2
    return model


def test_a_model_in_several_files_is_the_same_model(tiny_model: Make, tmp_path: Path) -> None:
    model = in_shards(tiny_model("llama"), tmp_path / "model")
    assert torch.equal(logits(load(model)), logits(load(tiny_model("llama"))))
    files = find_model(str(model))
    before = files.fingerprint
    index = model / "model.safetensors.index.json"
    index.write_text(index.read_text() + "\n")
    assert files.fingerprint != before  # the index decides what is read


def to_outside(model: Path, name: str) -> None:
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = name
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\0.safetensors",
     "config.json", "model.bin"],
)  # fmt: skip
def test_an_index_that_leaves_the_directory_is_refused(
    tiny_model: Make, tmp_path: Path, name: str
) -> None:
    model = in_shards(tiny_model("llama"), tmp_path / "model")
    (tmp_path / "outside.safetensors").write_bytes(next(model.glob("*.safetensors")).read_bytes())
    to_outside(model, name)
    with pytest.raises(ModelError, match="is not a \\*.safetensors file of this directory"):
        load(model)


def test_other_broken_indexes_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    model = in_shards(tiny_model("llama"), tmp_path / "model")
    index = model / "model.safetensors.index.json"
    whole = index.read_text()
    for content in ('{"weight_map": []}', '{"weight_map": {"a": 3}}', "{}", "[]", "{"):
        index.write_text(content)
        with pytest.raises(ModelError):
            find_model(str(model))
    index.write_text(whole)
    to_outside(model, "model-00009.safetensors")
    with pytest.raises(ModelError, match="model-00009.safetensors is missing"):
        find_model(str(model))
    index.write_text(whole)
    shards = sorted(model.glob("*.safetensors"))
    weights = load_file(shards[1])
    save_file(weights | {next(iter(load_file(shards[0]))): torch.ones(1)}, shards[1])
    with pytest.raises(ModelError, match="is in another file of this model too"):
        find_model(str(model))


# --- contents, not names -------------------------------------------------------------------------


def test_a_link_called_like_a_hash_is_known_by_its_content(
    tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the hub's cache: the link's target is named by a hash, here by that of other bytes."""
    import hashlib

    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized_base, "FEWEST_WEIGHTS", 1)
    genuine = tiny_model("llama")
    weights = genuine / "model.safetensors"
    name = hashlib.sha256(weights.read_bytes()).hexdigest()
    hostile = shutil.copytree(genuine, tmp_path / "hostile")
    with_weights(hostile, lambda w: {n: -v if "down_proj" in n else v for n, v in w.items()})
    (hostile / "model.safetensors").rename(tmp_path / name)
    (hostile / "model.safetensors").symlink_to(tmp_path / name)
    assert find_model(str(hostile)).fingerprint != find_model(str(genuine)).fingerprint

    alone = logits(load(genuine, "nf4"))
    shutil.rmtree(tmp_path / "cache")
    other = logits(load(hostile, "nf4"))
    assert not torch.allclose(other, alone, atol=1e-3)
    assert torch.equal(logits(load(genuine, "nf4")), alone)
    assert torch.equal(logits(load(genuine, "nf4")), alone)  # as it was kept
    assert torch.equal(logits(load(hostile, "nf4")), other)


def test_links_of_a_download_are_followed(tiny_model: Make, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in tiny_model("llama").iterdir():
        (linked / file.name).symlink_to(file)
    assert find_model(str(linked)).fingerprint == find_model(str(tiny_model("llama"))).fingerprint
    (linked / "tokenizer_config.json").unlink()
    (linked / "tokenizer_config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="tokenizer_config.json is missing"):
        find_model(str(linked))


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_is_no_file_of_a_model(copied: Path, name: str) -> None:
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(ModelError, match=f"{name} is not an ordinary file"):
        load(copied)


def test_infinity_is_refused_as_not_a_number_is(copied: Path, tiny_model: Make) -> None:
    for value, says in ((float("inf"), "infinite"), (float("-inf"), "infinite"),
                        (float("nan"), "not a number")):  # fmt: skip
        shutil.copy(tiny_model("llama") / "model.safetensors", copied)

        def harm(weights: Weights, value: float = value) -> None:
            weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value

        with_weights(copied, harm)
        for quantization in ("none", "nf4"):
            with pytest.raises(
                ModelError, match=f"model.layers.1.mlp.up_proj.weight holds values that are {says}"
            ):
                load(copied, quantization)


# --- what a configuration does not decide --------------------------------------------------------

KERNEL = "kernels-community/flash-attn"


def test_a_configuration_decides_no_kernel_no_file_and_no_code(
    copied: Path, tiny_model: Make
) -> None:
    expected = load(tiny_model("llama"))
    with_settings(
        copied,
        attn_implementation=KERNEL,
        _attn_implementation=KERNEL,
        _attn_implementation_internal=KERNEL,
        _attn_implementation_autoset=True,
        experts_implementation=KERNEL,
        use_kernels=True,
        fusion_config={"patch_embeddings": True},
        transformers_weights="../elsewhere.safetensors",
        auto_map={"AutoModelForCausalLM": "evil.Model"},
        output_attentions=True,
        output_hidden_states=True,
        return_dict=False,
        torchscript=True,
    )
    backbone = load(copied)
    assert backbone.base.config._attn_implementation == expected.base.config._attn_implementation
    assert torch.equal(logits(backbone), logits(expected))
    assert backbone.fingerprint != expected.fingerprint


def test_a_configuration_inside_another_decides_none_either(copied: Path) -> None:
    with_settings(copied, text_config={"_attn_implementation": KERNEL, "hidden_size": 64})
    with staged(find_model(str(copied))) as place:
        text = (place / "config.json").read_text()
        names = {file.name for file in place.iterdir()}
    assert KERNEL not in text
    assert "hidden_size" in text
    assert names == {"config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}  # fmt: skip


def test_attention_is_one_of_a_list(tiny_model: Make) -> None:
    assert load(tiny_model("llama"), attn_implementation="eager").base.config._attn_implementation
    for name in (KERNEL, "edgaer", "sdap"):
        with pytest.raises(RecipeError, match=r"attn_implementation is .*Known: eager, sdpa"):
            load(tiny_model("llama"), attn_implementation=name)


@pytest.mark.parametrize(("stored", "other"), [("nf4", "none"), ("int8", "nf4")])
def test_weights_that_are_quantized_already_are_loaded_as_they_are_and_not_as_others(
    tiny_model: Make, tmp_path: Path, stored: str, other: str
) -> None:
    made = load(tiny_model("llama"), stored)
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    made.base.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model", stored)), logits(made))
    with pytest.raises(ModelError, match=f"stored as {stored}, .*Set quantization: {stored}"):
        load(tmp_path / "model", other)
