"""Generation equals transformers' greedy search, and samples from the distribution it claims."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from alignkit.errors import DataError
from alignkit.forward.decoder import decoder_for
from alignkit.forward.generation import draw, generate

STOP, PAD = 7, 0
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,  # far from uniform, so that greedy choices are clear
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral": MistralConfig(**SMALL, sliding_window=None, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, head_dim=8),
}


def build(name, *, lora=True):
    torch.manual_seed(3)
    config = copy.deepcopy(CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return with_adapter(model) if lora else model


def with_adapter(model):
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).eval()
    with torch.no_grad():
        for parameter_name, parameter in wrapped.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0, 0.2)
    return wrapped


def prompts(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(8, 64, size=rng.integers(2, 12)).tolist() for _ in range(n)]


def transformers_greedy(model, prompt_list, new_tokens, stops=(STOP,)):
    width = max(map(len, prompt_list))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompt_list])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_list])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=list(stops),
            pad_token_id=PAD,
        )
    rows = []
    for row in out[:, width:].tolist():
        ends = [place for place, token in enumerate(row) if token in stops]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


def ours(model, prompt_list, **changes):
    settings = {
        "max_new_tokens": 20,
        "temperature": 0.0,
        "seed": 0,
        "batch_size": 16,
        "stop_token_ids": [STOP],
        "pad_token_id": PAD,
    }
    return generate(model, prompt_list, **{**settings, **changes})


def common_stops(model, prompt_list):
    """Two tokens that greedy search says in the middle of many completions."""
    said = transformers_greedy(model, prompt_list, 20, stops=())
    middle = [token for row in said for token in row[3:15]]
    counts = np.bincount(middle, minlength=64)
    return [int(token) for token in np.argsort(counts)[::-1][:2]]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_greedy_equals_transformers_token_for_token(name, merge):
    model, prompt_list = build(name), prompts(16)
    stops = common_stops(model, prompt_list)
    expected = transformers_greedy(model, prompt_list, 20, stops=stops)
    assert not isinstance(decoder_for(model), str)
    got = ours(model, prompt_list, stop_token_ids=stops, merge=merge)
    assert [c.ids for c in got] == expected
    lengths = {len(row) for row in expected}
    assert len(lengths) > 2  # stops really fell in the middle
    assert [c.stopped for c in got] == [row[-1] in stops for row in expected]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_prompts_side_by_side_are_read_as_they_are_alone(name):
    model, few = build(name), prompts(5)
    decoder = decoder_for(model, merge=True)
    with torch.no_grad():
        logits = decoder.prefill(few, 3, torch.device("cpu"))
        alone = [model(torch.tensor([prompt])).logits[0, -1] for prompt in few]
    assert torch.allclose(logits, torch.stack(alone), atol=1e-4)
    width = max(map(len, few))
    assert decoder.cache.length == width
    assert len(set(map(len, few))) > 1
    for row, prompt in enumerate(few):  # masked, so that no number may be in the way
        for cached in (*decoder.cache.keys, *decoder.cache.values):
            assert (cached[row, :, : width - len(prompt)] == 0).all()
            assert (cached[row, :, width - len(prompt) : width] != 0).any()


def test_greedy_equals_transformers_without_adapter_and_with_equal_lengths():
    model = build("llama", lora=False)
    prompt_list = [[8 + i, 9, 10 + i] for i in range(6)]
    got = ours(model, prompt_list)
    assert [c.ids for c in got] == transformers_greedy(model, prompt_list, 20)


def test_bare_backbone_is_what_a_disabled_adapter_generates():
    model, prompt_list = build("llama"), prompts(4)
    adapted = [c.ids for c in ours(model, prompt_list)]
    with model.disable_adapter():
        bare = [c.ids for c in ours(model, prompt_list)]
        expected = transformers_greedy(model, prompt_list, 20)
    assert bare == expected
    assert bare != adapted


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_nf4_with_adapter_equals_transformers_and_leaves_gradients_alone(name, tmp_path):
    import bitsandbytes as bnb

    build(name, lora=False).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )
    for module in base.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    model, prompt_list = with_adapter(base), prompts(16)

    def gradient():
        model.zero_grad()
        model(input_ids=torch.tensor([prompt_list[0] * 2])).logits.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    got = [c.ids for c in ours(model, prompt_list)]
    assert torch.equal(gradient(), before)
    assert got == transformers_greedy(model, prompt_list, 20)
    assert [c.ids for c in ours(model, prompt_list, merge=False)] == got


def test_architectures_the_decoder_does_not_know_fall_back_and_say_so(caplog):
    model, prompt_list = build("gemma2"), prompts(16)
    with caplog.at_level(logging.WARNING):
        got = ours(model, prompt_list)
    assert "model type 'gemma2'" in caplog.text
    assert [c.ids for c in got] == transformers_greedy(model, prompt_list, 20)


def test_sliding_windows_fall_back():
    config = MistralConfig(**SMALL, sliding_window=8, head_dim=8)
    assert decoder_for(AutoModelForCausalLM.from_config(config)) == "sliding-window attention"


def test_samples_do_not_depend_on_batch_size_or_neighbours():
    model, prompt_list = build("llama"), prompts(12)
    together = ours(model, prompt_list, temperature=1.0, seed=5)
    for batch_size in (1, 5):
        apart = ours(model, prompt_list, temperature=1.0, seed=5, batch_size=batch_size)
        assert [c.ids for c in apart] == [c.ids for c in together]
    alone = ours(model, prompt_list[7:8], temperature=1.0, seed=5, first_row=7)
    assert alone[0].ids == together[7].ids
    other = ours(model, prompt_list, temperature=1.0, seed=6)
    assert [c.ids for c in other] != [c.ids for c in together]


def test_both_loops_draw_the_same_samples():
    model, prompt_list = build("llama"), prompts(8)
    fast = ours(model, prompt_list, temperature=0.9, top_p=0.8, capture_logps=True)
    from alignkit.forward import generation

    draws = generation._Draws(0, range(8), 20, 0.9, 0.8, True)
    batch = generation._Batch(range(8), prompt_list, draws, {STOP})
    with torch.no_grad():
        generation._complete_with_transformers(model, batch, PAD, lambda _n: None)
    slow = batch.completions()
    assert [c.ids for c in slow] == [c.ids for c in fast]
    for left, right in zip(slow, fast, strict=True):
        assert left.logps == pytest.approx(right.logps, abs=1e-4)


def test_repeated_prompts_get_different_samples_and_the_same_greedy_completion():
    model = build("llama")
    sampled = ours(model, [[9, 10, 11]] * 6, temperature=1.0)
    assert len({tuple(c.ids) for c in sampled}) > 1
    greedy = ours(model, [[9, 10, 11]] * 6)
    assert len({tuple(c.ids) for c in greedy}) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_captured_logps_equal_a_full_forward_at_that_temperature(temperature):
    model, prompt_list = build("qwen2"), prompts(6)
    for prompt, completion in zip(
        prompt_list,
        ours(model, prompt_list, temperature=temperature, capture_logps=True),
        strict=True,
    ):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion.ids])).logits[0]
        logps = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        expected = logps.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert completion.logps == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_models_own_generation_config_does_not_leak_in(name):
    model, prompt_list = build(name, lora=False), prompts(6)
    clean = [c.ids for c in ours(model, prompt_list, temperature=1.0)]
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.eos_token_id = list(range(8, 40))
    assert [c.ids for c in ours(model, prompt_list, temperature=1.0)] == clean
    assert model.generation_config.top_k == 1


def test_draw_picks_the_slice_that_holds_the_number():
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(5, 4)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71])
    assert draw(probabilities, uniforms).tolist() == [0, 0, 2, 2, 3]


def test_draw_with_top_p_keeps_the_fewest_likeliest_tokens():
    # Sorted: token 2 (0.5), 3 (0.3), 0 (0.2). 0.6 needs two of them: slices 0.5 and 0.3 of 0.8.
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(4, 4)
    uniforms = torch.tensor([0.0, 0.62, 0.63, 0.99])
    assert draw(probabilities, uniforms, top_p=0.6).tolist() == [2, 2, 3, 3]
    assert draw(probabilities, uniforms, top_p=0.5).tolist() == [2, 2, 2, 2]


def test_sampling_frequencies_match_the_models_probabilities():
    model = build("llama")
    prompt = [9, 10, 11]
    completions = ours(model, [prompt] * 4000, temperature=1.0, max_new_tokens=1, batch_size=1000)
    counts = np.bincount([c.ids[0] for c in completions], minlength=64)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    big = expected * 4000 >= 5
    chi2 = ((counts[big] - 4000 * expected[big]) ** 2 / (4000 * expected[big])).sum()
    from scipy.stats import chi2 as chi2_law

    assert chi2_law.sf(chi2, big.sum()) > 1e-3


def test_progress_adds_up_and_empty_prompts_are_refused():
    told: list[int] = []
    ours(build("llama"), prompts(9), batch_size=4, on_progress=told.append)
    assert sum(told) == 9
    with pytest.raises(DataError, match="prompt 2 of 2 has no tokens"):
        ours(build("llama"), [[9], []])
