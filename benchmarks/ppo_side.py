"""One side of the PPO benchmark, in a process of its own: an iteration for each line on stdin.

Started by benchmarks/ppo.py. Prints one JSON object for the model at rest, then one an iteration.
The TRL side runs under TRL 1.12, the last release with a PPO trainer; nothing here imports more
of TRL than that side needs.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402  the environment above must be set first
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)

PROMPT, RESPONSE, BATCH, EPOCHS = 32, 48, 16, 2
RATE = 1e-5
ANSWERS = os.fdopen(os.dup(1), "w")  # stdout itself is given to whatever prints


def answer(content: dict[str, Any]) -> None:
    """One line of JSON to the parent."""
    ANSWERS.write(json.dumps(content) + "\n")
    ANSWERS.flush()


def wait_for_go() -> None:
    """Until the parent says that this side's turn has come."""
    if not sys.stdin.readline():
        sys.exit(0)


def prompt_ids(vocabulary: int, lengths: str) -> list[list[int]]:
    """The same 64 prompts on both sides, ids above the special ones.

    `equal`: 32 tokens each, so that nobody pads. `hh`: as long as real prompts (hh_lengths.json).
    """
    generator = torch.Generator().manual_seed(5)
    sizes = [PROMPT] * 64
    if lengths == "hh":
        real = json.loads(Path(__file__).with_name("hh_lengths.json").read_text())["lengths"]
        sizes = [prompt for prompt, _, _ in real[:64]]
    return [torch.randint(10, vocabulary, (size,), generator=generator).tolist() for size in sizes]


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of weights and buffers, each storage counted once."""
    seen: dict[int, int] = {}
    for module in modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        for parameter in module.parameters():
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                seen[state.absmax.data_ptr()] = state.absmax.numel() * state.absmax.element_size()
    return sum(seen.values())


def resident(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


class Peak:
    """Peak memory above what is held now."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self.start = resident("VmRSS")

    def above_start(self) -> int:
        return resident("VmHWM") - self.start


class Clock:
    """CPU and wall seconds of the parts of an iteration."""

    def __init__(self) -> None:
        self.began = self.last = (time.process_time(), time.perf_counter())
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """What ran since the last mark belongs to this part."""
        now = (time.process_time(), time.perf_counter())
        self.parts[part] = self.parts.get(part, 0.0) + now[0] - self.last[0]
        self.last = now

    def total(self) -> dict[str, Any]:
        """What a turn is answered with."""
        cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        return {"cpu": cpu, "wall": wall, "parts": self.parts}


def quantized_product(
    inputs: Sequence[int], _weight: Any, shape: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of inputs (…, in) on a 4-bit weight of `shape` (out, in)."""
    return 2 * math.prod(inputs) * shape[0]


class Products:
    """Counts the floating-point operations of matrix products in the first iteration."""

    def __init__(self) -> None:
        import bitsandbytes  # noqa: F401  its operations are known then

        formula = {torch.ops.bitsandbytes.gemm_4bit: quantized_product}
        self.counter: FlopCounterMode | None = FlopCounterMode(
            display=False, custom_mapping=formula
        )
        self.counter.__enter__()

    def total(self) -> dict[str, Any]:
        """The count, the first time; nothing later, for counting takes time."""
        if self.counter is None:
            return {}
        self.counter.__exit__(None, None, None)
        count, self.counter = self.counter.get_total_flops(), None
        return {"products": count}


# --- ours --------------------------------------------------------------------------------------


Value = Literal["head", "adapter"]


def ours(model: Path, lengths: str, value: Value) -> None:
    """One NF4 base; policy, reference and reward are adapters on it, value a head or an adapter."""
    trainer = our_trainer(model, lengths, value)
    answer({"weights": bytes_of(trainer.backbone.model, trainer.critic.head)})
    peak = Peak()
    wait_for_go()
    products = Products()
    while True:
        clock = Clock()
        timed = {"collect": trainer.collect, "sample": trainer.sampler.sample}
        trainer.sampler.sample = then(timed["sample"], lambda clock=clock: clock.mark("rollout"))
        trainer.collect = then(timed["collect"], lambda clock=clock: clock.mark("score"))
        trainer._iterate()
        clock.mark("update")
        trainer.sampler.sample, trainer.collect = timed["sample"], timed["collect"]
        answer({**clock.total(), **products.total(), "peak": peak.above_start()})
        wait_for_go()


def then(function: Callable[..., Any], mark: Callable[[], None]) -> Callable[..., Any]:
    """The function, with a mark after it."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        mark()
        return result

    return wrapped


def our_trainer(model: Path, lengths: str = "equal", value: Value = "head") -> Any:
    from alignkit.model.backbone import POLICY, REFERENCE, Backbone
    from alignkit.model.heads import ScalarHead
    from alignkit.ppo.loop import OnlineTrainer
    from alignkit.ppo.rewards import RolloutPrompt, open_rewards
    from alignkit.ppo.rollout import Sampler
    from alignkit.recipe.settings import BackboneConfig, PpoConfig
    from alignkit.stages.ppo import ppo_targets, start_value
    from alignkit.training.context import StageContext

    backbone = Backbone.load(BackboneConfig(model_name_or_path=str(model)))
    work = Path(tempfile.mkdtemp())
    backbone.new_adapter("reward", seed=3)
    hidden = backbone.base.config.hidden_size
    backbone.save_adapter("reward", work / "rm" / "adapter", head=ScalarHead(hidden, seed=3))
    backbone.clear()
    backbone.new_adapter(POLICY, seed=1)
    rouse(backbone.model)
    backbone.copy_adapter(POLICY, REFERENCE)
    config = PpoConfig(
        prompts=("ids",),
        reward_model=("rm",),
        response_length=RESPONSE,
        total_episodes=BATCH * 1000,
        rollout_batch_size=BATCH,
        rollout_forward_batch_size=BATCH,
        per_device_train_batch_size=BATCH,
        num_ppo_epochs=EPOCHS,
        learning_rate=RATE,
        missing_eos_penalty=None,
        value=value,
        logging_steps=1,
    )
    context = StageContext(work, 0, {"rm": work / "rm"}, lambda: backbone, lambda _line: None)
    vocabulary = backbone.base.config.vocab_size
    prompts = [RolloutPrompt("ids", (), tuple(ids)) for ids in prompt_ids(vocabulary, lengths)]
    rewards = open_rewards(config, context, backbone, 2)
    sampler = Sampler(backbone, config, [], REFERENCE)
    critic = start_value(backbone, config, context, rewards, 1000)
    trainer = OnlineTrainer(
        backbone,
        config,
        context,
        prompts,
        sampler,
        rewards,
        None,
        critic,
        lambda rollout, kl, kl_coef: ppo_targets(rollout, kl, kl_coef, config),
        1,
    )
    trainer._measure_start()
    return trainer


def rouse(model: nn.Module) -> None:
    """Random B in place of zero, as after some training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


# --- TRL ---------------------------------------------------------------------------------------


def trl(model: Path, lengths: str, quantized: bool) -> None:
    """TRL 1.12's PPO: four models, NF4 with LoRA on policy and value, or all of them fp32."""
    from transformers import TrainerCallback
    from trl.experimental.ppo import ppo_trainer

    clock: list[Clock] = []

    class Turns(TrainerCallback):
        """Ends an iteration and waits for the next turn."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            answer({"weights": weights})
            self.peak = Peak()
            self.next()
            self.products = Products()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock[-1].mark("update")
            counted = self.products.total()
            answer({**clock[-1].total(), **counted, "peak": self.peak.above_start()})
            self.next()

        def next(self) -> None:
            wait_for_go()
            clock.append(Clock())

    generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten
    ppo_trainer.batch_generation = then(generate, lambda: clock[-1].mark("rollout"))
    ppo_trainer.masked_whiten = then(whiten, lambda: clock[-1].mark("score"))
    trainer, parts = trl_trainer(model, lengths, quantized, Turns())
    weights = bytes_of(*parts)
    trainer.train()


def trl_trainer(model: Path, lengths: str, quantized: bool, turns: Any) -> Any:
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = load(AutoModelForCausalLM, model, quantized)
    reward, value = scorer(model, quantized), scorer(model, quantized)
    if quantized:
        policy.requires_grad_(False)
        value.requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=16, lora_alpha=32, target_modules=linear_names(value)), value
        )
        value.score.requires_grad_(True)
    reference = None if quantized else load(AutoModelForCausalLM, model, False)
    arguments = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        local_rollout_forward_batch_size=BATCH,
        num_ppo_epochs=EPOCHS,
        response_length=RESPONSE,
        total_episodes=BATCH * 1000,
        learning_rate=RATE,
        num_sample_generations=0,
        save_strategy="no",
        temperature=1.0,
        disable_tqdm=True,
        logging_steps=10**6,
    )
    rows = Dataset.from_dict({"input_ids": prompt_ids(policy.config.vocab_size, lengths)})
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        peft_config=lora if quantized else None,
        callbacks=[turns],
    )
    rouse(trainer.model)
    return trainer, [trainer.policy_model, value, reward, *([reference] if reference else [])]


def load(kind: Any, model: Path, quantized: bool, **options: Any) -> Any:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "score"],
    )
    loaded = kind.from_pretrained(
        model,
        dtype=torch.float32,
        quantization_config=quantization if quantized else None,
        **options,
    )
    for module in loaded.modules():
        # Without this TRL's training stops at its first backward on some CPUs; see backbone.py.
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    return loaded


def scorer(model: Path, quantized: bool) -> Any:
    from transformers import AutoModelForSequenceClassification

    return load(AutoModelForSequenceClassification, model, quantized, num_labels=1, pad_token_id=0)


def linear_names(model: nn.Module) -> list[str]:
    return sorted(
        {name.rpartition(".")[2] for name, _ in model.named_modules() if name.endswith("_proj")}
    )


SIDES: dict[str, Callable[[Path, str], None]] = {
    "ours": lambda model, lengths: ours(model, lengths, "head"),
    "ours-value-adapter": lambda model, lengths: ours(model, lengths, "adapter"),
    "trl-nf4": lambda model, lengths: trl(model, lengths, True),
    "trl-fp32": lambda model, lengths: trl(model, lengths, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("model", type=Path)
    parser.add_argument("lengths", choices=("equal", "hh"))
    arguments = parser.parse_args()
    os.dup2(2, 1)
    SIDES[arguments.side](arguments.model, arguments.lengths)


if __name__ == "__main__":
    main()
