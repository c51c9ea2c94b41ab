"""`alignkit doctor`: what this machine can do, what is missing, and the remedy for each problem."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from alignkit.store.artifacts import existing, readable, versions

Level = Literal["ok", "note", "problem"]
MARKS: dict[str, str] = {"ok": "ok  ", "note": "note", "problem": "FAIL"}
SMALL_MEMORY = 4 << 30
SMALL_DISK = 2 << 30
HUB = "huggingface.co"


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and what to do if it is a problem."""

    name: str
    level: Level
    found: str
    remedy: str = ""


@click.command()
@click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    metavar="DIR",
    help="Where results would go: space and rights are looked at there.",
)
@click.option("--offline", is_flag=True, help="Leave the network alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(runs_dir: Path, offline: bool, as_json: bool) -> None:
    """Look at versions, processor, GPU, memory, disk, 4-bit kernels and network.

    Ends with exit code 1 when something would keep a run from working.
    """
    checks = [
        *check_versions(),
        check_processor(),
        check_gpu(),
        check_memory(),
        check_disk(runs_dir),
        check_writing(runs_dir),
        check_quantization(),
        check_network(offline),
    ]
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            click.echo(f"{MARKS[check.level]}  {check.name:14} {check.found}")
            if check.remedy:
                click.echo(f"{'':22}{check.remedy}")
    if any(check.level == "problem" for check in checks):
        sys.exit(1)


def check_versions() -> list[Check]:
    """Python and the packages a run stands on; one that is absent or broken is a problem."""
    found = [Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    for package, version in versions().items():
        if version == "absent":
            found.append(Check(package, "problem", "not installed", f"pip install {package}"))
        else:
            found.append(Check(package, "ok", version))
    return found


def check_processor() -> Check:
    """Cores, and the instructions that choose the fast and the dangerous 4-bit kernels."""
    flags = _cpu_flags()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    cores = len(os.sched_getaffinity(0))
    return Check("processor", "ok", f"{cores} cores; {', '.join(known) or 'no vector extensions'}")


def check_gpu() -> Check:
    """The GPU that torch sees, with its memory."""
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "note", "none that torch can use: runs go on the processor")
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    count = torch.cuda.device_count()
    more = f", {count} of them" if count > 1 else ""
    return Check("gpu", "ok", f"{name}{more}: {readable(free)} of {readable(total)} free")


def check_memory() -> Check:
    """Memory this process may have."""
    from alignkit.run.estimate import total_memory

    total = total_memory()
    if total < SMALL_MEMORY:
        remedy = "Small models in nf4 still fit; alignkit run --dry-run estimates what is needed"
        return Check("memory", "note", readable(total), remedy)
    return Check("memory", "ok", readable(total))


def check_disk(runs_dir: Path) -> Check:
    """Space where runs go."""
    free = shutil.disk_usage(existing(runs_dir)).free
    if free < SMALL_DISK:
        return Check(
            "disk", "problem", f"{readable(free)} free for {runs_dir}", "Free some, or --runs-dir"
        )
    return Check("disk", "ok", f"{readable(free)} free for {runs_dir}")


def check_writing(runs_dir: Path) -> Check:
    """Whether a file can be made, locked and renamed where runs go."""
    place = existing(runs_dir)
    try:
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            _write_and_rename(Path(scratch))
    except OSError as error:
        return Check(
            "writing", "problem", f"not in {place}: {error.strerror}", "Choose another --runs-dir"
        )
    return Check("writing", "ok", f"works in {place}")


def _write_and_rename(scratch: Path) -> None:
    from alignkit.store.artifacts import locked, write_durably

    with locked(scratch / "lock", str(scratch)):
        write_durably(scratch / "a", b"1")
        (scratch / "a").rename(scratch / "b")


def check_quantization() -> Check:
    """4-bit layers: do gradients survive an evaluation? Run on a small layer, not looked up."""
    try:
        same, path = _gradient_survives()
    except Exception as error:  # any failure of the kernels is the finding
        return Check(
            "4-bit", "problem", f"{type(error).__name__}: {error}", "Use --quantization none"
        )
    if not same:
        return Check(
            "4-bit",
            "problem",
            f"{path}: gradients change after an evaluation, even guarded",
            "Use --quantization none, or another bitsandbytes",
        )
    return Check("4-bit", "ok", f"{path}; gradients are the same after an evaluation")


def _gradient_survives() -> tuple[bool, str]:
    """Whether a 4-bit layer's gradient is the same before and after a pass without autograd."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    from alignkit.model.backbone import guard_cpu_quantization

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    new: Any = Linear4bit  # untyped upstream
    layer = new(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
    guarded = guard_cpu_quantization(torch.nn.Sequential(layer))
    before = _gradient(layer, device)
    with torch.no_grad():
        layer.eval()(torch.ones(1, 64, device=device))
    after = _gradient(layer.train(), device)
    same = after is not None and bool(torch.equal(before, after))
    guard = f", guard on for {guarded} layer" if guarded else ""
    return same, f"bitsandbytes on {device}{guard}"


def _gradient(layer: Any, device: str) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 64, generator=generator).to(device).requires_grad_(True)
    layer(inputs).square().sum().backward()
    return inputs.grad


def check_network(offline: bool) -> Check:
    """Whether the hub can be reached; only models that are not here need it."""
    if offline or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return Check("network", "note", "left alone: models must be in directories or the cache")
    try:
        with socket.create_connection((HUB, 443), timeout=3):
            return Check("network", "ok", f"{HUB} answers")
    except OSError as error:
        return Check(
            "network",
            "note",
            f"{HUB} does not answer ({type(error).__name__})",
            "Models must be in directories or the cache; tiny needs nothing",
        )


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    lines = (line for line in path.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, "").split())
