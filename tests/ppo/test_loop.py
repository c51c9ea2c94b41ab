"""PPO and RLOO end to end on small NF4 models: golden facts, exact resume, guards, memory."""

from __future__ import annotations

import json
import re
import textwrap

import pytest
import torch
from pydantic import ValidationError

from alignkit.errors import Interrupted, RecipeError, TrainingFailed
from alignkit.model.backbone import POLICY, Backbone
from alignkit.model.heads import ScalarHead
from alignkit.recipe.settings import BackboneConfig, PpoConfig, RlooConfig
from alignkit.report.stage_pages import write_pages
from alignkit.stages import ppo, rloo
from alignkit.training.context import StageContext
from tests.conftest import LONG

REWARD = """
    def letters(prompt, completion):
        return sum(c.isascii() and c.islower() for c in completion) / 12
    def latin(prompt, completion):
        return sum(c.isascii() and c.isalpha() for c in completion) / 12
    def signs(prompt, completion):
        return 1 - latin(prompt, completion)
    def broken(prompt, completion):
        raise ValueError("no opinion")
    def nan(prompt, completion):
        return float("nan")
    calls = 0
    def late(prompt, completion):  # 6 of the start, then 16 an iteration
        global calls
        calls += 1
        return float("inf") if calls > 6 + 2 * 16 else len(completion)
    def equal(prompt, completion):
        return 1
    def rare(prompt, completion):
        global calls
        calls += 1
        return calls % 16 == 0
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_reward.py").write_text(textwrap.dedent(REWARD))
    rows = [
        {"kind": "prompt", "id": f"p{i}", "prompt": [{"role": "user", "content": text}]}
        for i, text in enumerate(["hello", "why?", "tell me more", "ok", "go", "sum it up"])
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def settings(kind=PpoConfig, **changes):
    values = {
        "prompts": ("prompts.jsonl",),
        "reward": ("toy_reward:letters",),
        "response_length": 12,
        "total_episodes": 64,
        "rollout_batch_size": 16,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "missing_eos_penalty": None,
        "save_steps": 1000,
    }
    return kind(**{**values, **changes})


class Said(list):
    def __call__(self, line):
        self.append(line)


def surroundings(directory, model, *, inputs=None, say=None, quantization="nf4", lora_dropout=0.0):
    directory.mkdir(parents=True, exist_ok=True)
    shared: list[Backbone] = []

    def load():
        if not shared:
            config = BackboneConfig(
                model_name_or_path=str(model),
                quantization=quantization,
                lora_r=4,
                lora_dropout=lora_dropout,
            )
            shared.append(Backbone.load(config))
        return shared[0]

    return StageContext(
        directory=directory,
        seed=7,
        inputs=inputs or {},
        load_backbone=load,
        say=Said() if say is None else say,
        fingerprint={"test": 1},
    )


def rows_of(context):
    return [json.loads(line) for line in context.metrics_file.read_text().splitlines()]


def weights(directory, part="adapter"):
    from safetensors.torch import load_file

    return load_file(str(directory / part / "adapter_model.safetensors"))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture
def clear_model(tiny_model, tmp_path):
    """The random model with larger embeddings: nearly uniform logits leave nothing to learn."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6)
    model.save_pretrained(tmp_path / "clear")
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(tmp_path / "clear")
    return tmp_path / "clear"


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_without_a_learning_rate_the_ratio_is_one_and_kl_zero(workplace, tiny_model, shape):
    context = surroundings(workplace / "run", tiny_model(shape))
    ppo.run(settings(learning_rate=1e-30, kl_coef=1.0), context)
    for row in rows_of(context):
        assert row["objective/kl"] == pytest.approx(0, abs=1e-5)
        assert row["objective/kl_k3"] == pytest.approx(0, abs=1e-5)
        assert row["val/ratio"] == pytest.approx(1, abs=1e-5)
        assert row["val/ratio_var"] == pytest.approx(0, abs=1e-8)
        assert row["policy/clipfrac_avg"] == 0
        assert row["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("stage", "kind"), [(ppo, PpoConfig), (rloo, RlooConfig)])
def test_a_toy_reward_rises_while_kl_stays_under_its_target(workplace, clear_model, stage, kind):
    context = surroundings(workplace / "run", clear_model)
    config = settings(
        kind,
        total_episodes=12 * 96,
        rollout_batch_size=96,
        per_device_train_batch_size=96,
        learning_rate=4e-3 if kind is PpoConfig else 8e-3,
        kl_coef=0.05,
        kl_target=6.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.3,
        **({} if kind is PpoConfig else {"normalize_advantage": True}),
    )
    metrics = stage.run(config, context)
    assert "samples" not in metrics  # nothing was held out
    rewards = [row["rewards/toy_reward:letters"] for row in rows_of(context)]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3])
    # The controller swings about its target of 6 nats, a little further on some processors.
    assert rows_of(context)[-1]["objective/kl"] < 6.6
    assert metrics["moved_share"] > 0.9


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("none", marks=LONG)])
@pytest.mark.parametrize(
    ("stage", "kind", "extra"),
    [
        (ppo, PpoConfig, {}),
        (ppo, PpoConfig, {"value": "adapter", "gradient_checkpointing": True}),
        (rloo, RlooConfig, {}),
    ],
    ids=["ppo", "ppo with a value adapter", "rloo"],
)
def test_two_n_iterations_equal_n_a_stop_and_n_more(
    workplace, tiny_model, stage, kind, extra, quantization, monkeypatch
):
    model = tiny_model("qwen2")
    config = settings(
        kind,
        kl_target=1.0,
        kl_horizon=50.0,
        save_steps=2,
        alarm_judge="toy_reward:latin",
        eval_prompts=("prompts.jsonl",),
        eval_steps=1,
        lr_scheduler_type="cosine",
        **extra,
    )
    whole = surroundings(workplace / "whole", model, quantization=quantization)
    expected = stage.run(config, whole)

    from alignkit.ppo.loop import OnlineTrainer

    broken = surroundings(workplace / "broken", model, quantization=quantization)
    iterate, calls = OnlineTrainer._iterate, []

    def dies_in_the_fourth(self):
        calls.append(self.state.iteration)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return iterate(self)

    monkeypatch.setattr(OnlineTrainer, "_iterate", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, broken)
    monkeypatch.setattr(OnlineTrainer, "_iterate", iterate)
    said = Said()
    again = surroundings(workplace / "broken", model, quantization=quantization, say=said)
    found = stage.run(config, again)

    assert "resuming from checkpoint-2" in said
    assert found == expected
    assert same(weights(again.directory), weights(whole.directory))
    if kind is PpoConfig:
        assert same(weights(again.directory, "value"), weights(whole.directory, "value"))
        left, right = (ScalarHead.load(c.directory / "value") for c in (again, whole))
        assert torch.equal(left.linear.weight, right.linear.weight)

    def untimed(rows):
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]

    assert untimed(rows_of(again)) == untimed(rows_of(whole))


def test_a_signal_saves_and_the_next_run_goes_on(workplace, tiny_model):
    import signal

    model = tiny_model("llama")
    context = surroundings(workplace / "run", model)
    (workplace / "toy_signal.py").write_text(
        "import os, signal\ncalls = []\n"
        "def score(prompt, completion):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 30: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return len(completion)\n"
    )
    config = settings(reward=("toy_signal:score",))
    with pytest.raises(Interrupted) as stopped:
        ppo.run(config, context)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert "checkpoint-2 is saved" in str(stopped.value)
    assert (context.checkpoints / "checkpoint-2").is_dir()
    said = Said()
    ppo.run(config, surroundings(workplace / "run", model, say=said))
    assert "resuming from checkpoint-2" in said


WATCH = """
    import gc
    import torch
    import bitsandbytes as bnb
    seen = []
    def held():
        gc.collect()
        tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        return (
            sum(type(t) is bnb.nn.Params4bit for t in tensors),
            sum(t.numel() * t.element_size() for t in tensors),
        )
    def score(prompt, completion):
        if len(seen) < 3:
            seen.append(held())
        return 0.1 * len(completion)
"""


def test_there_is_one_copy_of_the_base_whatever_the_roles(workplace, tiny_model, monkeypatch):
    import importlib

    (workplace / "toy_memory.py").write_text(textwrap.dedent(WATCH))
    monkeypatch.syspath_prepend(str(workplace))
    watch = importlib.import_module("toy_memory")
    context = surroundings(workplace / "run", tiny_model("llama"))
    backbone = context.backbone
    layers, before = watch.held()
    config = settings(reward=("toy_memory:score",), total_episodes=16, value="adapter")
    ppo.run(config, context)
    assert layers == 14
    assert [count for count, _ in watch.seen] == [14, 14, 14]
    # What roles add: four adapters of rank 4 and their copies, less than half of a dense base.
    dense = 4 * sum(module.in_features * module.out_features for module in linears(backbone.base))
    assert max(size for _, size in watch.seen) - before < dense / 2


def linears(model):
    return [m for m in model.modules() if type(m).__name__ == "Linear4bit"]


def test_value_and_policy_share_no_weight_and_the_value_comes_back_with_its_head(
    workplace, tiny_model
):
    context = surroundings(workplace / "run", tiny_model("llama"))
    ppo.run(settings(), context)
    policy, value = weights(context.directory), weights(context.directory, "value")
    assert policy.keys() == value.keys()
    assert not same(policy, value)
    backbone = context.backbone
    head = ScalarHead.load(context.directory / "value")
    assert head.linear.weight.abs().max() > 0
    backbone.load_adapter("value", context.directory / "value", head=head)
    backbone.clear()


def test_value_warm_up_leaves_the_policy_as_it_is(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    ppo.run(settings(value_warmup=3), context)
    *warming, last = rows_of(context)
    assert all("loss/policy_avg" not in row for row in warming)
    assert all(abs(row["objective/kl"]) < 1e-4 for row in (*warming, last))
    assert all(row["loss/value_avg"] > 0 for row in (*warming, last))
    assert "loss/policy_avg" in last
    with pytest.raises(ValidationError, match="leaves none of 4 iterations"):
        settings(value_warmup=4)


def test_a_reward_that_raises_or_is_nan_names_the_prompt(workplace, tiny_model):
    for name, message in {
        "broken": r"prompts.jsonl:\d: reward toy_reward:broken failed with ValueError: no opinion",
        "nan": r"prompts.jsonl:\d: reward toy_reward:nan is nan",
    }.items():
        context = surroundings(workplace / name, tiny_model("llama"))
        with pytest.raises(TrainingFailed, match=message):
            ppo.run(settings(reward=(f"toy_reward:{name}",)), context)


@pytest.mark.parametrize(("stage", "kind"), [(ppo, PpoConfig), (rloo, RlooConfig)])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_learning_rate_that_destroys_the_policy_ends_the_run(
    workplace, tiny_model, stage, kind, epochs
):
    """Within the update, or behind its only step, where no loss would have told."""
    context = surroundings(workplace / "run", tiny_model("llama"))
    config = settings(
        kind, learning_rate=1e30, num_ppo_epochs=epochs, num_mini_batches=1, save_steps=1
    )
    with pytest.raises(TrainingFailed, match=r"not finite|loss is nan") as caught:
        stage.run(config, context)
    assert "(iteration 1 of 4). lower learning_rate" in str(caught.value)
    assert "(no checkpoint was saved before it)" in str(caught.value)
    assert not (context.directory / "adapter").exists()
    assert not list(context.checkpoints.glob("checkpoint-*"))


def test_a_reward_that_turns_infinite_leaves_what_was_learned(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    config = settings(RlooConfig, reward=("toy_reward:late",), save_steps=1)
    with pytest.raises(TrainingFailed, match=r"reward toy_reward:late is inf") as caught:
        rloo.run(config, context)
    assert "(iteration 3 of 4)" in str(caught.value)
    assert "checkpoint-2 is intact" in str(caught.value)
    assert not (context.directory / "adapter").exists()


@pytest.mark.parametrize(("stage", "kind"), [(ppo, PpoConfig), (rloo, RlooConfig)])
def test_a_reward_that_tells_nothing_apart_is_no_success(workplace, tiny_model, stage, kind):
    """For PPO the value's errors move the weights all the same."""
    context = surroundings(workplace / "run", tiny_model("llama"))
    config = settings(kind, reward=("toy_reward:equal",), total_episodes=32)
    with pytest.raises(TrainingFailed, match=r"in none of 2 iterations .* apart. give a reward"):
        stage.run(config, context)
    assert [line for line in context.say if "gave all 6 completions of the starting" in line]
    assert not (context.directory / "adapter").exists()


def test_prompts_whose_completions_all_score_alike_are_told(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    config = settings(RlooConfig, reward=("toy_reward:rare",), total_episodes=32)
    metrics = rloo.run(config, context)
    (told,) = [line for line in context.say if "got the same score for all 2" in line]
    assert told.startswith("7 of 8 prompts of iteration 1 got the same score for all 2 completions")
    assert told.endswith("so nothing is learned from these: raise rloo_k")
    (why,) = [line for line in context.say if "gave all 6 completions" in line]
    assert "the same score, 0; give a reward that tells good completions from bad ones" in why
    assert 0.5 <= metrics["idle_groups"] < 1
    assert metrics["weight_change"] > 0


def test_what_the_reward_taught_is_told_with_what_to_raise(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    changes = {"learning_rate": 1e-9, "total_episodes": 128, "num_ppo_epochs": 1}
    metrics = rloo.run(settings(RlooConfig, **changes), context)
    said = "\n".join(context.say)
    assert f"mean score {metrics['score_first']:.3g} in the first iterations" in said
    assert metrics["score_last"] - metrics["score_first"] < 2 * metrics["score_error"]
    assert "rose by no more than chance in 8 iterations: raise learning_rate (1e-09)" in said


def test_a_reward_that_does_not_exist_is_refused_before_anything_is_sampled(workplace, tiny_model):
    context = surroundings(workplace / "run", tiny_model("llama"))
    with pytest.raises(RecipeError, match="toy_reward has no function 'letter'"):
        ppo.run(settings(reward=("toy_reward:letter",)), context)


def test_kl_beyond_its_limit_stops_and_says_what_to_change(workplace, clear_model):
    context = surroundings(workplace / "run", clear_model)
    config = settings(kl_limit=0.5, learning_rate=3e-2, total_episodes=320)
    with pytest.raises(TrainingFailed, match=r"KL to the reference is .* nats .*raise kl_coef"):
        ppo.run(config, context)


def test_a_guard_says_which_checkpoint_is_left(workplace, clear_model):
    broken = {"kl_limit": 0.5, "learning_rate": 3e-2, "total_episodes": 320}
    context = surroundings(workplace / "early", clear_model)
    with pytest.raises(TrainingFailed, match=r"no checkpoint was saved before it"):
        ppo.run(settings(**broken), context)
    context = surroundings(workplace / "late", clear_model)
    with pytest.raises(TrainingFailed) as stopped:
        ppo.run(settings(**broken, save_steps=1), context)
    kept = sorted(path.name for path in context.checkpoints.glob("checkpoint-*"))
    assert f"{kept[-1]} is intact" in str(stopped.value)
    assert "--resume-anyway" in str(stopped.value)
    assert not (context.directory / "adapter").exists()


def test_gradient_checkpointing_changes_rounding_only(workplace, tiny_model):
    found = []
    for wanted in (False, True):
        context = surroundings(workplace / str(wanted), tiny_model("qwen2"), quantization="none")
        config = settings(
            gradient_checkpointing=wanted, value="adapter", learning_rate=1e-4, total_episodes=32
        )
        ppo.run(config, context)
        found.append(torch.cat([w.flatten() for w in weights(context.directory).values()]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-3


def test_a_ratio_that_runs_away_stops(workplace, clear_model):
    context = surroundings(workplace / "run", clear_model)
    config = settings(max_ratio=1.0001, learning_rate=5e-2, total_episodes=320)
    with pytest.raises(TrainingFailed, match="the mean probability ratio is"):
        ppo.run(config, context)


def test_log_probs_that_do_not_match_the_rollout_stop_at_the_first_step(
    workplace, tiny_model, monkeypatch
):
    from alignkit.ppo.rollout import Sampler

    right = Sampler.own_logps
    monkeypatch.setattr(Sampler, "own_logps", lambda *a: right(*a) + 0.01)
    context = surroundings(workplace / "run", tiny_model("llama"))
    with pytest.raises(TrainingFailed, match=r"log-probs changed between rollout and update"):
        ppo.run(settings(), context)


def test_captured_and_rescored_log_probs_agree_in_fp32(workplace, tiny_model):
    from alignkit.data.chat import Encoder
    from alignkit.ppo.prompts import read_prompts, stop_ids
    from alignkit.ppo.rollout import Sampler, mask_of

    config = settings(temperature=0.7)
    context = surroundings(workplace / "run", tiny_model("qwen2"))
    backbone = context.backbone
    backbone.new_adapter(POLICY, seed=1)
    encoder = Encoder(backbone.tokenizer)
    prompts, _ = read_prompts(config, context, encoder)
    sampler = Sampler(backbone, config, stop_ids(config, encoder), None)
    samples, completions = sampler.sample(prompts, seed=3, temperature=0.7)
    captured = sampler.own_logps(samples, completions)
    scored = sampler.logps(samples, POLICY)
    gap = ((captured - scored).exp() - 1)[mask_of(samples)].abs().max()
    assert gap < 1e-4
    backbone.clear()


def train(workplace, name, model, judge, iterations=12):
    """The reward is letters; a look at 48 held-out prompts after every iteration."""
    rows = [
        {"kind": "prompt", "id": f"h{i}", "prompt": [{"role": "user", "content": f"say {i}"}]}
        for i in range(48)
    ]
    (workplace / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    context = surroundings(workplace / name, model)
    config = settings(
        alarm_judge=judge,
        eval_prompts=("held_out.jsonl",),
        eval_steps=1,
        total_episodes=iterations * 96,
        rollout_batch_size=96,
        rollout_forward_batch_size=96,
        per_device_train_batch_size=96,
        learning_rate=8e-3,
        kl_coef=0.0,
        lr_scheduler_type="constant",
    )
    return ppo.run(config, context), context


def test_a_judge_that_turns_away_from_a_rising_reward_stops_the_run(workplace, clear_model):
    """The reward pays for letters; who judges wants to see signs, and stops the run by half."""
    metrics, context = train(workplace, "run", clear_model, "toy_reward:signs")
    assert "the reward-hacking alarm asks toy_reward:signs" in context.say
    assert re.match(
        r"the score rose from 0.06\d+ to 0.2\d+ since iteration 0 while the win rate by "
        r"toy_reward:signs fell from 50% to 2\d%: the policy probably exploits",
        metrics["alarm"],
    )
    rows = rows_of(context)
    assert metrics["iterations"] == rows[-1]["step"] < 10
    # Two standard errors on 48 prompts are 20 points: what fell by less is not held against it.
    assert [row["eval/judge_win_rate"] < 0.5 - 0.2042 for row in rows] == [False] * (
        len(rows) - 1
    ) + [True]
    assert all(row["eval/win_rate"] >= 0.5 for row in rows)
    # What is left is the best policy before the alarm, not the one that raised it.
    assert rows[-1]["eval/objective"] > metrics["best_objective"]
    assert metrics["best_iteration"] < metrics["iterations"]
    _, shorter = train(workplace, "short", clear_model, None, metrics["best_iteration"])
    assert same(weights(context.directory), weights(shorter.directory))


def test_the_report_of_an_exploited_reward_opens_with_the_alarm_and_shows_both_scores(
    workplace, clear_model
):
    metrics, context = train(workplace, "run", clear_model, "toy_reward:signs")
    fields = {
        "kind": "ppo",
        "name": "ppo",
        "seed": 7,
        "backbone": {},
        "config": {},
        "versions": {},
        "metrics": metrics,
    }
    write_pages(context.directory, fields)
    page = (context.directory / "report.html").read_text()
    assert page.index("toy_reward:signs fell") < page.index("Replies side by side")
    assert "The alarm of reward hacking asked toy_reward:signs." in page
    (sample, *_), last = metrics["samples"], f"iteration {metrics['iterations']}"
    assert sample["scores"][last] + sample["judged"][last] == pytest.approx(1, abs=1e-3)
    assert page.count(">judge ") == 3 * len(metrics["samples"])
    assert last in page


@pytest.mark.parametrize("judge", ["toy_reward:latin", None])
def test_a_judge_that_agrees_with_the_reward_or_is_the_reward_raises_no_alarm(
    workplace, clear_model, judge
):
    metrics, context = train(workplace, "run", clear_model, judge)
    asked = judge or "the training reward itself"
    assert f"the reward-hacking alarm asks {asked}" in context.say
    assert metrics["alarm_judge"] == asked
    assert "alarm" not in metrics
    assert metrics["iterations"] == 12
    rows = rows_of(context)
    assert rows[-1]["eval/win_rate"] > 0.8
    assert ("eval/judge_win_rate" in rows[-1]) is (judge is not None)


def test_a_judge_that_is_no_judge_is_refused(workplace, tiny_model):
    with pytest.raises(ValidationError, match="alarm_judge toy_reward:letters is what the policy"):
        settings(alarm_judge="toy_reward:letters", eval_fraction=0.5)
    with pytest.raises(ValidationError, match="alarm_judge has nothing to judge"):
        settings(alarm_judge="toy_reward:latin")
    context = surroundings(workplace / "run", tiny_model("llama"))
    with pytest.raises(RecipeError, match="knows the prompts of the embedded task only"):
        ppo.run(settings(alarm_judge="gold", eval_prompts=("prompts.jsonl",)), context)
