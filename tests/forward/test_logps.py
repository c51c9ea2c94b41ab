"""The packed forward gives the padded forward's numbers, values and gradients, on every shape."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from alignkit.errors import DataError, ModelError
from alignkit.forward import lm_head, logps
from alignkit.forward.attention import by_padded_rows, by_segment, by_varlen
from alignkit.forward.layout import Layout, Segment
from alignkit.forward.logps import (
    Group,
    completion_logps,
    completion_states,
    obstacle_to_sharing,
    sequence_logps,
)
from alignkit.forward.packing import pack, pad
from alignkit.model.backbone import guard_cpu_quantization

WINDOW = 7
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "mistral": {"sliding_window": WINDOW},
}
VOCABULARY = 48


def make_model(shape: str, **settings: Any) -> Any:
    """A random model of two layers whose attention matters: weights far from zero."""
    config = AutoConfig.for_model(
        shape,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 64,
            "initializer_range": 0.15,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | settings,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def with_lora(base: Any) -> Any:
    """LoRA on every linear layer, B away from zero so that A has gradients too."""
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`models(shape, quantized)`, each made once."""
    made: dict[tuple[str, bool], Any] = {}

    def load(shape: str, quantized: bool) -> Any:
        if (shape, quantized) not in made:
            base = make_model(shape, **SHAPES[shape])
            if quantized:
                directory = tmp_path_factory.mktemp(shape)
                base.save_pretrained(directory)
                base = AutoModelForCausalLM.from_pretrained(
                    directory,
                    quantization_config=BitsAndBytesConfig(
                        load_in_4bit=True, bnb_4bit_quant_type="nf4"
                    ),
                    dtype=torch.float32,
                )
                assert guard_cpu_quantization(base) == 14
            made[shape, quantized] = with_lora(base)
        return made[shape, quantized]

    return load


@st.composite
def batches(draw: Any) -> list[Group]:
    """Groups of one to three completions; prompts sometimes repeat, and so do completions."""
    ids = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6)
    prompts = draw(st.lists(ids, min_size=1, max_size=2))
    completions = draw(st.lists(ids, min_size=1, max_size=4))
    return draw(
        st.lists(
            st.builds(
                Group,
                st.sampled_from(prompts),
                st.lists(st.sampled_from(completions), min_size=1, max_size=3),
            ),
            min_size=1,
            max_size=3,
        )
    )


def answers(model: Any, groups: list[Group], path: Any) -> dict[str, torch.Tensor]:
    """Everything the forward gives, and the gradient of a loss in which every token differs."""
    model.zero_grad()
    found = completion_logps(model, groups, pad_token_id=0, path=path, temperature=0.8)
    last = completion_states(model, groups, pad_token_id=0, path=path)
    before = completion_states(model, groups, pad_token_id=0, which="tokens", path=path)
    weights = torch.linspace(0.5, 1.5, len(found.per_token))
    loss = (found.per_token * weights).sum() + found.sums.sin().sum() + before.cos().mean()
    (loss + (last * torch.linspace(-1, 1, last.shape[1])).mean()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    return {
        "logps": found.per_token.detach(),
        "sums": found.sums.detach(),
        "last": last.detach(),
        "before": before.detach(),
        "gradient": gradient.clone(),
    }


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm().clamp(min=1e-12))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("quantized", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("shape", SHAPES)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=batches())
def test_packed_rows_give_the_padded_numbers(models, shape, quantized, checkpointing, groups):
    model = models(shape, quantized).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
    own = model.config._attn_implementation
    packed, padded = answers(model, groups, "auto"), answers(model, groups, "padded")
    for name, value in packed.items():
        assert distance(value, padded[name]) < 1e-4, name
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_that_can_share_do(models, shape):
    assert obstacle_to_sharing(models(shape, False), WINDOW) is None


def test_a_sliding_window_takes_padded_rows_once_a_sequence_is_longer(models, caplog):
    model = models("mistral", False)
    long = [Group([3, 4, 5, 6, 7], [[8, 9, 10], [11, 12, 13, 14]])]
    logps._warned.clear()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for _ in range(2):
            packed = completion_logps(model, long, pad_token_id=0)
    padded = completion_logps(model, long, pad_token_id=0, path="padded")
    assert torch.equal(packed.sums, padded.sums)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "MistralForCausalLM takes padded rows: "
        "its attention slides over 7 tokens and a sequence has 9"
    ]
    with pytest.raises(ModelError, match="cannot share prompts: its attention slides"):
        completion_logps(model, long, pad_token_id=0, path="shared")


def test_sharing_past_the_window_would_have_been_wrong(models):
    base = logps.causal_lm(models("mistral", False))
    long = [Group([3, 4, 5, 6, 7], [[8, 9, 10], [11, 12, 13, 14]])]
    with torch.no_grad():
        packed, _ = logps._states(base, pack(long))
        padded, _ = logps._states(base, pad(long, 0))
    assert distance(packed, padded) > 1e-2


@pytest.mark.parametrize(
    ("shape", "settings", "reason"),
    [
        ("gemma2", {}, "it caps attention logits"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "its attention cannot be replaced"),
        ("mamba", {}, "it is recurrent"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "it is recurrent"),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
    ],
)
def test_models_that_are_not_plainly_causal_say_why_and_agree_anyway(shape, settings, reason):
    model = make_model(shape, **settings).eval()
    assert reason in str(obstacle_to_sharing(model, 8))
    groups = [Group([3, 4, 5], [[6, 7], [8]])]
    with torch.no_grad():
        ours = completion_logps(model, groups, pad_token_id=0).sums
        logits = model(torch.tensor([[3, 4, 5, 6, 7]]), use_cache=False).logits.log_softmax(-1)[0]
    assert float(ours[0]) == pytest.approx(float(logits[2, 6] + logits[3, 7]), rel=1e-4)


def test_log_probs_are_the_models_own(models):
    model = models("llama", False).eval()
    with torch.no_grad():
        found = completion_logps(model, [Group([5, 6], [[7, 8]])], pad_token_id=0, entropy=True)
        own = model(torch.tensor([[5, 6, 7, 8]])).logits[0].log_softmax(-1)
    assert found.per_token.tolist() == pytest.approx([own[1, 7].item(), own[2, 8].item()], rel=1e-5)
    assert found.entropy is not None
    expected = -(own.exp() * own).sum(-1)[1:3]
    assert found.entropy.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("path", ["auto", "padded"])
def test_sequences_in_one_row_do_not_see_each_other(models, path):
    model = models("qwen2", False).eval()
    ids, masks = [[5, 6, 7, 8], [9, 10, 11]], [[0, 1, 0, 1], [1, 1, 1]]
    with torch.no_grad():
        found = sequence_logps(model, ids, masks, pad_token_id=0, path=path)
        own = [model(torch.tensor([row])).logits[0].log_softmax(-1) for row in ids]
    wanted = [own[0][0, 6], own[0][2, 8], own[1][0, 10], own[1][1, 11]]
    assert found.per_token.tolist() == pytest.approx([w.item() for w in wanted], rel=1e-4)
    assert found.lengths.tolist() == [2, 2]


def test_a_batch_without_a_target_is_refused(models):
    with pytest.raises(DataError, match="no token of this batch is trained"):
        sequence_logps(models("llama", False), [[1, 2]], [[1, 0]], pad_token_id=0)


def test_an_evaluation_does_not_change_the_next_gradient(models):
    groups = [Group([3, 4, 5], [[6, 7], [8, 9, 10]])]
    model = models("llama", True).train()
    before = answers(model, groups, "auto")["gradient"]
    model.eval()
    with torch.no_grad():
        completion_logps(model, groups, pad_token_id=0)
    after = answers(model.train(), groups, "auto")["gradient"]
    assert torch.equal(before, after)


def test_four_bit_layers_that_would_lose_their_gradients_are_refused(models):
    model = models("qwen3", True)
    base = logps.causal_lm(model)
    layer = next(m for m in base.modules() if type(m).__name__ == "Linear4bit")
    layer.support_avx512bf16_for_cpu = True
    logps._verdicts.pop(base, None)
    logps._verified_heads.discard(base)
    try:
        with pytest.raises(ModelError, match="repacks its weights"):
            completion_logps(model, [Group([3], [[4]])], pad_token_id=0)
    finally:
        layer.support_avx512bf16_for_cpu = False


def test_a_head_that_scales_its_logits_unknown_to_us_is_refused():
    model = make_model("llama").requires_grad_(False)
    own = model.lm_head.forward
    model.lm_head.forward = lambda states: own(states) * 2.0
    with pytest.raises(ModelError, match="changes its logits"):
        completion_logps(model, [Group([3], [[4]])], pad_token_id=0)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_made_in_the_forward_is_autograds(softcap, bias, monkeypatch):
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 4 * 50 * 3)  # three rows a chunk
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 50, bias=bias)
    head = lm_head.LmHead(linear, scale=0.7, softcap=softcap)
    targets = torch.randint(50, (10,))
    found = []
    for trained in (False, True):
        linear.requires_grad_(trained)
        hidden = torch.linspace(-2, 2, 80).view(10, 8).requires_grad_()
        assert head.is_frozen is not trained
        values, entropy = lm_head.token_logps(head, hidden, targets, temperature=0.5, entropy=True)
        (values * torch.arange(10.0)).sum().backward()
        found.append((values.detach(), entropy, hidden.grad))
    for ours, autograds in zip(*found, strict=True):
        assert torch.allclose(ours, autograds, atol=1e-5)


def test_near_certain_tokens_keep_their_small_gradients_in_bf16():
    linear = torch.nn.Linear(4, 3, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.data = torch.eye(3, 4, dtype=torch.bfloat16) * 8
    hidden = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.bfloat16, requires_grad=True)
    head = lm_head.LmHead(linear, 1.0, None)
    values, _ = lm_head.token_logps(head, hidden, torch.tensor([0]), temperature=1.0, entropy=False)
    values.sum().backward()
    p = torch.softmax(torch.tensor([8.0, 0.0, 0.0], dtype=torch.float64), 0)
    assert hidden.grad is not None
    # 1 - p is 6.7e-4: p itself rounds to 1 in bf16, and the gradient would be gone.
    assert hidden.grad[0, 0].item() == pytest.approx(8 * float(p[1] + p[2]), rel=1e-2)


def varlen_by_loop(
    q, k, v, starts, key_starts, longest, longest_key, *, dropout_p, softmax_scale, causal
):
    """The contract of flash_attn_varlen_func in plain torch: causal from the bottom right."""
    assert causal and longest == max(starts.diff()) and longest_key == max(key_starts.diff())
    out = []
    repeats = q.shape[1] // k.shape[1]
    for i in range(len(starts) - 1):
        a, b, c, d = starts[i], starts[i + 1], key_starts[i], key_starts[i + 1]
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d].repeat_interleave(repeats, 1))
        hidden = torch.ones(b - a, d - c, dtype=torch.bool).triu(int((d - c) - (b - a)) + 1)
        weights = (scores * softmax_scale).masked_fill(hidden, float("-inf")).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v[c:d].repeat_interleave(repeats, 1)))
    return torch.cat(out)


def test_every_kernel_is_the_attention_of_the_full_mask():
    segments = [Segment(4, (3, 0, 5)), Segment(2, ()), Segment(1, (0, 2))]
    layout = Layout(segments)
    row = sum(s.tokens for s in segments)
    torch.manual_seed(0)
    query = torch.randn(1, 4, row, 8)
    key, value = torch.randn(1, 2, row, 8), torch.randn(1, 2, row, 8)
    seen = torch.zeros(row, row, dtype=torch.bool)
    for branch in layout.branches:
        for i in branch.queries:
            seen[i, [k for k in branch.keys if k <= i]] = True
    expected = F.scaled_dot_product_attention(
        query, key, value, seen, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    for found in (
        by_segment(query, key, value, layout, 0.0, 0.3),
        by_padded_rows(query, key, value, layout, 0.0, 0.3),
        by_varlen(query, key, value, layout, 0.0, 0.3, varlen_by_loop),
    ):
        assert torch.allclose(found, expected, atol=1e-5)
    ends = Layout(segments, ends_only=True)
    assert torch.allclose(by_segment(query, key, value, ends, 0.0, 0.3), expected, atol=1e-5)
    expected[:, :3] = 0  # of the first prompt only the last position is read
    found = by_segment(query, key, value, ends, 0.0, 0.3, is_last=True)
    assert torch.allclose(found, expected, atol=1e-5)
