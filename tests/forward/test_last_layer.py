"""The last layer computes what is read, no more; tests/forward/test_logps.py holds its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit.forward.last_layer import read_positions
from alignkit.forward.logps import Group, completion_logps, completion_states

GROUPS = [Group(list(range(5, 25)), [[30, 31, 32], [40, 41]])]  # 20 + 2 + 1 fed for log-probs


@pytest.fixture
def model() -> Any:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    completion_logps(made, GROUPS, pad_token_id=0)  # the model is tried out once, outside counting
    return made


def tokens_through(model: Any, run: Any, part: str = "mlp.gate_proj") -> list[int]:
    """How many tokens this part of each layer took."""
    seen: list[int] = []
    modules = [layer.get_submodule(part) for layer in model.model.layers]

    def counting(own: Any) -> Any:
        return lambda hidden: seen.append(hidden.shape[1]) or own(hidden)

    for module in modules:
        module.forward = counting(module.forward)
    run()
    for module in modules:
        del module.forward
    return seen


@pytest.mark.parametrize("part", ["mlp.gate_proj", "self_attn.q_proj", "self_attn.o_proj"])
def test_the_last_layer_takes_the_positions_that_are_read(model, part):
    # The prompt's last token predicts both first tokens; then one and two more predict the rest.
    through = tokens_through(model, lambda: completion_logps(model, GROUPS, pad_token_id=0), part)
    assert through == [23, 23, 1 + 2 + 1]
    through = tokens_through(model, lambda: completion_states(model, GROUPS, pad_token_id=0), part)
    assert through == [25, 25, 2]


def test_the_last_layer_keeps_all_keys_and_values(model):
    for part in ("self_attn.k_proj", "self_attn.v_proj"):
        run = lambda: completion_logps(model, GROUPS, pad_token_id=0)  # noqa: E731
        assert tokens_through(model, run, part) == [23, 23, 23]


def test_a_forward_that_was_patched_before_is_back_behind_it(model):
    module, calls = model.model.layers[-1].self_attn.q_proj, []
    own = module.forward
    module.forward = patched = lambda hidden: calls.append(hidden.shape[1]) or own(hidden)
    completion_logps(model, GROUPS, pad_token_id=0)
    assert module.forward is patched
    assert calls == [4]


def test_padded_rows_and_mostly_read_rows_are_left_alone(model):
    run = lambda: completion_logps(model, GROUPS, pad_token_id=0, path="padded")  # noqa: E731
    assert len(set(tokens_through(model, run))) == 1
    dense = [Group([5], [[6, 7, 8, 9]])]
    assert tokens_through(model, lambda: completion_logps(model, dense, pad_token_id=0)) == [4] * 3


def test_layers_that_are_computed_again_are_left_alone(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    through = tokens_through(model, lambda: completion_logps(model, GROUPS, pad_token_id=0))
    assert through == [23, 23, 23]


def test_the_mlp_is_itself_again_behind_an_error(model):
    mlp = model.model.layers[-1].mlp
    short = torch.zeros(1, 3, 32)
    with pytest.raises(RuntimeError), read_positions(model, torch.tensor([8]), 9):
        mlp(short)  # there is no ninth position
    assert mlp(short).shape == short.shape


def test_rows_nobody_reads_get_no_gradient_and_others_get_all_of_it(model):
    mlp = model.model.layers[-1].mlp
    hidden = torch.randn(1, 6, 32, requires_grad=True)
    with read_positions(model, torch.tensor([4, 1, 4]), 6):
        out = mlp(hidden)
    whole = mlp(hidden)
    assert torch.equal(out[:, [0, 2, 3, 5]], torch.zeros(1, 4, 32))
    torch.testing.assert_close(out[:, [1, 4]], whole[:, [1, 4]])
    out.sum().backward()
    got = hidden.grad.clone()
    assert torch.equal(got[:, [0, 2, 3, 5]], torch.zeros(1, 4, 32))
    hidden.grad = None
    whole[:, [1, 4]].sum().backward()
    torch.testing.assert_close(got[:, [1, 4]], hidden.grad[:, [1, 4]])
