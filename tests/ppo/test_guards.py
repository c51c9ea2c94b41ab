"""Guards speak when they should, name the cause, and stay silent otherwise."""

from __future__ import annotations

import json

import pytest
import torch

from alignkit.errors import TrainingFailed
from alignkit.ppo.guards import (
    Evaluation,
    Spread,
    Start,
    check_iteration,
    check_rollout,
    check_spread,
    is_flat,
    reward_hacking,
)
from alignkit.ppo.learners import rate_factor
from alignkit.ppo.rewards import RolloutPrompt, Sample
from alignkit.ppo.rollout import Rollout, practice_order, sampling_seed
from alignkit.recipe.settings import PpoConfig

START = Start(length=20.0, eos_rate=0.95)
HEALTHY = {
    "objective/kl": 2.0,
    "objective/scores": 0.5,
    "rollout/eos_rate": 0.9,
    "rollout/length": 24.0,
}


def config(**changes):
    return PpoConfig(prompts=("p",), reward_model=("gold",), response_length=64, **changes)


def test_a_healthy_iteration_passes():
    check_iteration(HEALTHY, START, config(kl_limit=10.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective/kl": 11.0}, r"KL to the reference is 11 nats .*raise kl_coef"),
        ({"objective/scores": float("nan")}, "objective/scores is nan"),
        ({"rollout/eos_rate": 0.2}, "only 20% of completions stop by themselves, 95% did"),
        ({"rollout/length": 63.0}, "completions grew from 20 to 63 tokens"),
    ],
)
def test_each_guard_names_what_happened(change, message):
    with pytest.raises(TrainingFailed, match=message):
        check_iteration(HEALTHY | change, START, config(kl_limit=10.0))


@pytest.mark.parametrize("name", ["objective/kl_k3", "val/values", "loss/value_avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_any_number_that_is_not_finite_stops(name, value):
    with pytest.raises(TrainingFailed, match=f"{name} is {value}. lower learning_rate"):
        check_iteration(HEALTHY | {name: value}, START, config())


def rollout(**changes):
    turns = ({"role": "user", "content": "go"},)
    samples = [Sample(RolloutPrompt(f"p:{n}", turns, (1,)), (2, 3), "x", True) for n in (1, 2, 3)]
    flat = torch.zeros(3, 2)
    values = {"logps": flat, "ref_logps": flat, "values": flat, "scores": torch.zeros(3)}
    values |= {"raw_scores": torch.zeros(1, 3), "stopped": torch.ones(3).bool()}
    return Rollout(samples=samples, mask=torch.ones(3, 2).bool(), **(values | changes))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("logps", "its log-probability is"),
        ("ref_logps", "its log-probability under the reference is"),
        ("values", "its value is"),
        ("scores", "its score is"),
    ],
)
def test_a_completion_whose_numbers_are_not_finite_names_its_prompt(part, name, bad):
    check_rollout(rollout())
    spoiled = getattr(rollout(), part).clone()
    spoiled[1] = bad
    with pytest.raises(TrainingFailed, match=f"^p:2: a completion was sampled, but {name} not"):
        check_rollout(rollout(**{part: spoiled}))


def test_groups_whose_completions_all_score_alike_are_counted():
    spread = Spread()
    raw = torch.tensor([[1.0, 1.0, 2.0, 3.0, 5.0, 5.0]])
    assert spread.add(raw[0], raw, 2) == 2
    assert (spread.flat, spread.flat_rewards, spread.groups, spread.idle_groups) == (0, 0, 3, 2)
    same = torch.ones(1, 6)
    assert spread.add(torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0]), same, 2) == 3
    assert (spread.flat, spread.flat_rewards, spread.idle_share) == (0, 1, 5 / 6)
    check_spread(spread, 2)
    assert Spread().add(same[0], same, 1) == 0
    assert is_flat(same) and not is_flat(raw)


@pytest.mark.parametrize(
    ("scores", "k", "told"),
    [
        ([1.0] * 4, 1, "tell two completions apart"),
        ([1.0] * 4, 2, "tell two completions apart"),
        ([1.0, 1.0, 0.0, 0.0], 2, "tell completions of one prompt apart"),
        ([1.0, 1.0, 0.0, 0.0], 1, None),
        ([1.0, 0.0, 0.0, 0.0], 2, None),
    ],
)
def test_a_run_whose_scores_never_told_completions_apart_learned_nothing(scores, k, told):
    spread = Spread()
    for _ in range(3):
        spread.add(torch.tensor(scores), torch.tensor([scores]), k)
    if told is None:
        check_spread(spread, k)
    else:
        with pytest.raises(TrainingFailed, match=f"in none of 3 iterations .*{told}. give a rew"):
            check_spread(spread, k)
    check_spread(Spread(), k)


def test_a_rise_is_told_with_its_standard_error():
    """Of eight iterations the first two and the last two are compared."""
    spread = Spread(means=[0, 0.2, 9, 9, 9, 9, 0.4, 0.6], errors=[1, 1, 9, 9, 9, 9, 2, 2])
    first, last, error = spread.rise()
    assert (first, last) == (0.1, 0.5)
    assert error == pytest.approx((1 + 1 + 4 + 4) ** 0.5 / 2)


def test_the_error_of_a_score_counts_prompts_and_not_their_completions():
    """Means of prompts 1, 3, 5: deviation 2, so 2 / sqrt(3); equal completions change nothing."""
    scores = torch.tensor([1.0, 1.0, 2.0, 4.0, 5.0, 5.0])
    spread = Spread()
    spread.add(scores, scores[None], 2)
    spread.add(scores.repeat_interleave(4), scores.repeat_interleave(4)[None], 8)
    assert spread.means == [3.0, 3.0]
    assert spread.errors == pytest.approx([2 / 3**0.5] * 2)


def test_a_policy_that_never_stopped_is_not_held_to_it():
    check_iteration(HEALTHY | {"rollout/eos_rate": 0.0}, Start(20.0, 0.1), config())


def seen(iteration, score, win_rate, prompts=200):
    return Evaluation(iteration, score, win_rate, prompts)


def test_the_alarm_of_reward_hacking_needs_both_a_rise_and_a_fall_beyond_chance():
    rising = [seen(5, 0.2, 0.60), seen(10, 0.5, 0.75)]
    assert reward_hacking(rising, "gold") is None
    # Two standard errors of the difference of two win rates on 200 prompts: 2*sqrt(.5/200) = 0.1.
    assert reward_hacking([*rising, seen(15, 0.9, 0.66)], "gold") is None
    alarm = reward_hacking([*rising, seen(15, 0.9, 0.64)], "gold")
    assert alarm == (
        "the score rose from 0.5 to 0.9 since iteration 10 while the win rate by gold fell from "
        "75% to 64%: the policy probably exploits the reward"
    )
    assert reward_hacking([*rising, seen(15, 0.4, 0.40)], "gold") is None


def test_learning_rates_are_a_function_of_the_iteration():
    linear = config(warmup_steps=2)
    assert [rate_factor(linear, i, 6) for i in range(6)] == [0, 0.5, 1, 0.75, 0.5, 0.25]
    cosine = config(lr_scheduler_type="cosine")
    assert rate_factor(cosine, 0, 4) == 1
    assert rate_factor(cosine, 2, 4) == pytest.approx(0.5)
    assert rate_factor(config(lr_scheduler_type="constant"), 3, 4) == 1


def test_each_lap_visits_every_prompt_once_in_an_order_of_its_own():
    laps = [practice_order(6, 3, seed=1, iteration=i) for i in range(4)]
    assert sorted(laps[0] + laps[1]) == [0, 1, 2, 3, 4, 5]
    assert sorted(laps[2] + laps[3]) == [0, 1, 2, 3, 4, 5]
    assert laps[0] + laps[1] != laps[2] + laps[3]
    assert practice_order(6, 3, seed=1, iteration=2) == laps[2]
    assert practice_order(6, 4, seed=1, iteration=1)[:2] == laps[1][1:]


def test_sampling_seeds_differ_by_iteration_and_run():
    seeds = {sampling_seed(seed, iteration) for seed in range(3) for iteration in range(50)}
    assert len(seeds) == 150


def test_replies_over_time_stand_side_by_side(tmp_path):
    from alignkit.ppo.validation import replies_over_time

    rows = [
        {"step": step, "prompt": prompt, "completion": f"{prompt} {step}", "score": step / 2}
        for step in (0, 2, 4, 6)
        for prompt in ("a", "b")
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = replies_over_time(file)
    assert first == {
        "prompt": "a",
        "replies": {"iteration 0": "a 0", "iteration 4": "a 4", "iteration 6": "a 6"},
        "scores": {"iteration 0": 0.0, "iteration 4": 2.0, "iteration 6": 3.0},
    }
    assert second["prompt"] == "b"
