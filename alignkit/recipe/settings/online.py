"""Settings that `ppo` and `rloo` share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignkit.recipe.scorer_forms import is_function
from alignkit.recipe.settings.base import (
    HTTP,
    PROMPTS,
    Calls,
    Cosmetic,
    Refers,
    StageConfig,
)
from alignkit.recipe.settings.choices import KL_ESTIMATORS, KlEstimator, listed
from alignkit.recipe.settings.values import (
    Count,
    CountOrNone,
    NotNegative,
    Numbers,
    Positive,
    Texts,
    wrong,
)


class OnlineConfig(StageConfig):
    """What PPO and RLOO share: rollouts, rewards, the KL penalty and the clipped update."""

    policy: Annotated[str | None, Refers("policy")] = None
    """Stage or run directory whose adapter to start from. Its frozen copy is the reference."""
    prompts: Annotated[Texts, PROMPTS] = Field(min_length=1)
    """Files with prompts to train on. Only the prompts of rows with completions are read."""
    eval_prompts: Annotated[Texts | None, PROMPTS] = None
    """Held-out prompts that select the best checkpoint, by score minus kl_coef times KL."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of `prompts` to hold out for that when eval_prompts is not set."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be read: stop before training, or drop it and report it."""
    format: str | None = None
    """Format of the prompt files. Default: detected, and reported."""
    reward_model: Annotated[Texts, Refers("reward", by="scorer")] = ()
    """Reward stages or runs that score completions; gold is the embedded task's own score."""
    reward: Annotated[Texts, Calls()] = ()
    """Python functions `module:function` that take a prompt, a list of messages with role and
    content, and a completion, a text, and return a number; or that take lists of them as `prompts`
    and `completions`, and return a list. Further parameters are columns of the prompts."""
    reward_url: Texts = ()
    """HTTP services that score completions: each answers a POST of JSON with scores."""
    reward_weights: Numbers | None = None
    """Weight of each reward, in the order reward_model, reward, reward_url. Default: 1 each."""
    reward_timeout: Positive = 60.0
    """Seconds to wait for an answer of reward_url before a retry."""
    normalize_rewards: bool = True
    """Normalize scores by the reward's mean and standard deviation on completions of the starting
    policy, fixed before the first step."""
    reward_clip: Positive | None = 10.0
    """Clip scores to plus or minus this, after normalizing."""
    reference: Literal["start", "backbone"] = "start"
    """What KL is measured to: a frozen copy of the starting adapter (start), or the bare model
    (backbone)."""
    max_length: Count = 1024
    """Maximum length of prompt plus completion, in tokens. Memory grows with it."""
    on_overlong: Literal["error", "drop", "truncate_prompt"] = "error"
    """What to do with a prompt that leaves no room for response_length: stop, drop it, or cut its
    start."""
    response_length: Count = 64
    """Maximum length of a completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature. It applies to the old, new and reference log-probabilities alike."""
    stop_token: str = "eos"
    """What ends a completion: eos (any stop token of the model), or the text of one token."""
    missing_eos_penalty: NotNegative | None = 1.0
    """Subtracted from the score of a completion that does not end by itself."""
    total_episodes: Count = 10_000
    """Total number of completions to sample, in total_episodes / rollout_batch_size iterations."""
    rollout_batch_size: Count = 64
    """Completions sampled per iteration; their advantages are whitened together."""
    rollout_forward_batch_size: Count = 64
    """Completions per forward pass of sampling and scoring. Lower it to save memory."""
    rollout_url: str | None = None
    """OpenAI-compatible server that samples instead of the local model; log-probabilities are
    always computed locally."""
    num_ppo_epochs: Count = 4
    """Passes over the completions of an iteration."""
    num_mini_batches: Count = 1
    """Optimizer steps per pass."""
    per_device_train_batch_size: Count = 8
    """Completions per forward pass of the update. Lower it to save memory."""
    learning_rate: Positive = 1e-5
    """Peak learning rate of the policy's adapter."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Learning rate schedule over the iterations, after the warmup."""
    warmup_steps: CountOrNone = 0
    """Iterations over which the learning rate rises from 0 to its peak."""
    max_grad_norm: NotNegative = 1.0
    """Clip the gradient norm to this; 0 disables clipping."""
    cliprange: Positive = 0.2
    """PPO's clip range: how far the ratio of new to old probability may move from 1."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Upper bound of that ratio where the advantage is negative (dual-clip PPO). Default: none."""
    kl_coef: NotNegative = 0.05
    """Weight of the KL penalty in the reward: lower lets the policy move further away."""
    kl_estimator: KlEstimator = Field(
        "k1", description=f"Estimator of the per-token KL penalty: {listed(KL_ESTIMATORS)}."
    )
    kl_target: Positive | None = None
    """Target KL per completion, which kl_coef is adapted to reach. Default: kl_coef is constant."""
    kl_horizon: Positive = 10_000.0
    """Horizon of the adaptive KL controller, in episodes."""
    kl_limit: Positive | None = None
    """Abort when the KL per completion exceeds this, naming the last checkpoint before it."""
    early_stop_kl: Positive | None = None
    """Skip the remaining passes of an iteration when its update's approximate KL exceeds this."""
    entropy_coef: NotNegative = 0.0
    """Weight of an entropy bonus in the policy loss."""
    alarm_judge: Annotated[str | None, Refers("reward", by="scorer", functions=True)] = None
    """Judge that detects a policy exploiting its reward: a reward stage or run, a Python function
    `module:function`, or gold. Training stops when the win rate on the held-out prompts falls while
    the score rises. Default: gold for the embedded task, else the reward itself."""
    max_ratio: Positive = 10.0
    """Abort when a mini-batch's mean probability ratio exceeds this."""
    logging_steps: Annotated[Count, Cosmetic()] = 1
    """Iterations between lines of metrics.jsonl."""
    eval_steps: Count | None = None
    """Iterations between evaluations on the held-out prompts. Default: ten evaluations in all."""
    save_steps: Annotated[Count, Cosmetic()] = 10
    """Iterations between checkpoints: the most that a crash can lose."""
    save_total_limit: Annotated[int, Field(ge=2), Cosmetic()] = 2
    """Number of checkpoints to keep. An old one is deleted only after a new one is sealed."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: about 30 % slower, far
    less memory."""
    report_to: Annotated[Texts, Cosmetic()] = ("none",)
    """Trackers to send metrics to, such as wandb or tensorboard; none sends nothing."""

    @property
    def completions_per_prompt(self) -> int:
        """Completions that are sampled of each prompt."""
        return 1

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
        if judge in (*self.reward_model, *self.reward, *self.reward_url):
            raise wrong("alarm_judge", f"alarm_judge {judge} is what the policy is trained on")
        if not self.eval_prompts and not self.eval_fraction:
            raise wrong(
                "alarm_judge",
                "alarm_judge has nothing to judge: set eval_prompts or eval_fraction",
            )
