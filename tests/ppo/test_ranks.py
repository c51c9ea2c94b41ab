"""Two processes that train together leave what one would: same samples, summed gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
from pathlib import Path

from alignkit.model.backbone import Backbone
from alignkit.recipe.settings import BackboneConfig, PpoConfig
from alignkit.stages import ppo
from alignkit.training.context import StageContext

model, output = sys.argv[1:]
config = PpoConfig(
    prompts=("prompts.jsonl",),
    reward=("toy_reward:letters",),
    response_length=8,
    total_episodes=24,
    rollout_batch_size=8,
    num_ppo_epochs=2,
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    missing_eos_penalty=None,
)
directory = Path(output)
directory.mkdir(exist_ok=True)
settings = BackboneConfig(model_name_or_path=model, lora_r=4)
backbone = Backbone.load(settings)
context = StageContext(directory, 7, {}, lambda: backbone, lambda line: None)
ppo.run(config, context)
"""


LOGGED = (
    "objective/kl",
    "objective/scores",
    "loss/policy_avg",
    "policy/entropy_avg",
    "rollout/length",
    "val/explained_variance",
)


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path, tiny_model):
    model = tiny_model("llama")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "toy_reward.py").write_text(
        "def letters(prompt, completion):\n    return sum(c.islower() for c in completion) / 8\n"
    )
    rows = [{"kind": "prompt", "prompt": [{"role": "user", "content": f"say {n}"}]} for n in "abcd"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run([], tmp_path, model, "one")
    run(launcher, tmp_path, model, "two")

    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    for left, right in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in LOGGED:
            assert right[name] == pytest.approx(left[name], abs=1e-4), name


def run(launcher: list[str], directory: Path, model: Path, output: str) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, *launcher, "train.py", str(model), output]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(str(directory / "adapter" / "adapter_model.safetensors"))


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
