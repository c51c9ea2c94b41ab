"""What every benchmark shares: models, data, paired timing, parity, memory and the table.

Both sides run in one process on one model object, batch by batch in turn, the order swapped on
alternate batches. Time is process CPU time on one thread, so that a busy machine does not decide;
each pair gives one ratio, and the median of ratios is reported with its 10th and 90th percentile.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import torch  # noqa: E402  the environment above must be set first
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from alignkit.forward.lora import fuse_lora, split_lora  # noqa: E402

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)

PAD = 0
LENGTHS = Path(__file__).with_name("hh_lengths.json")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")

# Random weights of real proportions. `S` h256, `M` h512 with Llama's vocabulary, `Q` four of the
# 24 layers of Qwen2.5-0.5B with its 151,936 tokens.
SHAPES: dict[str, dict[str, Any]] = {
    "S": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
    "M": {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "Q": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 4,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}

Side = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """One row of a benchmark: which model, stored how, how many items a batch, how many batches."""

    shape: str = "M"
    dtype: str = "float32"
    quantized: bool = False
    batch: int = 4
    batches: int = 20
    seed: int = 0

    @property
    def name(self) -> str:
        stored = "nf4" if self.quantized else {"float32": "fp32", "bfloat16": "bf16"}[self.dtype]
        return f"{self.shape} {stored} batch {self.batch}"


@dataclass
class Measured:
    """Seconds and parity of two sides over the same batches."""

    name: str
    needed_flops: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    loss_error: float = 0.0
    gradient_error: float = 0.0
    items: int = 0
    tokens: int = 0

    def ratios(self, baseline: str, ours: str = "ours") -> list[float]:
        return [b / o for b, o in zip(self.seconds[baseline], self.seconds[ours], strict=True)]

    def wall_ratio(self, baseline: str, ours: str = "ours") -> float:
        pairs = zip(self.wall[baseline], self.wall[ours], strict=True)
        return statistics.median(b / o for b, o in pairs)


def weights(shape: str, dtype: str, seed: int = 1) -> Path:
    """The directory of a random model of `shape`, made once a machine and kept."""
    settings = dict(SHAPES[shape])
    place = Path(tempfile.gettempdir()) / "alignkit-benchmarks" / f"{shape}-{dtype}-{seed}"
    if not (place / "config.json").exists():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            settings.pop("model_type"),
            **settings,
            max_position_embeddings=4096,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(place)
    return place


def base_model(setting: Setting) -> Any:
    """The frozen base, quantized when asked, with 4-bit weights kept in their layout."""
    options: dict[str, Any] = {}
    dtype = getattr(torch, setting.dtype)
    if setting.quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        weights(setting.shape, setting.dtype), dtype=dtype, **options
    )
    # Without this an evaluation repacks 4-bit weights, and later gradients are wrong on both sides.
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def with_adapter(base: Any, seed: int = 1) -> Any:
    """LoRA on all linear layers, B drawn at random: policy and reference then differ."""
    return roused(get_peft_model(base, lora()), seed)


def roused(model: Any, seed: int = 1) -> Any:
    """fp32 adapters whose B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return model


def hh_pairs(count: int, vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs with the lengths of real ones (HH) and random ids: time depends on lengths only."""
    lengths = json.loads(LENGTHS.read_text())["lengths"]
    source = random.Random(seed)
    source.shuffle(lengths)
    ids = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, vocabulary, (length,), generator=ids).tolist()

    return [
        {"prompt_ids": draw(p), "chosen_ids": draw(c), "rejected_ids": draw(r)}
        for p, c, r in islice(cycle(lengths), count)
    ]


def hh_lists(count: int, vocabulary: int, completions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with `completions` completions each, of the lengths of HH's chosen and rejected."""
    pairs = hh_pairs(count * completions, vocabulary, seed)
    return [
        {
            "prompt": pairs[i]["prompt_ids"],
            "completions": [
                pairs[i + j // 2]["rejected_ids" if j % 2 else "chosen_ids"]
                for j in range(completions)
            ],
        }
        for i in range(0, len(pairs), completions)
    ]


def on_our_layers(model: Any, step: Side) -> Side:
    """The step with LoRA layers as our backbone has them; TRL's side finds PEFT's own again."""

    def stepped(batch: Any) -> torch.Tensor:
        fuse_lora(model)
        try:
            return step(batch)
        finally:
            split_lora(model)

    return stepped


@contextmanager
def compact_head(wanted: bool) -> Iterator[None]:
    """TRL scoring completion positions only, as it does on a GPU: one line upstream away."""
    from trl.trainer import utils as trl_utils

    own = trl_utils._use_triton
    if wanted:
        trl_utils._use_triton = lambda _: True
    try:
        yield
    finally:
        trl_utils._use_triton = own


def batches_of(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[i : i + size]) for i in range(0, len(items) - size + 1, size)]


def gradients(model: Any) -> torch.Tensor:
    """All trainable gradients, flat, in fp32; the model's own are cleared."""
    found = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(found)


def compare(
    name: str,
    model: Any,
    sides: dict[str, Side],
    batches: Sequence[Any],
    *,
    gate: float = 1e-4,
    flops: Callable[[Any], float] = len,
    parity: Sequence[str] | None = None,
) -> Measured:
    """Run every side on every batch in turn; `sides` must hold "ours".

    A side runs one forward and backward and returns the loss. Raises SystemExit when a side named
    in `parity` (all by default) differs from ours by more than `gate`.
    """
    found = Measured(name, seconds={s: [] for s in sides}, wall={s: [] for s in sides})
    shortest = min(batches, key=flops)
    for side in sides.values():  # warm-up, not counted
        side(shortest)
        model.zero_grad(set_to_none=True)
    for number, batch in enumerate(batches):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        answers = {}
        for side in order:
            wall, cpu = time.perf_counter(), time.process_time()
            loss = sides[side](batch)
            found.seconds[side].append(time.process_time() - cpu)
            found.wall[side].append(time.perf_counter() - wall)
            answers[side] = float(loss), gradients(model)
        found.needed_flops += flops(batch)
        found.items += len(batch)
        check_parity(found, answers, gate, parity)
    return found


def check_parity(
    found: Measured,
    answers: dict[str, tuple[float, torch.Tensor]],
    gate: float,
    parity: Sequence[str] | None,
) -> None:
    """Relative error of loss and gradient against ours; a miss ends the benchmark."""
    loss, gradient = answers["ours"]
    for side, (other_loss, other) in answers.items():
        if side == "ours" or (parity is not None and side not in parity):
            continue
        loss_error = abs(loss - other_loss) / max(abs(other_loss), 1e-12)
        gradient_error = float((gradient - other).norm() / other.norm())
        found.loss_error = max(found.loss_error, loss_error)
        found.gradient_error = max(found.gradient_error, gradient_error)
        if max(loss_error, gradient_error) > gate:
            raise SystemExit(
                f"{found.name}: ours and {side} disagree: loss {loss_error:.2e}, "
                f"gradient {gradient_error:.2e}, allowed {gate:.0e}"
            )


def peak_flops(dtype: str, size: int = 1024, repeats: int = 8) -> float:
    """Matrix-multiply rate of this process now, in FLOP/s: the denominator of MFU."""
    left = torch.randn(size, size, dtype=getattr(torch, dtype))
    left @ left
    start = time.process_time()
    for _ in range(repeats):
        left @ left
    return 2 * size**3 * repeats / (time.process_time() - start)


def needed_flops(config: Any, body_tokens: int, head_tokens: int, passes: float = 3) -> float:
    """FLOPs nobody can avoid: each token once through the frozen body, scored ones also the head.

    `passes`: forward, gradient of the input (a frozen body has no weight gradient), and the
    reference's forward make 3. Attention's own products and LoRA are left out on every side.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    body = 2 * layer * config.num_hidden_layers * body_tokens
    return passes * (body + 2 * config.hidden_size * config.vocab_size * head_tokens)


def memory_above_model(script: str, *arguments: str) -> dict[str, float]:
    """Peak resident memory of one side in its own process, net of the loaded model, in MiB."""
    done = subprocess.run(
        [sys.executable, "-m", script, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


class PeakMemory:
    """Peak resident memory since construction, by the kernel's own high-water mark."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.start = resident("VmRSS")

    def above_start(self) -> float:
        return resident("VmHWM") - self.start


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def spread(values: Sequence[float]) -> str:
    """`median [10th, 90th]`."""
    ordered = sorted(values)
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.1, 0.9))
    return f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]"


def report(found: Measured, *, dtype: str = "float32") -> Iterator[str]:
    """Lines for people: one per baseline."""
    ours = sum(found.seconds["ours"])
    peak = peak_flops(dtype)
    for side, seconds in found.seconds.items():
        mfu = found.needed_flops / sum(seconds) / peak
        line = f"{found.name:28} {side:22} {sum(seconds):8.2f} CPU s  MFU {mfu:5.1%}"
        if found.tokens:
            line += f"  {found.tokens / sum(seconds):7.0f} tok/s"
        if side != "ours":
            line += (
                f"  x{spread(found.ratios(side))} (total {sum(seconds) / ours:.2f}, "
                f"wall {found.wall_ratio(side):.2f}, n {len(seconds)})"
            )
        yield line
    yield (
        f"{found.name:28} parity: loss {found.loss_error:.1e}, gradient {found.gradient_error:.1e}"
        f"; peak {peak / 1e9:.0f} GFLOP/s"
    )


def versions() -> str:
    """Everything the numbers depend on, in one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    flags = next((x for x in lines if x.startswith("flags")), "")
    special = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return (
        f"Python {sys.version.split()[0]}, {packages}; {cpu} ({', '.join(special)}), "
        f"{torch.get_num_threads()} thread, GPU: not measured"
    )


def user_seconds() -> float:
    """CPU seconds of finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
