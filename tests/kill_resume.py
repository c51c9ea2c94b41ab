"""Kill a stage with SIGKILL at random moments, some inside a save; it must end as if it never was.

    python -m tests.kill_resume --kills 20 --inside-save 5

Each stage is trained once undisturbed, then killed and run again by the same command until the
counts are reached. Every run must end with the adapter of the undisturbed one, to the bit. The
runs are forks of one process that has torch imported, so that a kill costs seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SETUP = """\
name: setup
stages:
  - sft: {data: "embedded:demonstrations", max_steps: 4, per_device_train_batch_size: 8}
  - rank: {candidates: "embedded:candidates"}
  - reward: {data: rank, policy: sft, max_steps: 4, per_device_train_batch_size: 4}
"""
COMMON = ["--save-steps", "2", "--logging-steps", "1", "--lora-dropout", "0.1", "--lora-r", "4"]
TRAINED = [*COMMON, "--max-steps", "9", "--per-device-train-batch-size", "4"]
ONLINE = ["--total-episodes", "48", "--rollout-batch-size", "8", "--response-length", "12"]


@dataclass(frozen=True)
class Target:
    """A stage to kill: its name, its command, and the adapters that must be the same."""

    name: str
    command: Sequence[str]
    adapters: Sequence[str] = ("adapter",)


def targets(place: Path) -> dict[str, Target]:
    """The four stages, with what they need lying under `place`."""
    run = place / "setup"
    policy, reward = (str(next(run.glob(f"{name}-*"))) for name in ("sft", "reward"))
    rankings = str(next(run.glob("rank-*")) / "rankings.jsonl")
    found = (
        Target("sft", ["--data", "embedded:demonstrations", *TRAINED]),
        Target("reward", ["--data", rankings, "--policy", policy, *TRAINED]),
        Target("dpo", ["--data", rankings, "--policy", policy, *TRAINED]),
        Target(
            "ppo",
            ["--prompts", "embedded:prompts", "--policy", policy, "--reward-model", reward]
            + [*COMMON, *ONLINE],
            ("adapter", "value"),
        ),
    )
    return {target.name: target for target in found}


def fork(arguments: Sequence[str], output: Path) -> int:
    """Start `alignkit` in a child; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        from alignkit.cli import main

        main(list(arguments))
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(70)


def finish(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def killed(pid: int, now: Callable[[], bool]) -> bool:
    """Kill the child when `now` says so; False when it was done before."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code:
                raise SystemExit(f"a run ended with {code} by itself")
            return False
        if now():
            os.kill(pid, signal.SIGKILL)
            finish(pid)
            return True
        time.sleep(0.0005)


def sha(output: Path, adapters: Sequence[str]) -> str:
    """One hash over the weights of the adapters and their heads."""
    digest = hashlib.sha256()
    for name in adapters:
        for file in sorted((output / name).glob("*.safetensors")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def after(seconds: float) -> Callable[[], bool]:
    """True once this long from now."""
    moment = time.monotonic() + seconds
    return lambda: time.monotonic() > moment


def inside_save(output: Path, which: int, wait: float) -> Callable[[], bool]:
    """True a moment after the which-th save has begun and before it has its name."""
    checkpoints = output.with_name(output.name + ".partial") / "checkpoints"
    seen: set[str] = set()

    def now() -> bool:
        open_now = {path.name for path in checkpoints.glob(".tmp-checkpoint-*")}
        seen.update(open_now)
        if open_now and len(seen) >= which:
            time.sleep(wait)
            return any((checkpoints / name).exists() for name in open_now)
        return False

    return now


def trial(target: Target, place: Path, kills: int, in_save: int, chance: random.Random) -> int:
    """Kill and resume one stage; the number of runs that ended in other weights."""
    reference = place / f"{target.name}-reference"
    began = time.monotonic()
    code = finish(fork([target.name, *target.command, "--output", str(reference)], reference))
    if code:
        sys.exit(f"{target.name} failed undisturbed: {reference.with_suffix('.log').read_text()}")
    usual, expected = time.monotonic() - began, sha(reference, target.adapters)
    tell(f"{target.name}: undisturbed {usual:.1f} s, {expected[:16]}")
    done = saves = wrong = number = 0
    while done < kills:
        output = place / f"{target.name}-{number}"
        number += 1
        command = [target.name, *target.command, "--output", str(output)]
        while done < kills:
            aim_at_save = saves < in_save
            now = (
                inside_save(output, chance.randint(1, 3), chance.uniform(0, 0.01))
                if aim_at_save
                else after(chance.uniform(0, usual))
            )
            if not killed(fork(command, output), now):
                break
            done += 1
            saves += aim_at_save
            if chance.random() < 0.5:
                break
        if not (output / "manifest.json").exists():
            code = finish(fork(command, output))
        same = not code and sha(output, target.adapters) == expected
        wrong += not same
        if not same:
            tell(
                f"{target.name}-{number - 1}: code {code}\n{output.with_suffix('.log').read_text()}"
            )
        shutil.rmtree(output, ignore_errors=True)
    tell(f"{target.name}: {done} kills, {saves} inside a save, {number} runs, {wrong} wrong")
    return wrong


def main() -> None:
    """Run the trials asked for; exit 1 when any ended in other weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", default="sft,reward,dpo,ppo")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inside-save", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import_everything()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "setup.yaml").write_text(SETUP)
        setup = ["run", str(place / "setup.yaml"), "--runs-dir", str(place)]
        if finish(fork(setup, place / "setup-log")):
            sys.exit((place / "setup-log.log").read_text())
        known = targets(place)
        chance = random.Random(given.seed)
        wrong = sum(
            trial(known[name], place, given.kills, given.inside_save, chance)
            for name in given.stages.split(",")
        )
    sys.exit(1 if wrong else 0)


def tell(line: str) -> None:
    """One line of the result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def import_everything() -> None:
    """Import what stages need, and compute nothing: threads do not survive a fork."""
    import alignkit.run.execute
    import alignkit.stages.dpo
    import alignkit.stages.ppo
    import alignkit.stages.reward
    import alignkit.stages.sft  # noqa: F401


if __name__ == "__main__":
    main()
