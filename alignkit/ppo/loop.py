"""Run the loop of PPO and RLOO: sample, score, compute advantages, update; with checkpoints.

A run's future depends on its checkpoint alone. Prompts, sampling and mini-batches are functions of
(seed, iteration); weights, optimizers, schedules, kl_coef, score scales and random states are
saved. So 2N iterations give the same bits as N iterations, a stop, and N more.
"""

from __future__ import annotations

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
from alignkit.model.probe import check_outputs
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
    prompt_order,
    sampling_seed,
)
from alignkit.ppo.validation import EvaluationResult, Validation, write_samples
from alignkit.ppo.value import ValueLearner
from alignkit.recipe.settings import OnlineConfig
from alignkit.store.row_log import append_rows, forget_after
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
CHANCE = 2  # standard errors that a rise of the score must exceed
STANDARD_ERRORS = 5  # standard errors that the surprise of foreign samples must exceed
CAPTURE_TOLERANCE = 5e-5  # nats; half of what the first update of an iteration allows


@dataclass(frozen=True)
class Targets:
    """What the update aims at: advantages and returns (None in RLOO), (completions, tokens)."""

    advantages: Tensor
    returns: Tensor | None


Advantages = Callable[[Rollout, Tensor, float], Targets]


@dataclass
class State:
    """Everything of a run's past that its future depends on, apart from weights."""

    iteration: int = 0
    kl_coef: float = 0.0
    start: Start = field(default_factory=lambda: Start(0.0, 0.0))
    spread: Spread = field(default_factory=Spread)
    best_objective: float = float("-inf")
    best_iteration: int = 0
    captures_logps: bool = True
    history: list[Evaluation] = field(default_factory=list)


class OnlineTrainer:
    """One run of PPO or RLOO.

    `advantages` turns (rollout, KL per token, kl_coef) into targets; it is what sets PPO and RLOO
    apart. `critic` learns the value and is None for RLOO.
    """

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
        self.warned_equal_scores = self.warned_foreign = self.warned_idle_groups = False
        self.gave_advice = False
        self.trackers: OnlineTrackers | None = None
        self.seconds: dict[str, float] = {}

    # --- the run -------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end or to the alarm, and return the run's metrics.

        Raises TrainingFailed when a guard stops the run, and Interrupted after a signal, once
        saved.
        """
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
                    self._naming_iteration(),
                ):
                    row = self._iterate()
                    alarm = self._evaluate(row) if self._evaluation_is_due() else None
                    check_numbers(row)
                # Log before saving: a resumed run cuts the log back to its checkpoint, but cannot
                # add a row that the checkpoint's iteration never wrote.
                self._write(row)
                advance(1)
                # All ranks must agree to stop, or those that continue would wait for the others.
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
    def _naming_iteration(self) -> Iterator[None]:
        """Add the iteration to the message of a failure inside."""
        number = self.state.iteration + 1
        try:
            yield
        except TrainingFailed as failure:
            failure.message += f" (iteration {number} of {self.iterations})"
            raise

    def restore_best(self) -> None:
        """Restore the weights of the best evaluation; without evaluations, keep the last ones."""
        if self.best:
            copy_into(self.backbone.parameters_of(POLICY), self.best)

    def _iterate(self) -> dict[str, float]:
        """Run one iteration and return its numbers: rollout, scores, advantages, update."""
        self.seconds = {}
        iteration = self.state.iteration
        rollout = self._collect_or_save(iteration)
        check_rollout(rollout)
        kl = self._penalty(rollout)
        targets = self.advantages(rollout, kl, self.state.kl_coef)
        self._warn_of_equal_scores(rollout, targets)
        row: dict[str, float] = {"episode": (iteration + 1) * self.config.rollout_batch_size}
        row |= self._describe(rollout, kl, targets)
        # Before the update: a policy that has run away is not trained further.
        check_iteration(row, self.state.start, self.config)
        with self._timed("update"):
            # In the first `value_warmup` iterations only the value is trained: the advantages of an
            # untrained value are mostly noise.
            if iteration >= self._value_warmup:
                row |= self.policy.update(rollout, targets.advantages, iteration)
            if self.critic is not None and targets.returns is not None:
                row |= self.critic.update(rollout, targets.returns, iteration)
        # Weights of 1e30 are finite, but the logits they give are not: check before sampling again.
        check_outputs(self.backbone, POLICY, after="this update")
        self._warn_of_foreign_samples(rollout, row)
        # After the targets were computed: this iteration's KL steers the next one's penalty.
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
        """Collect a rollout; when a reward or a service fails, save what was learned so far."""
        before = random_state()
        try:
            return self.collect(iteration)
        except TrainingFailed:
            # With several ranks, one alone may have failed, and saving would wait for the others.
            if world_size() == 1 and iteration and not self._checkpoint_is_due():
                # The checkpoint is that of the end of the iteration before: undo this one's draws.
                restore_random_state(before)
                self._save()
            raise

    def collect(self, iteration: int) -> Rollout:
        """Sample this iteration's completions and measure them."""
        count = self.config.rollout_batch_size // self.k
        order = prompt_order(len(self.prompts), count, self.context.seed, iteration)
        # The k completions of a prompt stand next to each other: `leave_one_out` relies on it, and
        # the prompt is then read once.
        prompts = [self.prompts[number] for number in order for _ in range(self.k)]
        # Every rank samples its slice under the row numbers of the whole batch, so several ranks
        # draw what one would.
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
            # After the scores: where a reward model is the value's trunk, scoring has computed the
            # states already.
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
        """Return (completions, tokens): the KL estimate that is charged to the reward."""
        return kl_per_token(
            rollout.logps, rollout.ref_logps, rollout.mask, self.config.kl_estimator
        )

    def _warn_of_equal_scores(self, rollout: Rollout, targets: Targets) -> None:
        """Warn, once each, when scores do not differ, so that nothing can be learned from them."""
        scores = all_rows(rollout.scores)
        raw = torch.stack([all_rows(source) for source in rollout.raw_scores])
        idle = self.state.spread.add(scores, raw, self.k)
        alike = is_flat(scores)
        groups = len(scores) // self.k
        useless = (self.k > 1 and idle == groups) or not float(
            all_sum(targets.advantages.abs().sum())
        )
        if (alike or useless) and not self.warned_equal_scores:
            self.warned_equal_scores = self.warned_idle_groups = True
            whose = "all completions" if alike else "the completions of each prompt"
            self.context.say(
                f"{whose} of iteration {self.state.iteration + 1} got the same score, "
                f"so the reward teaches nothing there{self._advice()}"
            )
        if 2 * idle >= groups and self.k > 1 and not self.warned_idle_groups:
            self.warned_idle_groups = True
            self.context.say(
                f"{idle} of {groups} prompts of iteration {self.state.iteration + 1} got the same "
                f"score for all {self.k} completions, so nothing is learned from these: raise "
                f"rloo_k{self._advice()}"
            )

    def _warn_of_foreign_samples(self, rollout: Rollout, row: Mapping[str, float]) -> None:
        """Warn, once, when a server's completions are not samples of this policy.

        For policy samples E[−log p] is the entropy, prefix by prefix; a gap means the samples are
        not the policy's, and KL and gradients are then biased.
        """
        if self.sampler.remote is None or self.warned_foreign or "policy/entropy_avg" not in row:
            return
        mean, variance = masked_moments(-rollout.logps, rollout.mask)
        gap = float(mean) - row["policy/entropy_avg"]
        count = float(all_sum(rollout.mask.sum()))
        if abs(gap) > STANDARD_ERRORS * math.sqrt(float(variance) / count):
            self.warned_foreign = True
            self.context.say(
                f"the server's completions are {abs(gap):.2g} nats per token "
                f"{'less' if gap < 0 else 'more'} surprising than samples of this policy: its "
                "model or quantization differs, or it does not sample at temperature "
                f"{self.config.temperature:g} from all tokens"
            )

    def _describe(self, rollout: Rollout, penalty: Tensor, targets: Targets) -> dict[str, float]:
        """Return the logged numbers of an iteration, by name."""
        mask = rollout.mask
        log_ratio = (rollout.logps - rollout.ref_logps) * mask
        scores = all_rows(rollout.scores)
        # What the reward was charged, by the configured estimator; objective/kl is always k1's.
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
        """Load the newest valid checkpoint, or measure the starting policy if there is none."""
        checkpoint = newest_valid(
            self.context.checkpoints,
            self._fingerprint,
            resume_anyway=self.context.resume_anyway,
            say=self.context.say,
        )
        if checkpoint is not None:
            self.context.say(f"resuming from {checkpoint.name}")
            self._load(checkpoint)
            return
        for file in (self.context.metrics_file, self.samples_file):
            if rank() == 0:
                file.unlink(missing_ok=True)
        self._measure_start()

    def _measure_start(self) -> None:
        """Fix the score scales on the starting policy, check it, and evaluate it as baseline."""
        prompts = self.prompts[:START_SAMPLES]
        seed = sampling_seed(self.context.seed, 2**31 + 1)
        samples, completions = self.sampler.sample(
            prompts, seed=seed, temperature=self.config.temperature
        )
        if self.config.normalize_rewards:
            raw = self.rewards.raw(samples)
            self._warn_of_equal_rewards(raw)
            self.rewards.fix_scales(raw)
        if self.critic is not None:
            # After the scales are fixed: the value learns in the units of the normalised score.
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
            self.context.say(f"the reward-hacking alarm asks {self._judge}{doubt}")
            result = self.validation.evaluate(self.config.kl_coef)
            check_numbers(result.metrics, 0)
            self._record(result)
            if rank() == 0:
                self._append({"step": 0, **result.metrics})

    def _warn_of_equal_rewards(self, raw: Tensor) -> None:
        """Warn about a source that gave all of the starting policy's completions one score."""
        for source, scores in zip(self.rewards.sources, raw, strict=True):
            if is_flat(scores) and len(scores) > 1:
                self.context.say(
                    f"reward {source.name} gave all {len(scores)} completions of the starting "
                    f"policy the same score, {float(scores[0]):g}{self._advice()}"
                )

    def _advice(self) -> str:
        """Return what to do about equal scores, the first time only."""
        given, self.gave_advice = self.gave_advice, True
        return "" if given else f"; {FINER}"

    def _value_scale(self) -> Scale:
        """Return the value head's scale: that of the score if it starts as a reward head."""
        scale, weight = self.rewards.scales[0], self.rewards.weights[0]
        starts_as_reward = isinstance(self.rewards.sources[0], ModelReward)
        return Scale(scale.mean, scale.std / weight) if starts_as_reward and weight else Scale()

    def _check_capture(self, samples: list[Sample], completions: list[Completion]) -> None:
        """Compute log-probs again from now on if those captured while sampling are inexact."""
        # The update compares its log-probs with the rollout's: an error here is a ratio that is not
        # 1 before the first step.
        if self.sampler.captures_logps:
            captured = self.sampler.own_logps(samples, completions)
            gap = float((captured - self.sampler.logps(samples, POLICY)).abs().max())
            if gap > CAPTURE_TOLERANCE:
                self.context.say(
                    f"log-probs captured while sampling differ by {gap:.1g} nats from the "
                    "update's: they are computed again"
                )
                self.sampler.captures_logps = False
        self.state.captures_logps = self.sampler.captures_logps

    def _check_reference(self, samples: list[Sample]) -> None:
        """Raise TrainingFailed unless a copied reference equals the policy at the start."""
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
        """Evaluate, add the metrics to the iteration's row, and return the alarm or None."""
        assert self.validation is not None
        with self._timed("evaluation"):
            result = self.validation.evaluate(self.config.kl_coef)
        check_numbers(result.metrics)
        row |= result.metrics
        row["seconds/evaluation"] = round(self.seconds["evaluation"], 3)
        return self._record(result)

    def _record(self, result: EvaluationResult) -> str | None:
        """Keep the policy if it is the best so far; return the alarm if it exploits its reward."""
        if rank() == 0:
            write_samples(self.samples_file, self.state.iteration, result)
        score, prompts = result.metrics["eval/score"], len(result.samples)
        evaluation = Evaluation(self.state.iteration, score, result.win_rate, prompts)
        self.state.history.append(evaluation)
        # The alarm first: a policy that raises it must not become the best one, however high its
        # objective, since the objective is what it exploits.
        alarm = reward_hacking(self.state.history, self._judge)
        if alarm is None and result.metrics["eval/objective"] > self.state.best_objective:
            self.state.best_objective = result.metrics["eval/objective"]
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
        """The file of completions of each evaluation, for people to read."""
        return self.context.directory / "samples.jsonl"

    @property
    def _fingerprint(self) -> dict[str, Any]:
        return {**self.context.fingerprint, "world_size": world_size()}

    def _write(self, row: Mapping[str, float]) -> None:
        done = self.state.iteration
        is_logged = done % self.config.logging_steps == 0 or done == self.iterations
        if rank() == 0 and (is_logged or "eval/score" in row):
            self._append({"step": done, **row})

    def _append(self, row: Mapping[str, float]) -> None:
        plain = {k: round(v, 8) if isinstance(v, float) else v for k, v in row.items()}
        append_rows(self.context.metrics_file, [plain])
        if self.trackers is not None:
            self.trackers.log(int(row["step"]), plain)

    def _checkpoint_is_due(self) -> bool:
        return self.state.iteration % self.config.save_steps == 0

    def _save(self) -> None:
        self._check_state()
        if rank() == 0:
            save_checkpoint(
                self.context.checkpoints,
                self.state.iteration,
                self._fingerprint,
                self._write_all,
                keep=self.config.save_total_limit,
            )
        wait_for_all()

    def _check_state(self) -> None:
        """Raise TrainingFailed unless everything to save is finite: nothing else can be resumed.

        The policy's logits were checked at the end of the iteration.
        """
        done = f"iteration {self.state.iteration}"
        check_tensors(self.backbone.parameters_of(POLICY), "the weight", done)
        for name, part in self._stateful().items():
            check_tensors(part.state_dict(), f"the {name}'s", done)
        if self.critic is not None:
            check_tensors(self.critic.adapter_weights(), "the value's weight", done)

    def _write_all(self, directory: Path) -> None:
        save_tree(directory / "policy.safetensors", copies(self.backbone.parameters_of(POLICY)))
        save_tree(directory / "best.safetensors", self.best)  # the run may end in it
        for name, part in self._stateful().items():
            save_tree(directory / f"{name}.safetensors", part.state_dict())
        if self.critic is not None:
            save_tree(directory / "value.safetensors", copies(self.critic.adapter_weights()))
        save_tree(directory / "state.safetensors", self._state_tree())

    def _stateful(self) -> dict[str, Any]:
        """Return everything that has a state_dict of its own, by name."""
        parts: dict[str, Any] = {"optimizer": self.policy.optimizer}
        if self.critic is not None:
            parts |= {"value_optimizer": self.critic.optimizer, "value_head": self.critic.head}
        return parts

    def _state_tree(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides weights and optimizers."""
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
        """Restore a checkpoint, and drop what was logged after it."""
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
        saved["history"] = [Evaluation(**past) for past in saved["history"]]
        self.state = State(**saved)
        self.sampler.captures_logps = self.state.captures_logps
        # Scales and baseline belong to the starting policy: they cannot be measured again.
        self.rewards.scales = [Scale(**scale) for scale in tree["scales"]]
        if self.critic is not None:
            self.critic.head.scale = Scale(**tree["value_scale"])
        if self.validation is not None:
            self.validation.start_scores = tree["starts"]["scores"]
            self.validation.start_judged = tree["starts"]["judged"]
        # Last, so that nothing done here moves the generators.
        restore_random_state(tree["random"])
        if rank() == 0:
            for file in (self.context.metrics_file, self.samples_file):
                forget_after(file, self.state.iteration)

    def _summary(self, alarm: str | None) -> dict[str, Any]:
        """Return the run's metrics, the alarm included."""
        metrics: dict[str, Any] = {
            "iterations": self.state.iteration,
            "episodes": self.state.iteration * self.config.rollout_batch_size,
            "kl_coef": self.state.kl_coef,
            "score_scales": [asdict(scale) for scale in self.rewards.scales],
        }
        metrics |= self._learning_summary()
        if self.validation is not None:
            metrics |= {
                "best_iteration": self.state.best_iteration,
                "best_objective": self.state.best_objective,
                "alarm_judge": self._judge,
            }
        if alarm is not None:
            metrics["alarm"] = alarm
        return metrics

    def _learning_summary(self) -> dict[str, Any]:
        """Return how the score moved, and report it with what to change if it did not."""
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
                "in no iteration did the rewards of two completions differ: the policy learned "
                f"only to stop in time and to stay near the reference{self._advice()}"
            )
        elif last - first < CHANCE * error:
            self.context.say(
                f"the score rose by no more than chance in {self.state.iteration} iterations: "
                f"raise learning_rate ({config.learning_rate:g}) or total_episodes "
                f"({config.total_episodes}), or lower kl_coef ({config.kl_coef:g})"
            )
        metrics = {"score_first": first, "score_last": last, "score_error": error}
        return metrics | ({"idle_groups": spread.idle_share} if self.k > 1 else {})

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent inside to a part of the iteration."""
        began = time.perf_counter()
        yield
        # Kernels run asynchronously; without waiting, the next part would be charged for them.
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


def check_ranks(config: OnlineConfig, completions_per_prompt: int) -> None:
    """Raise RecipeError for a batch that the processes cannot share evenly."""
    share = world_size() * max(config.num_mini_batches, 1)
    groups = world_size() * completions_per_prompt  # a prompt's completions stay on one rank
    if config.rollout_batch_size % share or config.rollout_batch_size % groups:
        raise RecipeError(
            f"rollout_batch_size {config.rollout_batch_size} cannot be shared evenly by "
            f"{world_size()} processes with {config.num_mini_batches} mini-batches each"
        )


def copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of the current weights, on the CPU, by name."""
    return {name: weight.detach().cpu().clone() for name, weight in parameters.items()}


def copy_into(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Set parameters to saved weights."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
