"""How a model is tuned: the table of methods, each of which adds weights to the frozen base.

To add one: a function that makes PEFT's configuration of it, here or in a module of its own, and a
row of METHODS.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from peft import LoraConfig, PeftConfig

from alignkit.model.fit import check_targets
from alignkit.recipe.settings import BackboneConfig


@dataclass(frozen=True)
class Method:
    """`configure` takes the settings and the names of the layers that can be tuned.

    `mark` is part of the name of every weight that the method adds, as PEFT names them.
    """

    configure: Callable[[BackboneConfig, Collection[str]], PeftConfig]
    mark: str


def lora(config: BackboneConfig, layers: Collection[str]) -> LoraConfig:
    """LoRA, arXiv:2106.09685: y = W x + (lora_alpha / r) B A x, with B zero at the start."""
    targets = check_targets(config.lora_target_modules, layers)
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )


def is_tuned(parameter: str) -> bool:
    """Whether a parameter of this name is one that a method adds."""
    return any(method.mark in parameter for method in METHODS.values())


METHODS: dict[str, Method] = {"lora": Method(lora, mark="lora_")}
