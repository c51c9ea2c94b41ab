"""The table of stages: the one line that adds a kind, with what `alignkit --help` says of it.

Settings of a kind are the class in `alignkit.recipe.settings.<kind>`, its work is
`alignkit.stages.<kind>`. This module imports nothing, so that the overview of commands needs no
settings. The order is that of the overview, of hints and of the recipe's schema.
"""

from __future__ import annotations

# kind -> the line of its command in the overview; empty for a stage that only recipes have.
KINDS: dict[str, str] = {
    "sft": "Fine-tune an adapter on demonstrations.",
    "reward": "Train a reward model from rankings.",
    "dpo": "Align a policy with preferences, no reward model.",
    "ppo": "Align a policy with a reward model, by PPO.",
    "rloo": "Like ppo without a value model.",
    "split": "",
    "generate": "Completions for prompts, n per prompt.",
    "rank": "",
    "evaluate": "",
}
