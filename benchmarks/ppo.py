"""PPO against the last PPO that TRL shipped, iteration by iteration in turn.

python -m benchmarks.ppo [--shapes h256,h512] [--prompts hh,equal] [--rounds 8] [--fp32]
                         [--value-adapter] [--environment DIR]

TRL 1.12.0 (`trl.experimental.ppo`) is installed into an environment of its own that shares every
other package. Both sides get the same Qwen2-shaped model with random weights (stored in bf16, as
real checkpoints are), batch, prompts, response length and epochs, and take turns: one iteration of
TRL, one of ours, so that only one works at a time. Prompts are as long as real ones (`hh`, TRL pads
them to the longest of a batch) or 32 tokens each (`equal`, TRL's best case). Time is process CPU
time on one thread; in the first round, which is not timed, the products of both sides are counted.
A batch is a quarter of the prompts, drawn anew by each side: with prompts of real lengths read the
ratio of the totals.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

TRL = "trl==1.12.0"
SHAPES: dict[str, dict[str, Any]] = {
    "h256": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "h512": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
VOCABULARY = 32000
MIB = 2**20


class SideProcess:
    """One side, waiting for its turn."""

    def __init__(self, python: Path, side: str, model: Path, lengths: str) -> None:
        self.side = side
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.ppo_side", side, str(model), lengths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("ALIGNKIT_DEBUG") else None,
            text=True,
        )
        self.weights = self._read()["weights"]

    def iteration(self) -> dict[str, Any]:
        """Run one iteration and wait for its numbers."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = self.process.stderr.read() if self.process.stderr else ""
            raise SystemExit(f"{self.side} ended early:\n{errors[-2000:]}")
        content: dict[str, Any] = json.loads(line)
        return content

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def old_trl(directory: Path) -> Path:
    """The python of an environment that has the old TRL and shares all other packages."""
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    packages = next((directory / "lib").glob("python3*")) / "site-packages"
    shared = sysconfig.get_paths()["purelib"]
    # addsitedir, not a bare path: editable installs are found through their own .pth files.
    (packages / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    if not (packages / "trl").exists():
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", TRL]
        subprocess.run(install, check=True)
    return python


def write_model(shape: str, directory: Path) -> Path:
    """A Qwen2-shaped model with random weights, and a tokenizer that knows the special ids."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.tokens import id_tokenizer

    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **SHAPES[shape],
    )
    torch.manual_seed(0)
    path = directory / shape
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(path)
    tokenizer = id_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(path)
    return path


def compare(
    title: str, model: Path, lengths: str, python: Path, names: tuple[str, str], rounds: int
) -> list[str]:
    """Lines of the report: both sides' seconds, split, weights and memory, and the ratios."""
    from benchmarks.common import peak_flops

    theirs = SideProcess(python, names[0], model, lengths)
    ours = SideProcess(Path(sys.executable), names[1], model, lengths)
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(rounds + 1):
        # The order changes every round, so that neither side always runs in the other's wake.
        if number % 2:
            pair = (theirs.iteration(), ours.iteration())
        else:
            second = ours.iteration()
            pair = (theirs.iteration(), second)
        if number:
            seen.append(pair)
        else:
            products = (pair[0]["products"], pair[1]["products"])
    lines = [f"## {title}: {names[0]} against {names[1]}, {rounds} rounds"]
    for side, index in ((theirs, 0), (ours, 1)):
        lines.append(_side_line(side, [pair[index] for pair in seen]))
        side.close()
    for unit in ("cpu", "wall"):
        ratios = sorted(a[unit] / b[unit] for a, b in seen)
        lines.append(
            f"{unit} seconds per iteration, paired: {statistics.median(ratios):.2f}x "
            f"[{ratios[0]:.2f}, {ratios[-1]:.2f}], of the totals "
            f"{sum(a[unit] for a, _ in seen) / sum(b[unit] for _, b in seen):.2f}x"
        )
    theirs_done, ours_done = (count / 1e9 for count in products)
    rates = [done / _seconds(seen, side) for side, done in enumerate((theirs_done, ours_done))]
    lines.append(
        f"matrix products: {theirs_done:.0f} GFLOP an iteration against {ours_done:.0f}, "
        f"{theirs_done / ours_done:.2f}x; {rates[0]:.0f} and {rates[1]:.0f} GFLOP a CPU second, "
        f"where one product of 1024 x 1024 alone reaches {peak_flops('float32') / 1e9:.0f}"
    )
    peaks = [max(pair[index]["peak"] for pair in seen) for index in (0, 1)]
    lines.append(f"weights in memory: 1/{theirs.weights / ours.weights:.1f}")
    lines.append(f"peak memory above start: 1/{peaks[0] / max(peaks[1], 1):.2f}")
    return lines


def _seconds(seen: list[tuple[dict[str, Any], dict[str, Any]]], side: int) -> float:
    return statistics.median(pair[side]["cpu"] for pair in seen)


def _side_line(side: SideProcess, iterations: list[dict[str, Any]]) -> str:
    cpu = statistics.median(i["cpu"] for i in iterations)
    parts = {
        part: statistics.median(i["parts"].get(part, 0.0) for i in iterations)
        for part in ("rollout", "score", "update")
    }
    split = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
    peak = max(i["peak"] for i in iterations)
    return (
        f"{side.side:9} {cpu:6.2f} CPU s an iteration ({split}); "
        f"weights {side.weights / MIB:.1f} MiB, peak above start {peak / MIB:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="h256,h512")
    parser.add_argument("--prompts", default="hh,equal")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--fp32", action="store_true", help="also four fp32 models, fully trained")
    parser.add_argument("--value-adapter", action="store_true", help="our value as an adapter")
    parser.add_argument("--environment", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    ours = "ours-value-adapter" if arguments.value_adapter else "ours"
    rivals = ("trl-nf4", "trl-fp32") if arguments.fp32 else ("trl-nf4",)
    with tempfile.TemporaryDirectory() as scratch:
        python = old_trl(arguments.environment or Path(scratch) / "trl")
        for shape, lengths, rival in product(
            arguments.shapes.split(","), arguments.prompts.split(","), rivals
        ):
            model = write_model(shape, Path(scratch))
            title = f"{shape}, vocabulary {VOCABULARY}, {lengths} prompts"
            for line in compare(title, model, lengths, python, (rival, ours), arguments.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
