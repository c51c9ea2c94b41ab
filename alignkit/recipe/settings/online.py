"""Settings that `ppo` and `rloo` share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignkit.recipe.settings.base import (
    HTTP,
    PROMPTS,
    Calls,
    Cosmetic,
    Count,
    CountOrNone,
    NotNegative,
    Numbers,
    Positive,
    Refers,
    StageConfig,
    Texts,
    is_function,
    wrong,
)
from alignkit.recipe.settings.choices import KL_ESTIMATORS, KlEstimator, listed


class OnlineConfig(StageConfig):
    """What PPO and RLOO share: rollouts, rewards, the KL penalty and the clipped update."""

    policy: Annotated[str | None, Refers("policy")] = None
    """Stage or run directory whose adapter to start from; its frozen copy is the reference."""
    prompts: Annotated[Texts, PROMPTS] = Field(min_length=1)
    """Files with prompts to practise on; of records with completions only the prompts are read."""
    eval_prompts: Annotated[Texts | None, PROMPTS] = None
    """Prompts on which the best checkpoint is chosen, by score minus kl_coef times KL."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of `prompts` held out for that choice when there is no eval_prompts."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be read: stop before training, or leave it out and say which."""
    format: str | None = None
    """Format of the prompt files; without it, it is found and named."""
    reward_model: Annotated[Texts, Refers("reward", words=("gold",))] = ()
    """Reward stages or runs that score completions; gold is the embedded task's own scoring."""
    reward: Annotated[Texts, Calls()] = ()
    """Python functions `module:function` taking a prompt, a list of messages with role and content,
    and a completion, a text, and returning a number; or lists of them as `prompts` and
    `completions`, returning a list. Further parameters are columns of the prompts."""
    reward_url: Texts = ()
    """HTTP services that score completions: a POST of JSON, answered with scores."""
    reward_weights: Numbers | None = None
    """Weight of each reward, in the order reward_model, reward, reward_url; else each counts 1."""
    reward_timeout: Positive = 60.0
    """Seconds to wait for an answer of reward_url before trying again."""
    normalize_rewards: bool = True
    """Shift and scale scores by the mean and deviation that the reward model has on completions of
    the starting policy, fixed before the first step."""
    reward_clip: Positive | None = 10.0
    """Scores are held between minus and plus this, after normalizing."""
    reference: Literal["start", "backbone"] = "start"
    """What KL is measured to: a frozen copy of the starting adapter, or the bare model."""
    max_length: Count = 1024
    """Longest prompt and completion together, in tokens; memory grows with it."""
    on_overlong: Literal["error", "drop", "truncate_prompt"] = "error"
    """A prompt that leaves no room for response_length: stop, leave it out, or cut its start."""
    response_length: Count = 64
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature, applied alike to the old, new and reference log-probabilities."""
    stop_token: str = "eos"
    """Where a completion ends: eos (every stop token of the model), or one token's text."""
    missing_eos_penalty: NotNegative | None = 1.0
    """Taken off the score of a completion that does not stop by itself."""
    total_episodes: Count = 10_000
    """Completions sampled in all; iterations are total_episodes / rollout_batch_size."""
    rollout_batch_size: Count = 64
    """Completions sampled for one iteration; their advantages are whitened together."""
    rollout_forward_batch_size: Count = 64
    """Completions in one forward pass of sampling and scoring; lower it to save memory."""
    rollout_url: str | None = None
    """OpenAI-compatible server that samples in place of the local model; log-probabilities are
    always computed here."""
    num_ppo_epochs: Count = 4
    """Passes of the update over one iteration's completions."""
    num_mini_batches: Count = 1
    """Optimizer steps in each of those passes."""
    per_device_train_batch_size: Count = 8
    """Completions in one forward pass of the update; lower it to save memory."""
    learning_rate: Positive = 1e-5
    """Peak step size of the policy's adapter."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate goes down over the iterations."""
    warmup_steps: CountOrNone = 0
    """Iterations over which the learning rate rises from 0 to its peak."""
    max_grad_norm: NotNegative = 1.0
    """Gradients longer than this are scaled down to it; 0 leaves them alone."""
    cliprange: Positive = 0.2
    """How far from 1 the probability ratio of new to old policy still counts."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Upper limit of the ratio for bad completions (dual-clip PPO); without it there is none."""
    kl_coef: NotNegative = 0.05
    """Weight of the KL penalty in the reward: small lets the policy go far from the reference."""
    kl_estimator: KlEstimator = Field(
        "k1", description=f"Estimator of the per-token KL in the penalty: {listed(KL_ESTIMATORS)}."
    )
    kl_target: Positive | None = None
    """KL per completion that kl_coef is steered to; without it kl_coef stays as it is."""
    kl_horizon: Positive = 10_000.0
    """Episodes over which the steering of kl_coef acts."""
    kl_limit: Positive | None = None
    """KL per completion beyond which the run fails, naming the last checkpoint before it."""
    early_stop_kl: Positive | None = None
    """Approximate KL of one iteration's update at which its remaining passes are skipped."""
    entropy_coef: NotNegative = 0.0
    """Weight of an entropy bonus in the policy's loss."""
    alarm_judge: Annotated[
        str | None, Refers("reward", words=("gold",), functions=True), Calls()
    ] = None
    """Who judges whether the policy exploits its reward: a reward stage or run, a Python function
    `module:function`, or gold. Training stops when its win rate on the held-out prompts falls while
    the score rises. Without it gold judges the embedded task, and elsewhere the reward itself."""
    max_ratio: Positive = 10.0
    """Mean probability ratio at which a mini-batch is given up and training stops."""
    logging_steps: Annotated[Count, Cosmetic()] = 1
    """Iterations between two lines of metrics.jsonl."""
    eval_steps: Count | None = None
    """Iterations between evaluations on the held-out prompts; without it, ten in all."""
    save_steps: Annotated[Count, Cosmetic()] = 10
    """Iterations between checkpoints: what at most is lost when the machine dies."""
    save_total_limit: Annotated[int, Field(ge=2), Cosmetic()] = 2
    """Checkpoints kept; an older one goes only after a newer one is sealed."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: about 30 % slower, far less memory."""
    report_to: Annotated[Texts, Cosmetic()] = ("none",)
    """Trackers to send metrics to, such as wandb or tensorboard; none sends nothing."""

    @property
    def iterations(self) -> int:
        """How often completions are sampled and learned from."""
        return self.total_episodes // self.rollout_batch_size

    @model_validator(mode="after")
    def _rewards_and_batches_fit(self) -> OnlineConfig:
        rewards = len(self.reward_model) + len(self.reward) + len(self.reward_url)
        if not rewards:
            raise wrong(
                "reward_model", "nothing to learn from: set reward_model, reward or reward_url"
            )
        if self.reward_weights is not None and len(self.reward_weights) != rewards:
            raise wrong(
                "reward_weights",
                f"reward_weights has {len(self.reward_weights)} values but there are "
                f"{rewards} rewards",
            )
        for name in self.reward:
            if not is_function(name):
                raise wrong("reward", f"reward {name!r} is not of the form module:function")
        for name, urls in (("reward_url", self.reward_url), ("rollout_url", (self.rollout_url,))):
            if not all(url is None or HTTP.match(url) for url in urls):
                raise wrong(name, f"{name} starts with http:// or https://")
        self._alarm_judge_is_independent()
        if self.total_episodes < self.rollout_batch_size:
            raise wrong(
                "total_episodes",
                f"total_episodes {self.total_episodes} is less than one iteration of "
                f"rollout_batch_size {self.rollout_batch_size}",
            )
        if self.rollout_batch_size % self.num_mini_batches:
            raise wrong(
                "num_mini_batches",
                f"num_mini_batches {self.num_mini_batches} does not divide rollout_batch_size "
                f"{self.rollout_batch_size}",
            )
        if self.response_length >= self.max_length:
            raise wrong(
                "response_length",
                f"response_length {self.response_length} leaves no room for a prompt in "
                f"max_length {self.max_length}",
            )
        return self

    def _alarm_judge_is_independent(self) -> None:
        judge = self.alarm_judge
        if judge is None:
            return
        if judge in (*self.reward_model, *self.reward):
            raise wrong("alarm_judge", f"alarm_judge {judge} is what the policy is trained on")
        if not self.eval_prompts and not self.eval_fraction:
            raise wrong(
                "alarm_judge",
                "alarm_judge has nothing to judge: set eval_prompts or eval_fraction",
            )
