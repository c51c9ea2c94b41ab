"""Adapters that were made elsewhere: what is read, what is refused, and the base left as it was."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alignkit.errors import ModelError, RecipeError
from alignkit.model.adapter_fit import read_adapter
from alignkit.model.backbone import Backbone
from alignkit.model.check import check_adapter
from alignkit.model.files import find_model
from alignkit.recipe.settings import BackboneConfig

IDS = torch.tensor([[5, 9, 40, 77, 12, 30, 8, 200, 6, 19]])
Make = Callable[[str], Path]


def load(directory: Path, quantization: str, **settings: Any) -> Backbone:
    return Backbone.load(
        BackboneConfig(
            model_name_or_path=str(directory), quantization=quantization, lora_r=4, **settings
        )
    )


def made_elsewhere(model: Path, place: Path, **settings: Any) -> Path:
    """A LoRA adapter with an effect, made and saved by PEFT alone."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings},
        task_type="CAUSAL_LM",
    )
    made = get_peft_model(base, config)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    made.save_pretrained(place)
    return place


def base_hash(backbone: Backbone) -> str:
    """sha256 over every tensor of the base as numbers, 4-bit and 8-bit weights multiplied out."""
    digest = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = {}
    for name, module in backbone.base.named_modules():
        for key, value in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            if ".lora_" not in name and ".lora_" not in key:
                number = value
                if isinstance(value, bnb.nn.Params4bit) and value.quant_state is not None:
                    number = bnb.functional.dequantize_4bit(value.data, value.quant_state)
                tensors[
                    f"{name}.{key}".replace(".base_layer", "").replace(".modules_to_save", "")
                ] = number
    for key in sorted(tensors):
        if "default" in key or key.startswith("lora_"):
            continue
        digest.update(key.encode())
        digest.update(tensors[key].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def logits(backbone: Backbone, adapter: str | None) -> torch.Tensor:
    with backbone.role(adapter) as model, torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def train(backbone: Backbone, name: str) -> None:
    """Three steps of a real optimizer on everything the adapter has."""
    with backbone.training(name) as model:
        wanted = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(wanted, lr=1e-2)
        for _ in range(3):
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "all": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def of_every_kind(tiny_model: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of PEFT's making by kind; what it warns of is what it saves."""
    place = tmp_path_factory.mktemp("kinds")
    with warnings.catch_warnings(action="ignore"):
        return {
            kind: made_elsewhere(tiny_model("llama"), place / kind, **settings)
            for kind, settings in KINDS.items()
        }


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's advice on merging
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_base_is_the_same_to_the_bit_after_every_kind_of_adapter(
    tiny_model: Make, of_every_kind: dict[str, Path], tmp_path: Path, quantization: str
) -> None:
    """Loaded, trained, beside a second one, copied, deleted; and it is what PEFT makes of it."""
    model = tiny_model("llama")
    backbone = load(model, quantization)
    before, bare = base_hash(backbone), logits(backbone, None)
    for kind, directory in of_every_kind.items():
        backbone.load_adapter("default", directory)
        backbone.new_adapter("second", seed=0)
        assert base_hash(backbone) == before, kind
        assert (logits(backbone, "default") - bare).abs().max() > 0.01, kind
        assert torch.equal(logits(backbone, None), bare), kind
        if quantization == "none":
            plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            theirs = PeftModel.from_pretrained(plain, str(directory)).eval()
            with torch.no_grad():
                gap = (theirs(IDS).logits - logits(backbone, "default")).abs().max()
            assert gap < 1e-4, kind
        train(backbone, "default")
        assert base_hash(backbone) == before, kind
        backbone.copy_adapter("default", "third")
        backbone.save_adapter("default", tmp_path / kind / "again")
        saved = load_file(tmp_path / kind / "again" / "adapter_model.safetensors")
        assert all("lora_" in name for name in saved), kind
        backbone.clear()
        assert base_hash(backbone) == before, kind
        assert torch.equal(logits(backbone, None), bare), kind
        backbone.load_adapter("default", tmp_path / kind / "again")
        backbone.clear()


def edited(directory: Path, **changes: Any) -> Path:
    """The adapter with other entries in its configuration; ... removes one."""
    file = directory / "adapter_config.json"
    content = {
        key: value
        for key, value in (json.loads(file.read_text()) | changes).items()
        if value is not ...
    }
    file.write_text(json.dumps(content))
    return directory


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "endless pattern": ({"target_modules": "(a|a)*(a|a)*(a|a)*b"}, "target_modules is a pattern"),
    "pattern in a list": ({"target_modules": ["(.*)*q_proj"]}, "target_modules is"),
    "pattern of layers": ({"layers_pattern": "(x+x+)+y"}, "layers_pattern is"),
    "pattern of ranks": ({"rank_pattern": {"(x+x+)+y": 4}}, "rank_pattern is"),
    "pattern of alphas": ({"alpha_pattern": {"(x+x+)+y": 4}}, "alpha_pattern is"),
    "left out by a pattern": ({"exclude_modules": "(x+x+)+y"}, "exclude_modules is"),
    "giant rank": ({"r": 10**8}, "r is 100000000"),
    "other rank": ({"r": 5}, "has rank 5, but the weights next to it have 4"),
    "rank of text": ({"r": "8"}, 'r is "8"'),
    "no rank": ({"r": 0}, "r is 0"),
    "giant rank of one layer": ({"rank_pattern": {"q_proj": 10**8}}, "rank_pattern is"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha is Infinity"),
    "copies of layers": ({"layer_replication": [[0, 100_000]]}, "'layer_replication' is"),
    "megatron": ({"megatron_config": {"a": 1}}, "'megatron_config' is"),
    "module to import": ({"megatron_core": "os"}, 'megatron_core is "os"'),
    "whole modules": ({"modules_to_save": ["embed_tokens"]}, "'modules_to_save' is"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "'trainable_token_indices' is"),
    "biases of the base": ({"bias": "all"}, 'bias is "all"'),
    "parameters": ({"target_parameters": ["mlp.weight"]}, "'target_parameters' is"),
    "another task": ({"task_type": "SEQ_CLS"}, 'task_type is "SEQ_CLS"'),
    "a field to come": ({"use_something_new": True}, "'use_something_new' is true"),
    "pissa": ({"init_lora_weights": "pissa"}, "changes the base"),
    "pissa quickly": ({"init_lora_weights": "pissa_niter_16"}, "changes the base"),
    "olora": ({"init_lora_weights": "olora"}, "changes the base"),
    "corda": ({"init_lora_weights": "corda"}, "changes the base"),
    "loftq": ({"init_lora_weights": "loftq"}, "changes the base"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "changes the base"),
    "capitals": ({"init_lora_weights": "PiSSA"}, "changes the base"),
    "unknown start": ({"init_lora_weights": "mica"}, "init_lora_weights is"),
    "no kind": ({"peft_type": ...}, "names no peft_type"),
    "kind of a number": ({"peft_type": 3}, "names no peft_type"),
    "too many names": ({"target_modules": ["q_proj"] * 100_001}, "target_modules is"),
    "a layer more": ({"target_modules": ["q_proj", "down_proj", "k_proj"]}, "lacks the weights of"),
    "a layer less": ({"target_modules": ["q_proj"]}, "its target_modules do not name"),
    "another layer": ({"target_modules": ["q_porj"]}, "its target_modules do not name"),
    "dora without magnitudes": ({"use_dora": True}, "lacks lora_magnitude_vector"),
}


@pytest.fixture(scope="module")
def llama(tiny_model: Make) -> Backbone:
    return load(tiny_model("llama"), "none")


@pytest.fixture
def adapter(tiny_model: Make, tmp_path: Path) -> Path:
    return made_elsewhere(tiny_model("llama"), tmp_path / "adapter")


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused_in_one_line(
    llama: Backbone, adapter: Path, what: str
) -> None:
    changes, says = REFUSED[what]
    edited(adapter, **changes)
    before = base_hash(llama)
    with pytest.raises(ModelError) as refused:
        llama.load_adapter("default", adapter)
    said = str(refused.value)
    assert says in said
    assert str(adapter) in said
    assert "\n" not in said
    assert len(said) < 700
    assert llama.adapters == []
    assert base_hash(llama) == before


def test_what_is_never_obeyed_may_stand_there(llama: Backbone, adapter: Path) -> None:
    llama.load_adapter("default", adapter)
    expected = logits(llama, "default")
    llama.clear()
    edited(
        adapter,
        init_lora_weights="eva",
        eva_config={"rho": 1.0},
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        peft_version="99.0",
        base_model_name_or_path="../elsewhere",
        use_something_new=False,
        something_else=None,
        target_modules=...,
    )
    llama.load_adapter("default", adapter)
    assert torch.equal(logits(llama, "default"), expected)
    llama.clear()


OTHER_KINDS = {
    "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "LOHA": LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "PROMPT_TUNING": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_kind_of_adapter_is_named(
    llama: Backbone, tiny_model: Make, tmp_path: Path, kind: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    get_peft_model(base, OTHER_KINDS[kind]).save_pretrained(tmp_path)
    for read in (
        lambda: llama.load_adapter("default", tmp_path),
        lambda: check_adapter(tmp_path, find_model(str(tiny_model("llama")))),
    ):
        with pytest.raises(ModelError, match=f'a "{kind}" adapter; alignkit reads LoRA') as refused:
            read()
        assert str(tmp_path) in str(refused.value)


def with_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = directory / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
HARMED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "a norm of the base": (
        lambda w: w.update({"base_model.model.model.norm.weight": torch.zeros(64)}),
        "holds a model.norm of its own",
    ),
    "the embedding": (
        lambda w: w.update({"base_model.model.model.embed_tokens.weight": torch.zeros(320, 64)}),
        "holds a model.embed_tokens of its own",
    ),
    "more tokens": (
        lambda w: w.update({"base_model.model.model.embed_tokens.weight": torch.zeros(322, 64)}),
        "holds a model.embed_tokens of its own",
    ),
    "a weight under an adapter": (
        lambda w: w.update({f"{Q}.base_layer.weight": torch.zeros(64, 64)}),
        "q_proj of its own",
    ),
    "a bias": (
        lambda w: w.update({"base_model.model.lm_head.bias": torch.zeros(320)}),
        "is not a weight of a LoRA adapter",
    ),
    "integers": (
        lambda w: w.update({f"{Q}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int8)}),
        "is not a weight of a LoRA adapter",
    ),
    "half a factor": (lambda w: w.pop(f"{Q}.lora_B.weight"), "has no lora_B"),
    "a layer lost": (
        lambda w: [w.pop(f"{Q}.lora_{side}.weight") for side in "AB"],
        "lacks the weights of model.layers.0.self_attn.q_proj",
    ),
    "another width": (
        lambda w: w.update({f"{Q}.lora_A.weight": torch.zeros(4, 65)}),
        r"lora_A.weight is (4, 65), expected (4, 64)",
    ),
    "no product": (
        lambda w: w.update({f"{Q}.lora_B.weight": torch.zeros(64, 3)}),
        "not a product",
    ),
    "infinity": (lambda w: w[f"{Q}.lora_A.weight"].fill_(float("inf")), "that are infinite"),
    "not a number": (lambda w: w[f"{Q}.lora_A.weight"].fill_(float("nan")), "not a number"),
    "nothing": (lambda w: w.clear(), "holds no LoRA weights"),
    "layers of a deeper model": (
        lambda w: [
            w.update(
                {f"{Q}.lora_{side}.weight".replace("layers.0", "layers.7"): torch.zeros(shape)}
            )
            for side, shape in (("A", (4, 64)), ("B", (64, 4)))
        ],
        "model.layers.7.self_attn.q_proj, which",
    ),
}


@pytest.mark.parametrize("what", HARMED)
def test_weights_that_are_not_an_adapters_own_are_refused(
    llama: Backbone, adapter: Path, what: str
) -> None:
    change, says = HARMED[what]
    with_weights(adapter, change)
    before = base_hash(llama)
    with pytest.raises(ModelError) as refused:
        llama.load_adapter("default", adapter)
    assert says in str(refused.value)
    assert llama.adapters == []
    assert base_hash(llama) == before


def test_an_equal_copy_of_the_base_is_left_out(llama: Backbone, adapter: Path) -> None:
    own = llama.base.get_input_embeddings().weight.detach().float().clone()
    name = "base_model.model.model.embed_tokens.weight"
    with_weights(adapter, lambda weights: weights.update({name: own}))
    before = base_hash(llama)
    llama.load_adapter("default", adapter)
    llama.clear()
    assert base_hash(llama) == before


def test_a_configuration_that_is_no_file_or_too_large_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.write_text("{" + '"a": "' + "x" * (5 << 20) + '"}')
    with pytest.raises(ModelError, match="larger than 4 MiB"):
        read_adapter(adapter)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ModelError, match="adapter_config.json is not an ordinary file"):
        read_adapter(adapter)


# --- names of layers -----------------------------------------------------------------------------


def adapted(backbone: Backbone) -> Iterator[str]:
    return (name for name in backbone.parameters_of("default"))


def test_names_between_commas_are_several(tiny_model: Make) -> None:
    backbone = load(tiny_model("llama"), "none", lora_target_modules=("q_proj, v_proj",))
    backbone.new_adapter("default", seed=0)
    assert len(list(adapted(backbone))) == 2 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in adapted(backbone))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("q_porj",), r"no layer called 'q_porj' .*This model has q_proj, "),
        (("q_proj,v_porj",), r"no layer called 'v_porj' .*This model has v_proj, "),
        (("lm_head",), r"no layer called 'lm_head' that can have an adapter"),
        (("embed_tokens",), r"no layer called 'embed_tokens' that can"),
        (("self_attn",), r"no layer called 'self_attn' that can"),
        (("all-linear", "q_proj"), r"no layer called 'all-linear' that can"),
        ((",",), "names no layer"),
    ],
)
def test_names_that_no_layer_has_are_refused(
    llama: Backbone, names: tuple[str, ...], says: str
) -> None:
    other = Backbone(
        llama.base,
        llama.tokenizer,
        llama.files,
        llama.config.model_copy(update={"lora_target_modules": names}),
    )
    with pytest.raises(RecipeError, match=says):
        other.new_adapter("default", seed=0)
    assert other.adapters == []
