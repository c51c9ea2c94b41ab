"""`alignkit generate`: completions for prompts, in a directory with `candidates.jsonl`."""

from __future__ import annotations

from alignkit.cli.train import stage_command

generate = stage_command("generate")
