"""Embedding and head held in 16 bits: half the bytes, every result the same to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit.forward import half_embedding
from alignkit.forward.generation import generate
from alignkit.forward.half_embedding import BLOCK, HalfEmbedding, HalfLinear, project, store_in_half
from alignkit.forward.lm_head import LmHead, token_logps
from alignkit.forward.logps import Group, completion_logps
from alignkit.model import backbone
from alignkit.model.backbone import Backbone
from alignkit.model.probe import probe_ids
from alignkit.recipe.settings import BackboneConfig

VOCABULARY, HIDDEN = 2 * BLOCK + 452, 64
GROUPS = [Group([5, 9, 40], [[77, 2400, 30], [8, 200]]), Group([6, 2047, 2048], [[19, 3]])]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Make:
    """A random model of a shape whose values are those of `dtype`, stored in `file_dtype`."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(
        shape: str, *, tied: bool = True, dtype: str = "bfloat16", file_dtype: str = ""
    ) -> Path:
        key = (shape, tied, dtype, file_dtype)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("stored") / "model"
            model = random_model(shape, tied).to(getattr(torch, dtype))
            model.to(getattr(torch, file_dtype or dtype)).save_pretrained(made[key])
            tiny_tokenizer.save_pretrained(made[key])
        return made[key]

    return make


def random_model(shape: str, tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def load(directory: Path, **settings: Any) -> Backbone:
    return Backbone.load(BackboneConfig(model_name_or_path=str(directory), lora_r=4, **settings))


def both(
    directory: Path, monkeypatch: pytest.MonkeyPatch, adapter: Path | None = None, **settings: Any
) -> tuple[Backbone, Backbone]:
    """The same base with its ends in 16 bits and in full, each with the same roused adapter."""
    half = load(directory, **settings)
    with monkeypatch.context() as patched:
        patched.setattr(backbone, "store_in_half", lambda model: False)
        full = load(directory, **settings)
    for each in (half, full):
        if adapter is None:
            each.new_adapter("default", seed=1)
        else:
            each.load_adapter("default", adapter)
        generator = torch.Generator().manual_seed(2)
        for parameter in each.parameters_of("default").values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return half, full


def ends(model: Any) -> tuple[type, type]:
    return type(model.get_input_embeddings()), type(model.get_output_embeddings())


def weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


HALF, FULL = (HalfEmbedding, HalfLinear), (nn.Embedding, nn.Linear)
CASES = [("llama", False, "nf4"), ("qwen2", True, "nf4"), ("qwen3", True, "none")]


@pytest.mark.parametrize(("shape", "tied", "quantization"), CASES)
def test_log_probs_and_gradients_are_the_same_to_the_bit(
    stored: Make, monkeypatch: pytest.MonkeyPatch, shape: str, tied: bool, quantization: str
) -> None:
    found = []
    for each in both(stored(shape, tied=tied), monkeypatch, quantization=quantization):
        with each.training("default") as model:
            logps = completion_logps(model, GROUPS, pad_token_id=0, temperature=0.7, entropy=True)
            logps.sums.dot(torch.tensor([1.0, -0.5, 0.3])).backward()
        gradients = [p.grad for p in each.parameters_of("default").values()]
        assert all(g is not None and g.abs().sum() > 0 for g in gradients)
        found.append([logps.per_token.detach(), logps.entropy, *gradients])
        found[-1].append(model(torch.tensor([probe_ids(each)]), use_cache=False).logits.detach())
    assert len(found[0]) == 2 * 2 * 7 + 3
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("shape", "tied", "quantization"), CASES)
@pytest.mark.parametrize("merge", [True, False])
def test_greedy_and_sampled_completions_are_the_same(
    stored: Make,
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
    tied: bool,
    quantization: str,
    merge: bool,
) -> None:
    found: dict[float, list[Any]] = {0.0: [], 1.0: []}
    for each in both(stored(shape, tied=tied), monkeypatch, quantization=quantization):
        for temperature, seen in found.items():
            with each.role("default") as model:
                written = generate(
                    model,
                    [[5, 9, 40], [7], [2400, 8, 8, 8]],
                    max_new_tokens=12,
                    temperature=temperature,
                    seed=0,
                    batch_size=2,
                    stop_token_ids=[2],
                    pad_token_id=0,
                    capture_logps=True,
                    merge=merge,
                )
            seen.append([(c.ids, c.logps) for c in written])
    for half, full in found.values():
        assert half == full
    assert found[0.0][0] != found[1.0][0]


def test_transformers_own_generate_writes_the_same(
    stored: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [
        each.base.generate(
            torch.tensor([[5, 9, 40]]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        for each in both(stored("qwen2"), monkeypatch)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize(("tied", "matrices"), [(True, 1), (False, 2)])
def test_half_the_bytes_of_embedding_and_head_are_saved(
    stored: Make, monkeypatch: pytest.MonkeyPatch, tied: bool, matrices: int
) -> None:
    half, full = both(stored("llama", tied=tied), monkeypatch)
    saved = weight_bytes(full.base) - weight_bytes(half.base)
    assert saved == 2 * matrices * VOCABULARY * HIDDEN
    assert ends(half.base) == HALF
    embedding, head = half.base.get_input_embeddings(), half.base.get_output_embeddings()
    assert (embedding.weight is head.weight) is tied
    assert half.fingerprint == full.fingerprint
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "file_dtype", "held"),
    [
        ("bfloat16", "bfloat16", torch.bfloat16),
        ("bfloat16", "float32", torch.bfloat16),
        ("float16", "float16", torch.float16),
        ("float32", "float32", torch.float32),
    ],
)
def test_the_values_decide_and_not_what_the_file_is_written_in(
    stored: Make, dtype: str, file_dtype: str, held: torch.dtype
) -> None:
    base = load(stored("llama", tied=False, dtype=dtype, file_dtype=file_dtype)).base
    assert base.get_input_embeddings().weight.dtype == held
    assert base.get_output_embeddings().weight.dtype == held
    assert ends(base) == (FULL if held == torch.float32 else HALF)


def test_one_value_of_more_than_16_bits_keeps_its_matrix_in_full() -> None:
    model = random_model("llama", tied=False)
    for weight in (model.get_input_embeddings().weight, model.lm_head.weight):
        weight.data = weight.data.bfloat16().float()
    model.lm_head.weight.data[-1, -1] = 1 + 2**-20
    before = model(torch.tensor([[3, 4]])).logits
    assert store_in_half(model)
    assert ends(model) == (HalfEmbedding, nn.Linear)
    assert torch.equal(model(torch.tensor([[3, 4]])).logits, before)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_an_end_finds_it_in_fp32(
    stored: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(stored("llama", tied=False), dtype=torch.float32)
    made = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", target]))
    made.save_pretrained(tmp_path)
    half, full = both(stored("llama", tied=False), monkeypatch, tmp_path)
    answers = []
    for each in (half, full):
        assert not half_embedding.half_modules(each.base)
        with each.role("default") as model, torch.no_grad():
            answers.append(model(torch.tensor([[5, 9, 40]]), use_cache=False).logits)
    assert torch.equal(*answers)
    half.clear()
    assert ends(half.base) == FULL


def test_an_architecture_that_rounds_to_the_dtype_of_its_head_stays_in_full() -> None:
    """Mamba casts its states to what the head is stored in: 16 bits would lose half of them."""
    config = AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    weight = model.get_input_embeddings().weight
    weight.data = weight.data.bfloat16().float()
    before = model(torch.arange(9)[None], use_cache=False).logits
    assert not store_in_half(model)
    assert ends(model) == FULL
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert torch.equal(model(torch.arange(9)[None], use_cache=False).logits, before)


@pytest.mark.parametrize(
    ("shape", "saves"), [("gpt_neox", True), ("phi", True), ("gemma3_text", False)]
)
def test_other_architectures_are_tried_and_those_with_an_embedding_of_their_own_are_left(
    shape: str, saves: bool
) -> None:
    model = random_model(shape, tied=not saves)
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.weight.data = end.weight.data.bfloat16().float()
    before = model(torch.arange(9)[None], use_cache=False).logits
    assert store_in_half(model) is saves
    assert torch.equal(model(torch.arange(9)[None], use_cache=False).logits, before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_a_product_by_blocks_is_the_whole_product_to_the_bit(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    half = torch.randn(VOCABULARY, HIDDEN).bfloat16()
    offset = torch.randn(VOCABULARY) if bias else None
    hidden = torch.randn(2, rows, HIDDEN)
    whole = nn.functional.linear(hidden, half.float(), offset)
    assert torch.equal(project(hidden, half, offset), whole)
    assert torch.equal(project(hidden, half.float(), offset), whole)


def test_a_model_that_computes_in_half_keeps_the_whole_product() -> None:
    """Sums of blocks would be rounded to 16 bits between them."""
    torch.manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(5, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    values, _ = token_logps(
        LmHead(linear, 1.0, None), hidden, torch.arange(5), temperature=1.0, entropy=False
    )
    values.sum().backward()
    exact = hidden.detach().float().requires_grad_()
    logits = nn.functional.linear(exact, linear.weight.float()).log_softmax(-1)
    logits.diagonal()[:5].sum().backward()
    assert hidden.grad is not None and exact.grad is not None
    gap = (hidden.grad.float() - exact.grad).norm() / exact.grad.norm()
    assert gap < 4e-3  # half a step of bf16


def test_a_kept_base_is_written_in_full_and_held_in_half(
    stored: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from alignkit.model import quantized_cache as quantized_base
    from alignkit.model.files import check_safetensors

    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(quantized_base, "FEWEST_WEIGHTS", 1)
    fresh, kept = load(stored("qwen2")), load(stored("qwen2"))
    (file,) = tmp_path.rglob("*.safetensors")
    assert check_safetensors(file)["model.embed_tokens.weight"].dtype == "F32"
    assert ends(fresh.base) == ends(kept.base) == HALF
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(fresh.base(ids).logits, kept.base(ids).logits)
