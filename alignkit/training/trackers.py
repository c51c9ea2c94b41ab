"""Send a run's metrics to trackers, such as TensorBoard and Weights & Biases.

The trackers themselves are transformers' callbacks. Ours is the rest: a name that is no tracker, or
whose package is missing, is refused before a model is loaded; TensorBoard's files stay with the
result; and a tracker that fails is named but cannot stop a run that trains.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import RecipeError, TrainingFailed, did_you_mean

if TYPE_CHECKING:
    from alignkit.recipe.settings import OnlineConfig
    from alignkit.training.context import StageContext

NONE, ALL = "none", "all"
BOARD = "tensorboard"  # also the name of its directory in the run's


@dataclass(frozen=True)
class Needs:
    """What a tracker needs: one of `modules` (each a tuple that goes together), from `pip`."""

    modules: tuple[tuple[str, ...], ...]
    pip: str


TRACKERS: dict[str, Needs] = {
    "azure_ml": Needs((("azureml.core.run",),), "azureml-core azureml-mlflow"),
    "clearml": Needs((("clearml",),), "clearml"),
    "codecarbon": Needs((("codecarbon",),), "codecarbon"),
    "comet_ml": Needs((("comet_ml",),), "comet-ml"),
    "dagshub": Needs((("dagshub", "mlflow"),), "dagshub mlflow"),
    "dvclive": Needs((("dvclive",),), "dvclive"),
    "flyte": Needs((("flytekit",),), "flytekit"),
    "mlflow": Needs((("mlflow",),), "mlflow"),
    "neptune": Needs((("neptune",),), "neptune"),
    "swanlab": Needs((("swanlab",),), "swanlab"),
    BOARD: Needs(((BOARD,), ("tensorboardX",)), BOARD),
    "trackio": Needs((("trackio",),), "trackio"),
    "wandb": Needs((("wandb",),), "wandb"),
}


def check_trackers(names: Sequence[str], where: str | None = None) -> None:
    """Raise RecipeError for a tracker that does not exist, or whose package cannot be imported."""
    if NONE in names and len(set(names)) > 1:
        raise RecipeError(f"report_to lists none together with {_other(names)}", where=where)
    for name in names:
        if name not in TRACKERS and name not in (NONE, ALL):
            raise RecipeError(
                f"report_to: there is no tracker {name!r}{did_you_mean(name, (*TRACKERS, ALL))}",
                where=where,
                hint=f"Known: {', '.join(TRACKERS)}, all, none",
            )
    for name in names:
        reason = _missing(TRACKERS[name]) if name in TRACKERS else None
        if reason:
            raise RecipeError(
                f"report_to {name} needs {TRACKERS[name].pip}, which cannot be imported ({reason})",
                where=where,
                hint=f"Run: pip install {TRACKERS[name].pip}; or set report_to to none",
            )
    if ALL in names and not _installed():
        raise RecipeError(
            "report_to is all, but no tracker is installed",
            where=where,
            hint=f"Run, for instance: pip install {BOARD}",
        )


def _other(names: Sequence[str]) -> str:
    return next(name for name in names if name != NONE)


def _installed() -> list[str]:
    return [name for name, needs in TRACKERS.items() if not _missing(needs)]


def _missing(needs: Needs) -> str | None:
    """Return why no alternative can be imported, in the words of the first one, or None."""
    reasons: list[str] = []
    for modules in needs.modules:
        try:
            for module in modules:
                importlib.import_module(module)
            return None
        except Exception as error:  # a broken package raises what it likes
            reasons.append(" ".join(f"{type(error).__name__}: {error}".split())[:160])
    return reasons[0]


# --- while a run trains --------------------------------------------------------------------------


class Trackers:
    """The callbacks that `report_to` names, as one callback of a transformers Trainer.

    Raises TrainingFailed when one cannot start. One that fails later is reported and dropped: what
    is learned is worth more than where it is shown.
    """

    def __init__(self, names: Sequence[str], directory: Path, say: Callable[[str], None]) -> None:
        wanted = _installed() if ALL in names else [name for name in names if name != NONE]
        self.say = say
        self.callbacks = {name: _callback(name, directory) for name in dict.fromkeys(wanted)}

    def notify(self, event: str, *args: Any, **about: Any) -> None:
        """Pass an event on to each tracker."""
        for name, callback in list(self.callbacks.items()):
            try:
                getattr(callback, event)(*args, **about)
            except Exception as error:  # a tracker raises what it likes
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if event in ("on_init_end", "on_train_begin"):
                    raise TrainingFailed(
                        f"report_to: {name} cannot start ({reason})",
                        hint=f"set {name} up, or set report_to to none",
                    ) from error
                self.say(f"report_to: {name} failed ({reason}); continuing without it")
                del self.callbacks[name]


def _callback(name: str, directory: Path) -> Any:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    callback: Any = INTEGRATION_TO_CALLBACK[name]()
    if name == BOARD and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
        # Its default is the directory of the checkpoints, which is deleted when a run is complete.
        callback.logging_dir = str(directory / BOARD)
    return callback


class OnlineTrackers:
    """Trackers for a loop that does not use transformers' Trainer."""

    def __init__(self, config: OnlineConfig, context: StageContext) -> None:
        self.trackers = Trackers(config.report_to, context.directory, context.say)
        self.common: tuple[Any, ...] = ()
        if self.trackers.callbacks:
            self.common = _surroundings(config, context)

    def begin(self, model: Any) -> None:
        """Report that a run begins or resumes."""
        if self.common:
            self.trackers.notify("on_init_end", *self.common)
            self.trackers.notify("on_train_begin", *self.common, model=model)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Report the numbers of one iteration."""
        if self.common:
            self.common[1].global_step = step
            self.trackers.notify("on_log", *self.common, logs=dict(row))

    def end(self) -> None:
        """Report that the run is over."""
        if self.common:
            self.trackers.notify("on_train_end", *self.common)


def _surroundings(config: OnlineConfig, context: StageContext) -> tuple[Any, ...]:
    """Return what transformers passes to callbacks: arguments, state and control."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    shared = set(TrainingArguments.__dataclass_fields__) & set(type(config).model_fields)
    settings = {name: getattr(config, name) for name in shared - {"report_to"}}
    arguments = TrainingArguments(
        output_dir=str(context.checkpoints),
        use_cpu=context.backbone.device.type == "cpu",
        report_to=[],
        **{**settings, "seed": context.seed},
    )
    return arguments, TrainerState(max_steps=config.iterations), TrainerControl()
