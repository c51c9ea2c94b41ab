"""Build, guard and finish a transformers trainer: what the trained stages share.

The loop is transformers.Trainer's, through TRL for sft and dpo. Ours is the rest: fp32 trainable
weights on a quantized backbone, a forward over completions only, and checks that fail loudly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import TrainerCallback

from alignkit.errors import RecipeError, TrainingFailed
from alignkit.model.backbone import Backbone
from alignkit.model.heads import ScalarHead
from alignkit.model.probe import check_outputs
from alignkit.recipe.settings import OnlineConfig, TrainingConfig
from alignkit.store.row_log import append_rows
from alignkit.training.batching import batches_by_tokens
from alignkit.training.checkpoints import preserved_random_state
from alignkit.training.context import StageContext
from alignkit.training.finite import check_numbers, check_tensors
from alignkit.training.outcome import outcome_lines
from alignkit.training.trackers import Trackers

# Fields of TrainingConfig that the trainers underneath have under the same name.
SHARED_ARGUMENTS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "gradient_checkpointing",
)

# Rows whose loss is measured before and after training, at the cost of a step or two.
SAMPLED_BATCHES = 2
MOST_SAMPLED = 32


def start_adapter(
    backbone: Backbone, name: str, config: TrainingConfig | OnlineConfig, context: StageContext
) -> bool:
    """Give the stage its adapter; return True if it continues a trained one, False if it is fresh.

    In this order: the stage or run that `policy` names, the run named as the model, a fresh LoRA.
    """
    backbone.delete_adapter(name)
    start = context.adapter(config.policy) if config.policy else backbone.files.adapter
    if start is None:
        backbone.new_adapter(name, seed=context.seed)
    else:
        backbone.load_adapter(name, start)
    return start is not None


def trainer_arguments(kind: type, config: TrainingConfig, context: StageContext, **own: Any) -> Any:
    """Return the trainer's own settings object; `trainer:` adds to ours and never overrides.

    Raise RecipeError for a setting that both have.
    """
    values: dict[str, Any] = {name: getattr(config, name) for name in SHARED_ARGUMENTS}
    cuda = context.backbone.device.type == "cuda"
    dtype = context.backbone.dtype
    values |= {
        "output_dir": str(context.checkpoints),
        "seed": context.seed,
        "data_seed": context.seed,
        "use_cpu": not cuda,
        "bf16": cuda and dtype == torch.bfloat16,
        "fp16": cuda and dtype == torch.float16,
        "report_to": [],  # see Reported
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "eval_on_start": False,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
        "push_to_hub": False,
    }
    values |= own
    taken = sorted(set(values) & set(config.trainer))
    if taken:
        raise RecipeError(
            f"trainer.{taken[0]} is set by alignkit",
            hint=f"use the stage's own {taken[0]!r}"
            if taken[0] in SHARED_ARGUMENTS
            else "remove it",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return kind(**values, **config.trainer)


class MetricsLog(TrainerCallback):
    """Writes one JSON object per logged step, and stops at a number that is not finite."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Append the step's numbers."""
        del control
        numbers = _plain(logs or {})
        # Scaled fp16 gradients overflow now and then; such a step is skipped and has no norm.
        skipped = args.fp16 and not math.isfinite(numbers.get("grad_norm", 0.0))
        if skipped:
            del numbers["grad_norm"]
        check_numbers(numbers, state.global_step)
        append_rows(self.file, [{"step": state.global_step, **numbers}])


class Reported(TrainerCallback):
    """Passes events on to the trackers of `report_to`.

    The end of training comes from `end_reports`, after the last evaluation.
    """

    def __init__(self, trackers: Trackers) -> None:
        self.trackers = trackers

    def on_init_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Pass on that the trainer is made."""
        self.trackers.notify("on_init_end", args, state, control, **about)

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Pass on that training begins."""
        self.trackers.notify("on_train_begin", args, state, control, **about)

    def on_log(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        """Pass on the numbers of a step or of an evaluation."""
        self.trackers.notify("on_log", args, state, control, **about)


class Progress(TrainerCallback):
    """Moves a progress bar by one per optimizer step."""

    def __init__(self, context: StageContext, label: str) -> None:
        self.context = context
        self.label = label
        self.bar: Any = None
        self.advance: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step where a resumed run begins."""
        del args, control
        self.bar = self.context.progress(state.max_steps, self.label)
        self.advance = self.bar.__enter__()
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance by one step."""
        del args, state, control
        self.advance(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        del args, state, control
        self.bar.__exit__(None, None, None)


class GradientsAlive(TrainerCallback):
    """Fails after the first backward if an adapter gets no gradient.

    LoRA starts with B zero and A random. So every B has a gradient at the first step, unless
    something cut the graph; A's gradient is zero then, because B is.
    """

    def __init__(self) -> None:
        self.checked = False

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Check every trainable B once."""
        del args, control
        if self.checked:
            return
        self.checked = True
        dead = dead_gradients(model)
        if dead and teaches_nothing(model):
            raise TrainingFailed(
                f"every gradient is exactly zero at step {state.global_step + 1}: nothing in this "
                "batch can be learned",
                hint="Most often the two sides of its pairs are the same tokens, because the chat "
                "template drops what differs",
            )
        if dead:
            raise TrainingFailed(
                f"{len(dead)} adapter weights have no gradient at step {state.global_step + 1}; "
                f"the first is {dead[0]}",
                hint="alignkit doctor checks whether this machine's 4-bit kernels are guarded",
            )


def dead_gradients(model: nn.Module) -> list[str]:
    """Return the names of trainable LoRA B weights whose gradient is missing or exactly zero."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and "lora_B" in name
        and (parameter.grad is None or not bool(parameter.grad.any()))
    ]


def teaches_nothing(model: nn.Module) -> bool:
    """Return whether every B has a gradient and all are zero: the graph is whole, the loss flat.

    A cut graph leaves no gradient at all, and broken kernels affect only some layers.
    """
    gradients = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_B" in name
    ]
    return bool(gradients) and all(g is not None and not bool(g.any()) for g in gradients)


def snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of weights, to compare with after training."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def share_changed(before: Mapping[str, Tensor], after: Mapping[str, nn.Parameter]) -> float:
    """Return the share of entries that differ."""
    changed = sum(int((after[name].detach() != old).sum()) for name, old in before.items())
    return changed / max(sum(old.numel() for old in before.values()), 1)


def moved_share(before: Mapping[str, Tensor], after: Mapping[str, nn.Parameter]) -> float:
    """Return the share of entries that differ. Raises TrainingFailed when none does."""
    share = share_changed(before, after)
    if share == 0:
        raise TrainingFailed(
            "no trainable weight moved", hint="raise the learning rate or the number of steps"
        )
    return share


def weight_change(model: nn.Module, adapter: str, before: Mapping[str, Tensor]) -> float:
    """Return how far an adapter has moved what the model computes: |s (BA - B0 A0)| / |W|.

    Frobenius norms over all layers with this adapter. W is the base weight that s BA is added to;
    `before` holds A0 and B0 under the names of the model's parameters.
    """
    moved = base = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
            a, b = (getattr(layer, part)[adapter].weight.detach() for part in ("lora_A", "lora_B"))
            start_a, start_b = (
                before[f"{name}.{part}.{adapter}.weight"] for part in ("lora_A", "lora_B")
            )
            # BA - B0 A0 = LR with L = [B, -B0] and R = [A; A0], and |LR|² = tr(LᵀL RRᵀ): products
            # of the size of the rank, never of W's.
            left = torch.cat([b, -start_b], dim=1).double()
            right = torch.cat([a, start_a], dim=0).double()
            squared = ((left.T @ left) * (right @ right.T)).sum()
            moved += layer.scaling[adapter] ** 2 * max(float(squared), 0.0)
            weight = dequantize_module_weight(layer.base_layer)
            base += float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32)) ** 2
    return math.sqrt(moved / base) if base else 0.0


def prepare(trainer: Any, backbone: Backbone, adapter: str, head: ScalarHead | None = None) -> None:
    """Let only this adapter require gradients, keep stdout free, and check logits before saving."""
    backbone.activate(adapter)
    trainer.check_outputs = lambda after: check_outputs(backbone, adapter, head, after=after)
    quiet_callbacks(trainer)


@contextmanager
def undisturbed(backbone: Backbone, adapter: str) -> Iterator[None]:
    """Undo what TRL does to a model while it constructs a trainer.

    It patches the base's forward for its fused head, although we compute its loss ourselves. On a
    quantized base it also rounds the adapter to bfloat16, in which small updates vanish.
    """
    forward = backbone.base.__dict__.get("forward")
    weights = snapshot(backbone.parameters_of(adapter))
    try:
        yield
    finally:
        backbone.base.__dict__.pop("forward", None)
        if forward is not None:
            backbone.base.forward = forward
        for name, parameter in backbone.parameters_of(adapter).items():
            parameter.data = weights[name]


def fit(
    trainer: Any,
    trainables: Mapping[str, nn.Parameter],
    context: StageContext,
    adapter: str,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Train, from the newest valid checkpoint if there is one; return how it went as metrics.

    `max_tokens` bounds the forwards that measure the loss before and after.
    """
    before, loss_before = snapshot(trainables), sample_loss(trainer, max_tokens)
    outcome = trainer.train_sealed(
        context.fingerprint,
        say=context.say,
        resume_anyway=context.resume_anyway,
        log=context.metrics_file,
    )
    return {
        "steps": trainer.state.global_step,
        "train_loss": round(float(outcome.training_loss), 6),
        "loss_before": round(loss_before, 6),
        "loss_after": round(sample_loss(trainer, max_tokens), 6),
        "seconds": round(float(outcome.metrics.get("train_runtime", 0.0)), 2),
        "moved_share": moved_share(before, trainables),
        "weight_change": weight_change(context.backbone.model, adapter, before),
    }


def end_reports(trainer: Any) -> None:
    """Let trackers close their files, which belong to the result."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Reported):
            about = (trainer.args, trainer.state, trainer.control)
            callback.trackers.notify("on_train_end", *about, model=trainer.model)


def sample_loss(trainer: Any, max_tokens: int | None = None) -> float:
    """Return the mean loss on a few rows spread over the training data, without dropout.

    The same rows before and after training show what the loss of single steps hides, since each
    step has another batch. This draws no random number that training would draw, and leaves no
    gradient.
    """
    rows, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    count = min(len(rows), SAMPLED_BATCHES * size, MOST_SAMPLED)
    chosen = [number * len(rows) // count for number in range(count)]
    sizes = [trainer.sizes[position] for position in chosen]
    parts = batches_by_tokens(sizes, max_tokens or sum(sizes), max_items=size)
    modes = [(module, module.training) for module in trainer.model.modules()]
    total = 0.0
    trainer.model.eval()
    trainer.is_measuring = True
    try:
        with preserved_random_state(), torch.no_grad():
            for part in parts:
                batch = trainer.data_collator([rows[chosen[number]] for number in part])
                inputs = trainer._prepare_inputs(batch)
                total += float(trainer.compute_loss(trainer.model, inputs)) * len(part)
    finally:
        trainer.is_measuring = False
        for module, mode in modes:
            module.training = mode
    return total / count


def finish(
    backbone: Backbone,
    adapter: str,
    context: StageContext,
    metrics: dict[str, Any],
    head: ScalarHead | None = None,
) -> dict[str, Any]:
    """Save the adapter as the stage's result, remove it from the backbone, and return the metrics.

    Raise TrainingFailed when a metric, a weight or a logit is not finite; then nothing is saved.
    """
    check_numbers(metrics)
    check_tensors(backbone.parameters_of(adapter), "the weight", "training")
    check_outputs(backbone, adapter, head)
    backbone.save_adapter(adapter, context.directory / "adapter", head=head)
    backbone.clear()
    for line in outcome_lines(metrics):
        context.say(line)
    return metrics


def quiet_callbacks(trainer: Any) -> None:
    """Remove the callbacks that print."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


def callbacks(config: TrainingConfig, context: StageContext, label: str) -> list[TrainerCallback]:
    """Return the callbacks that every trained stage has."""
    hooks = [MetricsLog(context.metrics_file), Progress(context, label), GradientsAlive()]
    trackers = Trackers(config.report_to, context.directory, context.say)
    return [*hooks, Reported(trackers)] if trackers.callbacks else hooks


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every dropout probability to zero inside; restore them on exit."""
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p


def _plain(logs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _number(value) for key, value in logs.items()}


def _number(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.item()
    return round(value, 8) if isinstance(value, float) else value


def batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """Return consecutive slices of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
