"""The value on a frozen trunk: one forward for score and value, states that never change."""

from __future__ import annotations

import pytest
import torch

from alignkit.forward.logps import Group, completion_states
from alignkit.model.backbone import POLICY, REWARD, Backbone
from alignkit.model.heads import ScalarHead
from alignkit.ppo.advantages import explained_variance
from alignkit.ppo.rewards import ModelReward, Rewards, RolloutPrompt, Sample
from alignkit.ppo.rollout import Rollout, mask_of
from alignkit.ppo.value import FrozenTrunk, OwnAdapter
from alignkit.recipe.settings import BackboneConfig
from alignkit.scorers.reward_model import RewardModel
from alignkit.stages.ppo import start_value
from tests.ppo.test_loop import settings, surroundings, weights

STOP = 2


@pytest.fixture
def place(tmp_path, tiny_model):
    """A run directory with a reward model, and the backbone with a policy on it."""
    config = BackboneConfig(model_name_or_path=str(tiny_model("qwen2")), lora_r=4)
    backbone = Backbone.load(config)
    backbone.new_adapter(REWARD, seed=3)
    with torch.no_grad():
        for name, parameter in backbone.parameters_of(REWARD).items():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    head = ScalarHead(64, seed=4)
    backbone.save_adapter(REWARD, tmp_path / "rm" / "adapter", head=head)
    backbone.clear()
    backbone.new_adapter(POLICY, seed=1)
    context = surroundings(tmp_path / "run", tiny_model("qwen2"), inputs={"rm": tmp_path / "rm"})
    return backbone, context


def samples() -> list[Sample]:
    prompts = [(5, 6, 7), (5, 6, 7), (9, 8, 7, 6, 5), (30,)]
    replies = [((40, 41, STOP), True), ((50,) * 6, False), ((60, STOP), True), ((61, 62), False)]
    return [
        Sample(RolloutPrompt(f"p{i}", (), prompt), ids, "", stopped)
        for i, (prompt, (ids, stopped)) in enumerate(zip(prompts, replies, strict=True))
    ]


def opened(place, **changes):
    """The reward source and the value's learner of a run with these settings."""
    backbone, context = place
    config = settings(reward=(), reward_model=("rm",), **changes)
    model = RewardModel.load(backbone, context.artifact("rm"), REWARD)
    source = ModelReward("rm", model, STOP, 3)
    rewards = Rewards([source], [1.0], None)
    return source, start_value(backbone, config, context, rewards, 10)


def test_one_forward_gives_the_scores_and_states_of_two(place):
    source, critic = opened(place)
    assert isinstance(critic, FrozenTrunk)
    batch = samples()
    scores = source.scores(batch)
    values, states = critic.measure(batch)

    backbone, _ = place
    groups = [Group(s.prompt.ids, [s.ids]) for s in batch]
    ended = [Group(s.prompt.ids, [s.ids if s.stopped else (*s.ids, STOP)]) for s in batch]
    with backbone.role(REWARD) as model, torch.no_grad():
        expected = completion_states(model, groups, pad_token_id=0, which="tokens")
        last = completion_states(model, ended, pad_token_id=0, which="last")
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(scores), critic.head(last), rtol=1e-5, atol=1e-5)
    mask = mask_of(batch)
    torch.testing.assert_close(values[mask], critic.head(expected), rtol=1e-5, atol=1e-5)
    assert float(values[~mask].abs().max()) == 0
    # Asked again, without scores before it, the answer is the same.
    torch.testing.assert_close(critic.measure(batch)[1], states)


def test_other_completions_than_those_scored_last_get_their_own_states(place):
    source, critic = opened(place)
    batch = samples()
    source.scores(batch)
    _, states = critic.measure(batch[1:])
    assert len(states) == sum(len(s.ids) for s in batch[1:])


def rollout_of(critic, batch) -> tuple[Rollout, torch.Tensor]:
    values, states = critic.measure(batch)
    mask = mask_of(batch)
    nothing = torch.zeros_like(values)
    scores = torch.zeros(len(batch))
    returns = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2)) * mask
    return (
        Rollout(
            samples=batch,
            mask=mask,
            logps=nothing,
            ref_logps=nothing,
            values=values,
            raw_scores=scores[None],
            scores=scores,
            stopped=scores > 0,
            states=states,
        ),
        returns,
    )


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_updates_bring_values_to_returns_and_move_nothing_else(place, value):
    backbone, _ = place
    _, critic = opened(place, value=value, value_learning_rate=0.01, num_mini_batches=2)
    assert isinstance(critic, FrozenTrunk if value == "head" else OwnAdapter)
    untouched = {POLICY, REWARD} if value == "head" else {POLICY}
    before = {name: backbone.adapter_hash(name) for name in untouched}
    batch = samples()
    first, returns = rollout_of(critic, batch)
    for iteration in range(8):
        rollout, _ = rollout_of(critic, batch)
        noted = critic.update(rollout, returns, iteration)
        assert noted["loss/value_avg"] > 0
    last, _ = rollout_of(critic, batch)
    fit = [explained_variance(r.values, returns, r.mask) for r in (first, last)]
    assert fit[1] > fit[0] + 0.2
    assert {name: backbone.adapter_hash(name) for name in untouched} == before


def test_micro_batches_do_not_change_the_step(place):
    found = []
    for size in (1, 4):
        _, critic = opened(place, value_learning_rate=0.02, per_device_train_batch_size=size)
        rollout, returns = rollout_of(critic, samples())
        critic.update(rollout, returns, 0)
        found.append(critic.head.linear.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_head_is_saved_with_the_trunk_it_reads(tmp_path, tiny_model, place):
    from alignkit.stages import ppo

    backbone, context = place
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"kind": "prompt", "id": "p", "prompt": [{"role": "user", "content": "hello"}]}\n'
    )
    config = settings(prompts=(str(prompts),), reward=(), reward_model=("rm",), total_episodes=16)
    ppo.run(config, context)
    trunk, saved = weights(tmp_path / "rm"), weights(context.directory, "value")
    assert all(torch.equal(trunk[name], saved[name]) for name in trunk)
    start, head = (
        ScalarHead.load(d) for d in (tmp_path / "rm" / "adapter", context.directory / "value")
    )
    assert not torch.equal(start.linear.weight, head.linear.weight)
    assert start.network is None
    assert float(head.network[2].weight.detach().abs().max()) > 0
    assert head.scale.std > 0


def test_a_widened_head_starts_as_the_head_it_was(tmp_path):
    head = ScalarHead(16, seed=3)
    wide = head.widened(32, seed=5)
    states = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(states), wide(states))
    torch.nn.init.normal_(wide.network[2].weight)
    wide.save(tmp_path)
    assert torch.equal(ScalarHead.load(tmp_path)(states), wide(states))
    assert not torch.equal(head(states), wide(states))


def test_both_optimizers_are_adam_as_ppo_wants_it(place):
    """Epsilon 1e-5 and no weight decay (arXiv:2403.17031, detail 22)."""
    from alignkit.ppo.learners import PolicyLearner

    backbone, _ = place
    _, critic = opened(place)
    policy = PolicyLearner(backbone, settings(), 0, 10)
    for optimizer in (critic.optimizer, policy.optimizer):
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.defaults["eps"] == 1e-5
        assert optimizer.defaults["betas"] == (0.9, 0.999)
        assert optimizer.defaults["weight_decay"] == 0


def test_rewards_are_whitened_before_returns_are_made_of_them(place):
    from dataclasses import replace

    from alignkit.stages.ppo import ppo_targets

    _, critic = opened(place)
    rollout, _ = rollout_of(critic, samples())
    mask = rollout.mask
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0])
    rollout = replace(rollout, values=torch.zeros_like(rollout.values), scores=scores)

    def last_returns(whiten: bool) -> torch.Tensor:
        config = settings(whiten_rewards=whiten)
        found = ppo_targets(rollout, torch.zeros_like(rollout.values), 0.1, config).returns
        assert found is not None
        return found[range(4), rollout.lengths - 1]

    # With values 0 the return of the last token is its reward: the score, and zero elsewhere.
    torch.testing.assert_close(last_returns(False), scores)
    count = int(mask.sum())
    mean = float(scores.sum()) / count
    deviation = (float(scores.square().sum()) / count - mean**2) ** 0.5
    expected = (scores - mean) / deviation + mean  # scaled about the mean, which stays
    torch.testing.assert_close(last_returns(True), expected, rtol=1e-4, atol=1e-4)
