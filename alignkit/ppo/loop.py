"""The loop of PPO and RLOO: sample, score, advantages, update; watched, sealed, resumable.

Nothing outside the checkpoint decides how a run goes on: prompts, sampling and mini-batches
depend on (seed, iteration) alone, and weights, optimizers, schedules, kl_coef, score scales and
random states are saved. 2N iterations equal N, a stop and N more, to the bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.errors import RecipeError, TrainingFailed
from alignkit.forward.generation import Completion
from alignkit.model.backbone import POLICY, Backbone
from alignkit.model.heads import Scale
from alignkit.model.probe import check_answer
from alignkit.ppo.advantages import (
    explained_variance,
    k3,
    kl_per_token,
    masked_mean,
    masked_moments,
    next_kl_coef,
    penalize_missing_stop,
)
from alignkit.ppo.guards import (
    FINER,
    Evaluation,
    Spread,
    Start,
    chance,
    check_iteration,
    check_rollout,
    check_spread,
    is_flat,
    reward_hacking,
)
from alignkit.ppo.learners import PolicyLearner
from alignkit.ppo.ranks import all_rows, all_sum, rank, wait_for_all, world_size
from alignkit.ppo.rewards import ModelReward, Rewards, RolloutPrompt, Sample
from alignkit.ppo.rollout import (
    Rollout,
    Sampler,
    local_share,
    mask_of,
    practice_order,
    sampling_seed,
)
from alignkit.ppo.validation import Look, Validation, write_samples
from alignkit.ppo.value import ValueLearner
from alignkit.recipe.settings import OnlineConfig
from alignkit.training.checkpoints import (
    load_tree,
    naming_last_checkpoint,
    newest_valid,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_tree,
    stop_requests,
)
from alignkit.training.context import StageContext
from alignkit.training.finite import check_numbers, check_tensors
from alignkit.training.trackers import OnlineTrackers

START_SAMPLES = 256  # completions of the starting policy that fix the score scales
ITSELF = "the training reward itself"
CHANCE = 2  # standard errors within which a score has not risen
STANDARD_ERRORS = 5  # beyond which a difference is no chance
CAPTURE_TOLERANCE = 5e-5  # nats; half of what the first update of an iteration allows


@dataclass(frozen=True)
class Targets:
    """What the update pulls toward: advantages and returns, both (completions, tokens)."""

    advantages: Tensor
    returns: Tensor | None


Advantages = Callable[[Rollout, Tensor, float], Targets]


@dataclass
class State:
    """Everything about a run's past that its future depends on, weights aside."""

    iteration: int = 0
    kl_coef: float = 0.0
    start: Start = field(default_factory=lambda: Start(0.0, 0.0))
    spread: Spread = field(default_factory=Spread)
    best_objective: float = float("-inf")
    best_iteration: int = 0
    captures_logps: bool = True
    history: list[Evaluation] = field(default_factory=list)


class OnlineTrainer:
    """One run. `advantages` is what sets PPO and RLOO apart; `critic` is None for RLOO."""

    def __init__(
        self,
        backbone: Backbone,
        config: OnlineConfig,
        context: StageContext,
        prompts: list[RolloutPrompt],
        sampler: Sampler,
        rewards: Rewards,
        validation: Validation | None,
        critic: ValueLearner | None,
        advantages: Advantages,
        completions_per_prompt: int,
    ) -> None:
        self.backbone, self.config, self.context = backbone, config, context
        self.prompts, self.sampler, self.rewards = prompts, sampler, rewards
        self.validation, self.critic, self.advantages = validation, critic, advantages
        self.k = completions_per_prompt
        self.iterations = config.iterations
        self.policy = PolicyLearner(backbone, config, context.seed, self.iterations)
        self.state = State(kl_coef=config.kl_coef)
        self.best: dict[str, Tensor] = {}
        self.told_equal_scores = self.told_foreign = self.told_idle_groups = False
        self.told_finer = False
        self.trackers: OnlineTrackers | None = None
        self.seconds: dict[str, float] = {}

    # --- the run -------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end, or to the alarm; the policy is then the best one seen before it."""
        if rank() == 0:
            self.trackers = OnlineTrackers(self.config, self.context)
            self.trackers.begin(self.backbone.model)
        self._resume_or_start()
        alarm: str | None = None
        with (
            stop_requests(self.context.say) as stop,
            self.context.progress(self.iterations, self.config.kind) as advance,
        ):
            advance(self.state.iteration)
            while self.state.iteration < self.iterations and alarm is None:
                with (
                    naming_last_checkpoint(self.context.checkpoints, self._fingerprint),
                    self._naming_the_iteration(),
                ):
                    row = self._iterate()
                    alarm = self._evaluate(row) if self._evaluation_is_due() else None
                    check_numbers(row)
                self._write(row)
                advance(1)
                stopping = bool(all_sum(torch.tensor(float(stop.signal_number is not None))))
                if self._checkpoint_is_due() or stopping:
                    self._save()
                if stopping and self.state.iteration < self.iterations:
                    raise stop.interrupted(f"checkpoint-{self.state.iteration} is saved")
        if self.trackers is not None:
            self.trackers.end()
        check_spread(self.state.spread, self.k)
        if alarm is not None:
            self.context.say(f"stopped at iteration {self.state.iteration}: {alarm}")
        return self._summary(alarm)

    @contextmanager
    def _naming_the_iteration(self) -> Iterator[None]:
        """A failure inside says in which iteration it was."""
        number = self.state.iteration + 1
        try:
            yield
        except TrainingFailed as failure:
            failure.message += f" (iteration {number} of {self.iterations})"
            raise

    def restore_best(self) -> None:
        """Put the weights of the best evaluation back; without evaluations, the last ones stay."""
        if self.best:
            copy_into(self.backbone.parameters_of(POLICY), self.best)

    def _iterate(self) -> dict[str, float]:
        """One iteration: rollout, scores, advantages, update. Its numbers, by their usual names."""
        self.seconds = {}
        iteration = self.state.iteration
        rollout = self._collect_or_save(iteration)
        check_rollout(rollout)
        kl = self._penalty(rollout)
        targets = self.advantages(rollout, kl, self.state.kl_coef)
        self._tell_equal_scores(rollout, targets)
        row: dict[str, float] = {"episode": (iteration + 1) * self.config.rollout_batch_size}
        row |= self._describe(rollout, kl, targets)
        check_iteration(row, self.state.start, self.config)
        with self._timed("update"):
            if iteration >= self._value_warmup:
                row |= self.policy.update(rollout, targets.advantages, iteration)
            if self.critic is not None and targets.returns is not None:
                row |= self.critic.update(rollout, targets.returns, iteration)
        # Weights of 1e30 are finite, and what is sampled with them is noise: so ask before it is.
        check_answer(self.backbone, POLICY, after="this update")
        self._tell_foreign_samples(rollout, row)
        self.state.kl_coef = next_kl_coef(
            self.state.kl_coef,
            row["objective/kl"],
            target=self.config.kl_target,
            horizon=self.config.kl_horizon,
            episodes=self.config.rollout_batch_size,
        )
        self.state.iteration += 1
        return row | {f"seconds/{part}": round(spent, 3) for part, spent in self.seconds.items()}

    @property
    def _value_warmup(self) -> int:
        return self.critic.config.value_warmup if self.critic is not None else 0

    # --- rollout -------------------------------------------------------------------------------

    def _collect_or_save(self, iteration: int) -> Rollout:
        """Where a reward or a service gives up, what was learned until then is sealed."""
        before = random_state()
        try:
            return self.collect(iteration)
        except TrainingFailed:
            # One rank alone may have failed, and cannot wait for the others.
            if world_size() == 1 and iteration and not self._checkpoint_is_due():
                restore_random_state(before)
                self._save()
            raise

    def collect(self, iteration: int) -> Rollout:
        """Sample this iteration's completions and measure them."""
        wanted = self.config.rollout_batch_size // self.k
        order = practice_order(len(self.prompts), wanted, self.context.seed, iteration)
        prompts = [self.prompts[number] for number in order for _ in range(self.k)]
        mine, first_row = local_share(prompts)
        with self._timed("rollout"):
            samples, completions = self.sampler.sample(
                mine,
                seed=sampling_seed(self.context.seed, iteration),
                temperature=self.config.temperature,
                first_row=first_row,
            )
        with self._timed("score"):
            device = self.backbone.device
            raw = self.rewards.raw(samples)
            stopped = torch.tensor([sample.stopped for sample in samples])
            scores = penalize_missing_stop(
                self.rewards.combine(raw), stopped, self.config.missing_eos_penalty
            )
            logps = self.sampler.own_logps(samples, completions)
            # Behind the scores: where a reward model is the value's trunk, its states are there.
            values, states = (
                self.critic.measure(samples) if self.critic else (torch.zeros_like(logps), None)
            )
            return Rollout(
                samples=samples,
                mask=mask_of(samples).to(device),
                logps=logps,
                ref_logps=self.sampler.logps(samples, self.sampler.reference),
                values=values,
                raw_scores=raw.to(device),
                scores=scores.to(device),
                stopped=stopped.to(device),
                states=states,
            )

    def _penalty(self, rollout: Rollout) -> Tensor:
        """(completions, tokens): the KL estimate that the reward is charged for."""
        return kl_per_token(
            rollout.logps, rollout.ref_logps, rollout.mask, self.config.kl_estimator
        )

    def _tell_equal_scores(self, rollout: Rollout, targets: Targets) -> None:
        """Once each: where a reward tells no completions apart, nobody learns from it."""
        scores = all_rows(rollout.scores)
        raw = torch.stack([all_rows(source) for source in rollout.raw_scores])
        idle = self.state.spread.add(scores, raw, self.k)
        alike = is_flat(scores)
        groups = len(scores) // self.k
        useless = (self.k > 1 and idle == groups) or not float(
            all_sum(targets.advantages.abs().sum())
        )
        if (alike or useless) and not self.told_equal_scores:
            self.told_equal_scores = self.told_idle_groups = True
            whose = "all completions" if alike else "the completions of each prompt"
            self.context.say(
                f"{whose} of iteration {self.state.iteration + 1} got the same score: "
                f"there is nothing in it to learn from the reward{self._finer()}"
            )
        if 2 * idle >= groups and self.k > 1 and not self.told_idle_groups:
            self.told_idle_groups = True
            self.context.say(
                f"{idle} of {groups} prompts of iteration {self.state.iteration + 1} got the same "
                f"score for all {self.k} completions, so nothing is learned from these: raise "
                f"rloo_k{self._finer()}"
            )

    def _tell_foreign_samples(self, rollout: Rollout, row: Mapping[str, float]) -> None:
        """Once: a server's completions must be samples of this policy, or KL and gradients mislead.

        Over samples of a policy −log p is on average its entropy, prefix by prefix.
        """
        if self.sampler.remote is None or self.told_foreign or "policy/entropy_avg" not in row:
            return
        mean, variance = masked_moments(-rollout.logps, rollout.mask)
        gap = float(mean) - row["policy/entropy_avg"]
        count = float(all_sum(rollout.mask.sum()))
        if abs(gap) > STANDARD_ERRORS * math.sqrt(float(variance) / count):
            self.told_foreign = True
            self.context.say(
                f"the server's completions are {abs(gap):.2g} nats a token "
                f"{'less' if gap < 0 else 'more'} surprising than samples of this policy: its "
                "model or quantization is another, or it samples otherwise than at temperature "
                f"{self.config.temperature:g} from all tokens"
            )

    def _describe(self, rollout: Rollout, penalty: Tensor, targets: Targets) -> dict[str, float]:
        mask = rollout.mask
        log_ratio = (rollout.logps - rollout.ref_logps) * mask
        scores = all_rows(rollout.scores)
        charged = float(all_rows(penalty.sum(1)).mean()) * self.state.kl_coef
        row = {
            "objective/kl": float(all_rows(log_ratio.sum(1)).mean()),
            "objective/kl_k3": float(all_rows((k3(log_ratio)).sum(1)).mean()),
            "objective/entropy": float(all_rows(-(rollout.logps * mask).sum(1)).mean()),
            "objective/scores": float(scores.mean()),
            "objective/scores_std": float(scores.std(unbiased=False)),
            "objective/non_score_reward": -charged,
            "objective/rlhf_reward": float(scores.mean()) - charged,
            "objective/kl_coef": self.state.kl_coef,
            "rollout/length": float(all_rows(rollout.lengths.double()).mean()),
            "rollout/eos_rate": float(all_rows(rollout.stopped.double()).mean()),
            "val/num_eos_tokens": float(all_sum(rollout.stopped.sum())),
        }
        for number, raw in enumerate(rollout.raw_scores):
            row[f"rewards/{self.rewards.sources[number].name}"] = float(all_rows(raw).mean())
        if targets.returns is not None:
            row["val/values"] = float(masked_mean(rollout.values, mask))
            row["val/explained_variance"] = explained_variance(
                rollout.values, targets.returns, mask
            )
        return row

    # --- start, evaluation ---------------------------------------------------------------------

    def _resume_or_start(self) -> None:
        found = newest_valid(
            self.context.checkpoints,
            self._fingerprint,
            resume_anyway=self.context.resume_anyway,
            say=self.context.say,
        )
        if found is not None:
            self.context.say(f"going on from {found.name}")
            self._load(found)
            return
        for file in (self.context.metrics_file, self.samples_file):
            if rank() == 0:
                file.unlink(missing_ok=True)
        self._measure_start()

    def _measure_start(self) -> None:
        """Fix score scales on the starting policy, and see that policy and reference agree."""
        prompts = self.prompts[:START_SAMPLES]
        seed = sampling_seed(self.context.seed, 2**31 + 1)
        samples, completions = self.sampler.sample(
            prompts, seed=seed, temperature=self.config.temperature
        )
        if self.config.normalize_rewards:
            raw = self.rewards.raw(samples)
            self._tell_equal_rewards(raw)
            self.rewards.fix_scales(raw)
        if self.critic is not None:
            self.critic.head.scale = self._value_scale()
        self.state.start = Start(
            length=sum(len(sample.ids) for sample in samples) / len(samples),
            eos_rate=sum(sample.stopped for sample in samples) / len(samples),
        )
        few = self.config.rollout_forward_batch_size
        self._check_reference(samples[:few])
        self._check_capture(samples[:few], completions[:few])
        if self.validation is not None:
            held_out = len(self.validation.prompts)
            doubt = "" if chance(held_out) < 0.5 else f"; {held_out} prompts are too few for it"
            self.context.say(f"the alarm of reward hacking asks {self._judge}{doubt}")
            look = self.validation.look(self.config.kl_coef)
            check_numbers(look.metrics, 0)
            self._record(look)
            if rank() == 0:
                self._append({"step": 0, **look.metrics})

    def _tell_equal_rewards(self, raw: Tensor) -> None:
        """A reward that gives everything the same score teaches nothing; `raw` is of the start."""
        for source, scores in zip(self.rewards.sources, raw, strict=True):
            if is_flat(scores) and len(scores) > 1:
                self.context.say(
                    f"reward {source.name} gave all {len(scores)} completions of the starting "
                    f"policy the same score, {float(scores[0]):g}{self._finer()}"
                )

    def _finer(self) -> str:
        """What to do about equal scores, the first time it is asked."""
        told, self.told_finer = self.told_finer, True
        return "" if told else f"; {FINER}"

    def _value_scale(self) -> Scale:
        """A value head that starts as a reward head speaks in the units of the normalised score."""
        scale, weight = self.rewards.scales[0], self.rewards.weights[0]
        starts_as_reward = isinstance(self.rewards.sources[0], ModelReward)
        return Scale(scale.mean, scale.std / weight) if starts_as_reward and weight else Scale()

    def _check_capture(self, samples: list[Sample], completions: list[Completion]) -> None:
        """Score completions again from now on where the sampled log-probs are not exact enough."""
        if self.sampler.captures_logps:
            captured = self.sampler.own_logps(samples, completions)
            gap = float((captured - self.sampler.logps(samples, POLICY)).abs().max())
            if gap > CAPTURE_TOLERANCE:
                self.context.say(
                    f"log-probs seen while sampling differ by {gap:.1g} from the update's: "
                    "they are scored again"
                )
                self.sampler.captures_logps = False
        self.state.captures_logps = self.sampler.captures_logps

    def _check_reference(self, samples: list[Sample]) -> None:
        """With reference `start`, KL is exactly 0 before the first step."""
        if self.sampler.reference is None:
            return
        gap = self.sampler.logps(samples, POLICY) - self.sampler.logps(
            samples, self.sampler.reference
        )
        if float(gap.abs().max()) > 0:
            raise TrainingFailed(
                f"the policy differs from its reference by {float(gap.abs().max()):.3g} nats "
                "before the first step",
                hint="the reference must be a copy of the adapter the policy starts from",
            )

    def _evaluation_is_due(self) -> bool:
        every = self.config.eval_steps or max(1, self.iterations // 10)
        done = self.state.iteration
        return self.validation is not None and (done % every == 0 or done == self.iterations)

    def _evaluate(self, row: dict[str, float]) -> str | None:
        assert self.validation is not None
        with self._timed("evaluation"):
            look = self.validation.look(self.config.kl_coef)
        check_numbers(look.metrics)
        row |= look.metrics
        row["seconds/evaluation"] = round(self.seconds["evaluation"], 3)
        return self._record(look)

    def _record(self, look: Look) -> str | None:
        """Keep the policy if it is the best so far, or say that it exploits its reward."""
        if rank() == 0:
            write_samples(self.samples_file, self.state.iteration, look)
        score, prompts = look.metrics["eval/score"], len(look.samples)
        seen = Evaluation(self.state.iteration, score, look.win_rate, prompts)
        self.state.history.append(seen)
        alarm = reward_hacking(self.state.history, self._judge)
        if alarm is None and look.metrics["eval/objective"] > self.state.best_objective:
            self.state.best_objective = look.metrics["eval/objective"]
            self.state.best_iteration = self.state.iteration
            self.best = copies(self.backbone.parameters_of(POLICY))
        return alarm

    @property
    def _judge(self) -> str:
        judge = self.validation.judge if self.validation is not None else None
        return judge.name if judge is not None else ITSELF

    # --- files ---------------------------------------------------------------------------------

    @property
    def samples_file(self) -> Path:
        """Completions of each evaluation, for people to read."""
        return self.context.directory / "samples.jsonl"

    @property
    def _fingerprint(self) -> dict[str, Any]:
        return {**self.context.fingerprint, "world_size": world_size()}

    def _write(self, row: Mapping[str, float]) -> None:
        due = self.state.iteration % self.config.logging_steps == 0
        if rank() == 0 and (due or self.state.iteration == self.iterations or "eval/score" in row):
            self._append({"step": self.state.iteration, **row})

    def _append(self, row: Mapping[str, float]) -> None:
        plain = {k: round(v, 8) if isinstance(v, float) else v for k, v in row.items()}
        with self.context.metrics_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain) + "\n")
        if self.trackers is not None:
            self.trackers.log(int(row["step"]), plain)

    def _checkpoint_is_due(self) -> bool:
        return self.state.iteration % self.config.save_steps == 0

    def _save(self) -> None:
        self._check_whole()
        if rank() == 0:
            save_checkpoint(
                self.context.checkpoints,
                self.state.iteration,
                self._fingerprint,
                self._write_all,
                keep=self.config.save_total_limit,
            )
        wait_for_all()

    def _check_whole(self) -> None:
        """Raise TrainingFailed unless all that is saved is finite: one cannot go on from the rest.

        What the policy says was asked at the end of the iteration.
        """
        done = f"iteration {self.state.iteration}"
        check_tensors(self.backbone.parameters_of(POLICY), "the weight", done)
        for name, part in self._stateful().items():
            check_tensors(part.state_dict(), f"the {name}'s", done)
        if self.critic is not None:
            check_tensors(self.critic.adapter_weights(), "the value's weight", done)

    def _write_all(self, directory: Path) -> None:
        save_tree(directory / "policy.safetensors", copies(self.backbone.parameters_of(POLICY)))
        save_tree(directory / "best.safetensors", self.best)
        for name, part in self._stateful().items():
            save_tree(directory / f"{name}.safetensors", part.state_dict())
        if self.critic is not None:
            save_tree(directory / "value.safetensors", copies(self.critic.adapter_weights()))
        save_tree(directory / "state.safetensors", self._state_tree())

    def _stateful(self) -> dict[str, Any]:
        """Everything with a state_dict of its own."""
        parts: dict[str, Any] = {"optimizer": self.policy.optimizer}
        if self.critic is not None:
            parts |= {"value_optimizer": self.critic.optimizer, "value_head": self.critic.head}
        return parts

    def _state_tree(self) -> dict[str, Any]:
        critic_scale = asdict(self.critic.head.scale) if self.critic is not None else None
        starts = (
            {"scores": self.validation.start_scores, "judged": self.validation.start_judged}
            if self.validation is not None
            else None
        )
        return {
            "state": asdict(self.state),
            "scales": [asdict(scale) for scale in self.rewards.scales],
            "value_scale": critic_scale,
            "starts": starts,
            "random": random_state(),
        }

    def _load(self, checkpoint: Path) -> None:
        copy_into(self.backbone.parameters_of(POLICY), load_tree(checkpoint / "policy.safetensors"))
        self.best = load_tree(checkpoint / "best.safetensors")
        if self.critic is not None:
            copy_into(self.critic.adapter_weights(), load_tree(checkpoint / "value.safetensors"))
        for name, part in self._stateful().items():
            part.load_state_dict(load_tree(checkpoint / f"{name}.safetensors"))
        tree = load_tree(checkpoint / "state.safetensors")
        saved = tree["state"]
        saved["start"] = Start(**saved["start"])
        saved["spread"] = Spread(**saved.get("spread", {}))
        saved["history"] = [Evaluation(**seen) for seen in saved["history"]]
        self.state = State(**saved)
        self.sampler.captures_logps = self.state.captures_logps
        self.rewards.scales = [Scale(**scale) for scale in tree["scales"]]
        if self.critic is not None:
            self.critic.head.scale = Scale(**tree["value_scale"])
        if self.validation is not None:
            self.validation.start_scores = tree["starts"]["scores"]
            self.validation.start_judged = tree["starts"]["judged"]
        restore_random_state(tree["random"])
        if rank() == 0:
            for file in (self.context.metrics_file, self.samples_file):
                forget_after(file, self.state.iteration)

    def _summary(self, alarm: str | None) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            "iterations": self.state.iteration,
            "episodes": self.state.iteration * self.config.rollout_batch_size,
            "kl_coef": self.state.kl_coef,
            "score_scales": [asdict(scale) for scale in self.rewards.scales],
        }
        metrics |= self._what_was_learned()
        if self.validation is not None:
            metrics |= {
                "best_iteration": self.state.best_iteration,
                "best_objective": self.state.best_objective,
                "alarm_judge": self._judge,
            }
        if alarm is not None:
            metrics["alarm"] = alarm
        return metrics

    def _what_was_learned(self) -> dict[str, Any]:
        """How the score moved, said with what to change where it did not."""
        spread, config = self.state.spread, self.config
        if not spread.means:
            return {}
        first, last, error = spread.rise()
        self.context.say(
            f"mean score {first:.3g} in the first iterations, {last:.3g} in the last "
            f"(standard error of the difference {error:.2g})"
        )
        if spread.flat_rewards == self.state.iteration:
            self.context.say(
                "the rewards told no two completions of any iteration apart: what was learned is "
                f"to stop in time and to stay near the reference{self._finer()}"
            )
        elif last - first < CHANCE * error:
            self.context.say(
                f"the score rose by no more than chance in {self.state.iteration} iterations: "
                f"raise learning_rate ({config.learning_rate:g}) or total_episodes "
                f"({config.total_episodes}), or lower kl_coef ({config.kl_coef:g})"
            )
        found = {"score_first": first, "score_last": last, "score_error": error}
        return found | ({"idle_groups": spread.idle_share} if self.k > 1 else {})

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


def check_ranks(config: OnlineConfig, completions_per_prompt: int) -> None:
    """Refuse a batch that cannot be shared out evenly. Raises RecipeError."""
    share = world_size() * max(config.num_mini_batches, 1)
    whole = world_size() * completions_per_prompt
    if config.rollout_batch_size % share or config.rollout_batch_size % whole:
        raise RecipeError(
            f"rollout_batch_size {config.rollout_batch_size} cannot be shared evenly by "
            f"{world_size()} processes with {config.num_mini_batches} mini-batches each"
        )


def copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights as they are now, on the CPU, by name."""
    return {name: weight.detach().cpu().clone() for name, weight in parameters.items()}


def copy_into(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Give parameters the saved weights."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def forget_after(file: Path, iteration: int) -> None:
    """Drop the rows of a JSONL file that iterations after this one wrote: they are run again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= iteration:
                kept.append(line)
        except ValueError:
            # Half a line: the machine died while writing it, and its iteration is run again.
            continue
    part = file.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(file)
