"""Details of PPO (arXiv:2403.17031) that only a run shows: what the settings reach, and when."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import tensor

from alignkit.data.chat import Encoder
from alignkit.data.records import Message
from alignkit.errors import RecipeError, TrainingFailed
from alignkit.forward import lm_head
from alignkit.model.backbone import POLICY, REWARD, Backbone
from alignkit.model.heads import ScalarHead, Scale
from alignkit.ppo import learners, loop
from alignkit.ppo import value as value_module
from alignkit.ppo.advantages import gae, next_kl_coef, token_rewards
from alignkit.ppo.learners import PolicyLearner
from alignkit.ppo.loop import OnlineTrainer, State, Targets
from alignkit.ppo.prompts import fit_prompts, stop_ids
from alignkit.ppo.rewards import ModelReward, Rewards, RolloutPrompt, Sample
from alignkit.ppo.rollout import Rollout, Sampler, mask_of
from alignkit.ppo.validation import Validation
from alignkit.recipe.settings import BackboneConfig, RlooConfig
from alignkit.stages import ppo, rloo
from tests.ppo.test_loop import (
    clear_model,
    rows_of,
    same,
    settings,
    surroundings,
    weights,
    workplace,
)
from tests.ppo.test_value import opened, place, rollout_of, samples

__all__ = ["clear_model", "place", "workplace"]


# --- start -------------------------------------------------------------------------------------


def disturbed(backbone: Backbone, name: str) -> None:
    with torch.no_grad():
        for key, weight in backbone.parameters_of(name).items():
            if "lora_B" in key:
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sft(workplace, tiny_model):
    """A run whose adapter answers unlike the bare model."""
    config = BackboneConfig(model_name_or_path=str(tiny_model("llama")), lora_r=4)
    backbone = Backbone.load(config)
    backbone.new_adapter(POLICY, seed=3)
    disturbed(backbone, POLICY)
    backbone.save_adapter(POLICY, workplace / "sft" / "adapter")
    return {"sft": workplace / "sft"}


@pytest.mark.parametrize(("reference", "away"), [("start", False), ("backbone", True)])
def test_kl_is_measured_to_the_adapter_the_policy_starts_from(
    workplace, tiny_model, sft, reference, away
):
    context = surroundings(workplace / "run", tiny_model("llama"), inputs=sft)
    config = settings(policy="sft", reference=reference, learning_rate=1e-6, total_episodes=16)
    ppo.run(config, context)
    (row,) = rows_of(context)
    assert (row["objective/kl_k3"] > 0.01) is away


def test_a_reference_that_is_no_copy_of_the_start_is_refused(
    workplace, tiny_model, sft, monkeypatch
):
    copy = Backbone.copy_adapter

    def worse(self, source, target):
        copy(self, source, target)
        disturbed(self, target)
        with torch.no_grad():
            next(iter(self.parameters_of(target).values())).mul_(1.001)

    monkeypatch.setattr(Backbone, "copy_adapter", worse)
    context = surroundings(workplace / "run", tiny_model("llama"), inputs=sft)
    with pytest.raises(TrainingFailed, match=r"differs from its reference by .* before the first"):
        rloo.run(settings(RlooConfig, policy="sft"), context)


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_the_value_starts_as_the_reward_model(place, value):
    _, critic = opened(place, value=value)
    source, _ = opened(place, value="adapter")
    critic.head.scale = Scale(0.5, 2.0)
    batch = samples()
    values, _ = critic.measure(batch)
    states = source.states(batch)
    expected = (source.model.head(states) - 0.5) / 2.0
    torch.testing.assert_close(values[mask_of(batch)], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_without_a_reward_model_the_value_starts_at_zero(workplace, tiny_model, value):
    context = surroundings(workplace / "run", tiny_model("llama"))
    ppo.run(settings(value=value, total_episodes=16), context)
    assert rows_of(context)[0]["val/values"] == 0


def test_heads_start_from_the_width_of_the_model():
    head = ScalarHead(4096, seed=1)
    assert float(head.linear.weight.detach().std()) == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    assert float(head.linear.bias.detach()) == 0
    assert float(ScalarHead(8, zero=True).linear.weight.detach().abs().max()) == 0


def test_an_alarm_that_cannot_ring_is_said(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    few = settings(total_episodes=16, eval_prompts=("prompts.jsonl",))
    ppo.run(few, context)
    prompts = len((workplace / "prompts.jsonl").read_text().splitlines())
    assert prompts < 8  # two standard errors of a win rate are then above a half
    assert any(f"{prompts} prompts are too few for it" in line for line in context.say)


def test_scores_are_normalised_by_the_starting_policys_and_the_scale_is_left(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    metrics = ppo.run(settings(reward_clip=None), context)
    (scale,) = metrics["score_scales"]
    assert 0 < scale["mean"] < 1 and 0 < scale["std"] < 0.5
    for row in rows_of(context):
        raw = row["rewards/toy_reward:letters"]
        expected = (raw - scale["mean"]) / scale["std"]
        assert row["objective/scores"] == pytest.approx(expected, abs=1e-4)
    assert (context.directory / "score_scales.json").read_text().count("mean") == 1


# --- rollout -----------------------------------------------------------------------------------


def test_a_temperature_holds_for_old_new_and_reference(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("qwen2"))
    ppo.run(settings(learning_rate=1e-30, temperature=0.5), context)
    for row in rows_of(context):
        assert row["objective/kl_k3"] == pytest.approx(0, abs=1e-5)
        assert row["val/ratio"] == pytest.approx(1, abs=1e-5)


def test_nothing_but_the_temperature_shapes_what_is_sampled(workplace, tiny_model):
    """-log p of a sample is on average the entropy, unless the likeliest tokens are preferred."""
    config = settings(response_length=1, rollout_forward_batch_size=512)
    context = surroundings(workplace / "run", tiny_model("llama"))
    backbone = context.backbone
    backbone.new_adapter(POLICY, seed=1)
    sampler = Sampler(backbone, config, [2], None)
    prompts = [RolloutPrompt("p", (), (5, 6, 7))] * 2000
    drawn, completions = sampler.sample(prompts, seed=3, temperature=1.0)
    seen = sampler.own_logps(drawn, completions)
    with backbone.role(POLICY) as model, torch.no_grad():
        logps = model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
    entropy = float(-(logps.exp() * logps).sum())
    spread = float((logps.exp() * (logps + entropy).square()).sum()) ** 0.5
    assert float(-seen.mean()) == pytest.approx(entropy, abs=4 * spread / 2000**0.5)
    backbone.clear()


@pytest.mark.parametrize(("stage", "more"), [(ppo, {}), (rloo, {"kind": RlooConfig})])
def test_a_completion_that_does_not_stop_pays_in_training_and_on_held_out_prompts(
    workplace, tiny_model, stage, more
):
    context = surroundings(workplace / "run", tiny_model("llama"))
    config = settings(
        **more,
        missing_eos_penalty=2.0,
        normalize_rewards=False,
        total_episodes=16,
        eval_prompts=("prompts.jsonl",),
    )
    stage.run(config, context)
    before, row = rows_of(context)
    paid = 2.0 * (1 - row["rollout/eos_rate"])
    assert paid > 0.5
    assert row["objective/scores"] == pytest.approx(
        row["rewards/toy_reward:letters"] - paid, abs=1e-5
    )
    for look in (before, row):
        paid = 2.0 * (1 - look["eval/eos_rate"])
        assert look["eval/score"] == pytest.approx(look["eval/reward"] - paid, abs=1e-5)


def test_log_probs_that_sampling_rounds_are_scored_again(workplace, tiny_model, monkeypatch):
    monkeypatch.setattr(loop, "CAPTURE_TOLERANCE", -1.0)
    asked = []
    right = Sampler.logps

    def noted(self, batch, adapter):
        asked.append(adapter)
        return right(self, batch, adapter)

    monkeypatch.setattr(Sampler, "logps", noted)
    context = surroundings(workplace / "run", tiny_model("llama"))
    ppo.run(settings(total_episodes=32), context)
    assert any("they are computed again" in line for line in context.say)
    assert asked[-4:] == [POLICY, "ref", POLICY, "ref"]


@pytest.mark.parametrize("change", ["bfloat16", "int8"])
def test_log_probs_of_rounding_models_are_never_taken_from_sampling(
    workplace, tiny_model, monkeypatch, change
):
    backbone = surroundings(workplace / "run", tiny_model("llama")).backbone
    assert Sampler(backbone, settings(), [2], None).captures_logps
    if change == "bfloat16":
        monkeypatch.setattr(backbone, "dtype", torch.bfloat16)
    else:
        monkeypatch.setattr(
            backbone, "config", backbone.config.model_copy(update={"quantization": "int8"})
        )
    assert not Sampler(backbone, settings(), [2], None).captures_logps


def test_a_named_stop_token_is_one_token(workplace, tiny_model):
    encoder = Encoder(surroundings(workplace / "run", tiny_model("llama")).backbone.tokenizer)
    assert stop_ids(settings(), encoder) == [2]
    (letter,) = encoder.tokenizer("a", add_special_tokens=False)["input_ids"]
    assert stop_ids(settings(stop_token="a"), encoder) == [letter]
    with pytest.raises(RecipeError, match="stop_token 'ab' is 2 tokens"):
        stop_ids(settings(stop_token="ab"), encoder)


def test_a_long_prompt_loses_its_start_and_keeps_its_end(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    config = settings(max_length=16, response_length=12, on_overlong="truncate_prompt")
    long = RolloutPrompt("p:1", (), (1, 2, 3, 4, 5, 6))
    (cut,) = fit_prompts([long], config, context)
    assert cut.ids == (3, 4, 5, 6)
    assert "1 of 1 prompts are longer than 4 tokens" in context.say[0]
    kept = config.model_copy(update={"on_overlong": "drop"})
    assert fit_prompts([long], kept, context) == []


# --- what is logged ----------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_rows_numbers_by_hand(estimator):
    prompt = RolloutPrompt("p:1", (), (1,))
    batch = [Sample(prompt, (3, 4, 2), "", True), Sample(prompt, (5,), "", False)]
    logps, ref = (
        tensor([[-1.0, -2.0, -3.0], [-4.0, 0, 0]]),
        tensor([[-1.5, -2.0, -2.0], [-5.0, 0, 0]]),
    )
    scores = tensor([2.0, -1.0])
    mask = mask_of(batch)
    roll = Rollout(
        batch, mask, logps, ref, logps * 0, scores[None] * 10, scores, tensor([True, False])
    )
    trainer = OnlineTrainer.__new__(OnlineTrainer)
    trainer.config = settings(kl_estimator=estimator)
    trainer.state = State(kl_coef=0.1)
    trainer.rewards = Rewards([type("Source", (), {"name": "a"})()], [1.0], None)
    returns = tensor([[1.0, 1.0, 2.0], [0.0, 0, 0]])
    row = trainer._describe(roll, trainer._penalty(roll), Targets(returns, returns))
    # Log-ratios: 0.5, 0, -1 and 1; summed -0.5 and 1, so that k1 is 0.25 on average.
    k3 = (math.expm1(-0.5) + 0.5 + math.expm1(1.0) - 1.0 + math.expm1(-1.0) + 1.0) / 2
    charged = 0.1 * {"k1": 0.25, "k3": k3}[estimator]
    assert row == pytest.approx(
        {
            "objective/kl": 0.25,
            "objective/kl_k3": k3,
            "objective/entropy": 5.0,
            "objective/scores": 0.5,
            "objective/scores_std": 1.5,
            "objective/non_score_reward": -charged,
            "objective/rlhf_reward": 0.5 - charged,
            "objective/kl_coef": 0.1,
            "rollout/length": 2.0,
            "rollout/eos_rate": 0.5,
            "val/num_eos_tokens": 1.0,
            "rewards/a": 5.0,
            "val/values": 0.0,
            "val/explained_variance": 0.0,
        },
        abs=1e-6,
    )


def test_the_update_logs_what_users_of_ppo_look_for(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    ppo.run(settings(total_episodes=16, learning_rate=1e-30), context)
    (row,) = rows_of(context)
    names = "policy/approxkl_avg policy/clipfrac_avg loss/policy_avg loss/value_avg val/ratio"
    assert {*names.split(), "val/ratio_var", "val/clipfrac_avg", "learning_rate"} <= row.keys()
    # The random model is close to uniform over 320 tokens.
    assert row["policy/entropy_avg"] == pytest.approx(math.log(320), rel=0.05)


# --- update ------------------------------------------------------------------------------------


def spied(right, seen):
    def noted(*arguments, **given):
        seen.append(given)
        return right(*arguments, **given)

    return noted


def test_settings_of_the_loss_reach_it(workplace, tiny_model, monkeypatch):
    seen = []
    for module, name in ((learners, "policy_terms"), (value_module, "value_terms")):
        monkeypatch.setattr(module, name, spied(getattr(module, name), seen))
    context = surroundings(workplace / "run", tiny_model("llama"))
    wanted = {"cliprange": 0.1, "dual_clip": 3.0, "entropy_coef": 0.01}
    ppo.run(settings(total_episodes=16, cliprange_value=0.4, **wanted), context)
    assert wanted in seen and {"cliprange_value": 0.4} in seen
    assert all(given in (wanted, {"cliprange_value": 0.4}) for given in seen)


@pytest.fixture
def learning(place):
    """A policy, and a rollout of it with advantages."""
    backbone, _ = place
    disturbed(backbone, POLICY)

    def start(**changes):
        config = settings(learning_rate=1e-3, lr_scheduler_type="constant", **changes)
        batch = samples()
        logps = Sampler(backbone, config, [2], None).logps(batch, POLICY)
        nothing, scores = torch.zeros_like(logps), torch.zeros(len(batch))
        roll = Rollout(
            batch, mask_of(batch), logps, logps, nothing, scores[None], scores, scores > 0
        )
        advantages = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2))
        return PolicyLearner(backbone, config, 5, 10), roll, advantages * roll.mask

    return start


def test_micro_batches_do_not_change_the_policys_step(learning):
    """Completions are 3, 6, 2 and 2 tokens long: a mean of means would be another gradient."""
    found = []
    for size in (1, 3, 4):
        learner, roll, advantages = learning(
            per_device_train_batch_size=size, num_ppo_epochs=1, num_mini_batches=1
        )
        own = learner.backbone.parameters_of(POLICY)
        before = {
            name: w.detach().clone() for name, w in learner.backbone.parameters_of(POLICY).items()
        }
        found.append(learner.update(roll, advantages, 0)["policy/grad_norm"])
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(before[name])
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_each_epoch_has_its_own_order_and_every_row_once(learning, monkeypatch):
    orders, right = [], learners.mini_batches

    def noted(roll, config, seed):
        orders.append([tuple(part) for part in right(roll, config, seed)])
        return iter([list(part) for part in orders[-1]])

    monkeypatch.setattr(learners, "mini_batches", noted)
    learner, roll, advantages = learning(num_ppo_epochs=6, num_mini_batches=2, max_ratio=1e9)
    learner.update(roll, advantages, 0)
    assert len(orders) == 6
    assert all(sorted(sum(order, ())) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 2


def test_epochs_end_where_the_policy_went_too_far(learning):
    learner, roll, advantages = learning(num_ppo_epochs=5, num_mini_batches=1, early_stop_kl=1e-9)
    noted = learner.update(roll, advantages, 0)
    assert noted["policy/stopped_early"] == 1
    steps = next(iter(learner.optimizer.state.values()))["step"]
    assert int(steps) == 2  # before the first step nothing has changed yet


@pytest.mark.parametrize(("limit", "moved"), [(1.0, 1.0), (0.0, 5.0)])
def test_a_long_gradient_is_cut_to_its_limit(limit, moved):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = tensor([3.0, 4.0])
    assert learners.step(torch.optim.SGD([weight], lr=1.0), [weight], limit, 0.5) == 5.0
    assert float(weight.detach().norm()) == pytest.approx(moved)
    assert weight.grad is None


@pytest.mark.parametrize(("gradient", "loss"), [(math.nan, 0.5), (math.inf, 0.5), (1.0, math.nan)])
def test_a_loss_or_gradient_that_is_no_number_stops_before_it_moves_a_weight(gradient, loss):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = tensor([1.0, gradient])
    with pytest.raises(TrainingFailed, match="lower learning_rate"):
        learners.step(torch.optim.SGD([weight], lr=1.0), [weight], 1.0, loss)
    assert weight.tolist() == [0, 0]


def test_the_value_has_a_learning_rate_and_a_decay_of_its_own(place):
    _, critic = opened(place, value_learning_rate=0.03, num_ppo_epochs=1)
    roll, returns = rollout_of(critic, samples())
    critic.update(roll, returns, 5)  # of 10 iterations
    assert critic.optimizer.param_groups[0]["lr"] == pytest.approx(0.015)


def test_kl_coef_is_steered_from_one_iteration_to_the_next(workplace, clear_model):
    context = surroundings(workplace / "run", clear_model)
    config = settings(kl_target=0.05, kl_horizon=64.0, learning_rate=5e-3)
    metrics = ppo.run(config, context)
    rows = rows_of(context)
    coefs = [*(row["objective/kl_coef"] for row in rows), metrics["kl_coef"]]
    for row, now, then in zip(rows, coefs, coefs[1:], strict=False):
        kl = row["objective/kl"]
        expected = next_kl_coef(now, kl, target=0.05, horizon=64.0, episodes=16)
        assert then == pytest.approx(expected, rel=1e-5)
    assert len(set(coefs)) == len(coefs)


# --- what is kept ------------------------------------------------------------------------------


def test_the_best_policy_is_that_of_the_best_objective(workplace, clear_model):
    """The score goes on rising while KL costs more than it brings."""
    context = surroundings(workplace / "run", clear_model)
    config = settings(
        eval_prompts=("prompts.jsonl",), eval_steps=1, learning_rate=5e-3, kl_coef=1.0
    )
    metrics = ppo.run(config, context)
    looks = {row["step"]: row for row in rows_of(context)}
    for row in looks.values():
        objective = row["eval/score"] - 1.0 * row["eval/kl"]
        assert row["eval/objective"] == pytest.approx(objective, abs=1e-4)
    best = max(looks, key=lambda step: looks[step]["eval/objective"])
    assert metrics["best_iteration"] == best
    assert metrics["best_iteration"] != max(looks, key=lambda step: looks[step]["eval/score"])


DRAWN = """
import random
import numpy as np
import torch
def score(prompt, completion):
    return random.random() + float(np.random.rand()) + float(torch.rand(()))
"""


def killed_in_its_fourth_iteration(run, monkeypatch):
    iterate = OnlineTrainer._iterate

    def dies(self):
        if self.state.iteration == 3:
            raise KeyboardInterrupt
        return iterate(self)

    monkeypatch.setattr(OnlineTrainer, "_iterate", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(OnlineTrainer, "_iterate", iterate)


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_a_reward_that_draws_numbers_goes_on_where_it_stopped(workplace, tiny_model, monkeypatch):
    (workplace / "toy_drawn.py").write_text(DRAWN)
    config = settings(RlooConfig, reward=("toy_drawn:score",), save_steps=2)

    model = tiny_model("llama")
    seed_all(7)
    whole = surroundings(workplace / "whole", model)
    expected = rloo.run(config, whole)
    seed_all(7)
    broken = surroundings(workplace / "broken", model)
    killed_in_its_fourth_iteration(lambda: rloo.run(config, broken), monkeypatch)
    again = surroundings(workplace / "broken", model)
    assert rloo.run(config, again) == expected


AWAY = (
    DRAWN
    + """
left = [10**9]
def away(prompt, completion):
    left[0] -= 1
    if left[0] == 0:
        raise ConnectionError("the service is away")
    return score(prompt, completion)
"""
)


def test_what_was_learned_before_a_reward_gave_up_is_kept(workplace, tiny_model):
    """No checkpoint was due; the run goes on to the bits of one that nothing happened to."""
    (workplace / "toy_away.py").write_text(AWAY)
    config = settings(RlooConfig, reward=("toy_away:away",))
    model = tiny_model("llama")
    seed_all(7)
    expected = rloo.run(config, surroundings(workplace / "whole", model))

    import toy_away

    asked = 10**9 - toy_away.left[0]
    toy_away.left[0] = asked - 5  # in the last of four iterations
    seed_all(7)
    with pytest.raises(TrainingFailed, match=r"the service is away.*checkpoint-3 is intact"):
        rloo.run(config, surroundings(workplace / "broken", model))
    assert rloo.run(config, surroundings(workplace / "broken", model)) == expected


def test_advantages_are_whitened_over_the_whole_rollout_and_returns_are_not(place):
    _, critic = opened(place)
    roll, _ = rollout_of(critic, samples())
    roll = replace(roll, scores=tensor([1.0, -2.0, 0.5, 3.0]))
    kl = 0.1 * roll.mask
    config = settings(gamma=0.9, lam=0.8)
    found = ppo.ppo_targets(roll, kl, 0.5, config)
    rewards = token_rewards(kl, roll.scores, roll.mask, 0.5)
    plain, returns = gae(rewards, roll.values, roll.mask, gamma=0.9, lam=0.8)
    assert torch.equal(found.returns, returns)
    kept = plain[roll.mask]
    expected = (kept - kept.mean()) / kept.std(unbiased=False)
    torch.testing.assert_close(found.advantages[roll.mask], expected, rtol=1e-4, atol=1e-5)
    assert float(found.advantages[~roll.mask].abs().max()) == 0


def test_evaluations_on_held_out_prompts_weigh_kl_alike(workplace, clear_model, monkeypatch):
    """Else the best of a run is chosen by yardsticks that kl_target moves."""
    seen, right = [], Validation.evaluate

    def noted(self, kl_coef):
        seen.append(kl_coef)
        return right(self, kl_coef)

    monkeypatch.setattr(Validation, "evaluate", noted)
    context = surroundings(workplace / "run", clear_model)
    steered = {"kl_target": 0.05, "kl_horizon": 64.0, "learning_rate": 5e-3, "eval_steps": 1}
    ppo.run(settings(eval_prompts=("prompts.jsonl",), **steered), context)
    assert set(seen) == {0.05}


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_dropout_of_a_trained_adapter_is_off_in_every_role(workplace, tiny_model, value):
    """B of a fresh adapter is zero, and dropout before it changes nothing: this one is not."""
    found = []
    for share in (0.5, 0.0):
        here = workplace / f"p{share}"
        config = BackboneConfig(
            model_name_or_path=str(tiny_model("llama")), lora_r=4, lora_dropout=share
        )
        backbone = Backbone.load(config)
        backbone.new_adapter(POLICY, seed=3)
        disturbed(backbone, POLICY)
        backbone.save_adapter(POLICY, here / "sft" / "adapter")
        context = surroundings(
            here / "run", tiny_model("llama"), inputs={"sft": here / "sft"}, lora_dropout=share
        )
        changes = {"policy": "sft", "learning_rate": 1e-6, "value_learning_rate": 1e-3}
        ppo.run(settings(value=value, total_episodes=32, **changes), context)
        found.append(rows_of(context)[-1])
    dropped, kept = found
    assert kept["val/values"] != 0
    for name in ("val/values", "loss/value_avg", "objective/kl_k3", "policy/approxkl_avg"):
        assert dropped[name] == pytest.approx(kept[name], rel=1e-4, abs=1e-7), name


def died_and_went_on(stage, config, surround, monkeypatch):
    """Metrics and contexts of a whole run and of one that died in its fourth iteration."""
    whole = surround("whole")
    expected = stage.run(config, whole)
    killed_in_its_fourth_iteration(lambda: stage.run(config, surround("broken")), monkeypatch)
    again = surround("broken")
    return expected, whole, stage.run(config, again), again


def test_log_probs_that_were_scored_again_are_so_after_a_stop(workplace, tiny_model, monkeypatch):
    def surround(name):
        return surroundings(workplace / name, tiny_model("llama"))

    config = settings(RlooConfig, save_steps=2)
    usual, asked = loop.CAPTURE_TOLERANCE, []
    monkeypatch.setattr(loop, "CAPTURE_TOLERANCE", -1.0)
    killed_in_its_fourth_iteration(lambda: rloo.run(config, surround("run")), monkeypatch)
    monkeypatch.setattr(loop, "CAPTURE_TOLERANCE", usual)
    right = Sampler.logps
    monkeypatch.setattr(Sampler, "logps", lambda *given: [asked.append(given[2]), right(*given)][1])
    rloo.run(config, surround("run"))
    assert asked == [POLICY, "ref"] * 2


def test_the_best_policy_from_before_a_stop_is_the_one_that_is_left(
    workplace, tiny_model, monkeypatch
):
    def surround(name):
        return surroundings(workplace / name, tiny_model("llama"))

    config = settings(
        RlooConfig, kl_coef=1e4, save_steps=2, eval_prompts=("prompts.jsonl",), eval_steps=1
    )
    expected, whole, found, again = died_and_went_on(rloo, config, surround, monkeypatch)
    assert found == expected and expected["best_iteration"] < 2
    assert same(weights(again.directory), weights(whole.directory))


def test_a_value_in_a_reward_models_units_goes_on_in_them(
    workplace, tiny_model, place, monkeypatch
):
    _, context = place

    def surround(name):
        return surroundings(workplace / name, tiny_model("qwen2"), inputs=dict(context.inputs))

    config = settings(reward=(), reward_model=("rm",), save_steps=2)
    _, whole, _, again = died_and_went_on(ppo, config, surround, monkeypatch)
    names = ("val/values", "loss/value_avg", "objective/scores")
    left, right = ([[row[n] for n in names] for row in rows_of(c)] for c in (again, whole))
    assert left == right


def test_logits_are_made_in_chunks(monkeypatch):
    made, right = [], lm_head._logits

    def noted(hidden, *rest):
        made.append(len(hidden))
        return right(hidden, *rest)

    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 4 * 50 * 3)  # three rows of fp32 logits
    monkeypatch.setattr(lm_head, "_logits", noted)
    linear = torch.nn.Linear(8, 50).requires_grad_(False)
    lm_head.token_logps(
        lm_head.LmHead(linear, 1.0, None),
        torch.ones(10, 8),
        torch.arange(10),
        temperature=1.0,
        entropy=False,
    )
    assert made == [3, 3, 3, 1]


def test_a_reward_model_reads_the_end_that_it_was_trained_on(workplace, tiny_model, monkeypatch):
    """EOS and the template's end of a turn are two tokens in Gemma, Phi and base models."""
    context = surroundings(workplace / "run", tiny_model("llama"), inputs={"rm": workplace / "rm"})
    backbone = context.backbone
    backbone.tokenizer = copy.deepcopy(backbone.tokenizer)
    backbone.tokenizer.eos_token = "<|im_start|>"  # id 1, before <|im_end|>
    encoder = Encoder(backbone.tokenizer)
    assert sorted(encoder.stop_token_ids) == [1, 2]
    trained = encoder.completion_ids(
        [Message(role="user", content="a")], [Message(role="assistant", content="b")]
    )
    assert trained[-1] == 2
    backbone.new_adapter(REWARD, seed=3)
    backbone.save_adapter(REWARD, workplace / "rm" / "adapter", head=ScalarHead(64, seed=4))
    backbone.clear()
    read = []
    right = ModelReward._groups

    def noted(self, samples):
        groups = right(self, samples)
        pairs = zip(groups, samples, strict=True)
        read.extend(g.completions[0][-1] for g, s in pairs if not s.stopped)
        return groups

    monkeypatch.setattr(ModelReward, "_groups", noted)
    ppo.run(settings(reward=(), reward_model=("rm",), total_episodes=16), context)
    assert set(read) == {2}
