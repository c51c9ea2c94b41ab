"""Hold the one frozen, quantized model that every adapter sits on; only here is a model loaded.

Policy, reference, reward and value are *roles*: adapters on one set of base weights, switched on by
context managers that restore the model on exit. Trainable weights are always fp32, whatever the
base is stored in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from alignkit.errors import ModelError, RecipeError, did_you_mean, pick
from alignkit.forward.half_embedding import half_modules, store_in_full, store_in_half
from alignkit.forward.lora import fuse_lora
from alignkit.model.adapter_fit import (
    check_head,
    check_layers,
    drop_copies_of_the_base,
    fill_adapter,
    read_adapter,
    weights_of,
)
from alignkit.model.check import check_weights
from alignkit.model.files import (
    EMBEDDED,
    ModelFiles,
    find_model,
    staged,
    stored_tensors,
    weight_files,
)
from alignkit.model.fit import (
    adaptable_layers,
    built_from,
    check_complete,
    check_fit,
    fit_of,
    quiet_loading,
    stored_quantization,
)
from alignkit.model.heads import ScalarHead
from alignkit.model.methods import METHODS, is_tuned
from alignkit.model.probe import replay_probe, write_probe
from alignkit.model.quantized_cache import cache_path, load_cached_base, save_base
from alignkit.model.run_template import template_for
from alignkit.model.template_check import check_templates
from alignkit.model.tokenizer_check import checked_tokenizer
from alignkit.recipe.settings import BackboneConfig
from alignkit.store.artifacts import template_date

logger = logging.getLogger(__name__)

POLICY, REFERENCE, REWARD, VALUE = "default", "ref", "reward", "value"
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


class Backbone:
    """A frozen base model with named adapters on it.

    `model` is the PEFT model once the first adapter exists, the bare base before that.
    `fingerprint` is the sha256 of what the base computes: its files and its quantization.
    """

    def __init__(self, base: nn.Module, tokenizer: Any, files: ModelFiles, config: BackboneConfig):
        self.base: Any = base
        self.model: Any = base
        self.tokenizer = tokenizer
        self.files = files
        self.config = config
        self.device = next(base.parameters()).device
        self.dtype = compute_dtype(config)
        self.fingerprint = base_fingerprint(files, config)

    @classmethod
    def load(cls, config: BackboneConfig) -> Backbone:
        """Load and quantize the base once. Raises ModelError when it cannot be used."""
        files = find_model(config.model_name_or_path, config.revision)
        tokenizer = load_tokenizer(files, template_for(files, config.chat_template))
        base = _load_base(files, config)
        _check_vocabulary(base, tokenizer)
        guard_cpu_quantization(base)
        base.requires_grad_(False)
        base.eval()
        if _device() == "cpu" and compute_dtype(config) == torch.float32:
            store_in_half(base)
        return cls(base, tokenizer, files, config)

    # --- adapters ------------------------------------------------------------------------------

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that exist now."""
        return list(self.model.peft_config) if isinstance(self.model, PeftModel) else []

    def new_adapter(self, name: str, *, seed: int, method: str = "lora") -> None:
        """Add a fresh adapter, random from `seed`; it computes what the bare base does."""
        configure = pick(METHODS, method, what="tuning method").configure
        self._add(name, configure(self.config, adaptable_layers(self.base)), seed)

    def load_adapter(self, name: str, directory: Path, *, head: ScalarHead | None = None) -> None:
        """Load an adapter in PEFT's format.

        Only the adapter's own tensors are used: no byte of the base changes. Raise ModelError if it
        does not fit, or if it does not reproduce its probe.
        """
        config, weights = read_adapter(directory)
        check_layers(self.base, config, weights, directory)
        drop_copies_of_the_base(self.base, weights, directory)
        self._add(name, config, seed=0)
        try:
            fill_adapter(self.model, name, weights, directory)
            if head is not None:
                check_head(self.base, head, directory)
                head.to(self.device)
            replay_probe(self, name, directory, head)
        except ModelError:
            self.delete_adapter(name)
            raise

    def copy_adapter(self, source: str, target: str) -> None:
        """Copy the adapter `source` exactly, under the name `target`."""
        weights = weights_of(self.model, source)
        copied = {key: value.detach().clone() for key, value in weights.items()}
        self._add(target, self.model.peft_config[source], seed=0)
        set_peft_model_state_dict(self.model, copied, adapter_name=target)

    def save_adapter(self, name: str, directory: Path, *, head: ScalarHead | None = None) -> None:
        """Save the adapter in PEFT's own format, with its head, tokenizer and probe."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = weights_of(self.model, name)
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in weights.items()},
            str(directory / "adapter_model.safetensors"),
            metadata={"format": "pt"},
        )
        _write_adapter_config(self.model.peft_config[name], self.files, directory)
        self.tokenizer.save_pretrained(directory)
        if head is not None:
            head.save(directory)
        write_probe(self, name, directory, head)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; removing the last one restores the bare base."""
        if name not in self.adapters:
            return
        others = [other for other in self.adapters if other != name]
        if others:
            if name in self.model.active_adapters:
                self.model.set_adapter(others[0])
            self.model.delete_adapter(name)
            return
        self.base = self.model.unload()
        self.base.requires_grad_(False)
        self.model = self.base

    def clear(self) -> None:
        """Remove every adapter."""
        for name in self.adapters:
            self.delete_adapter(name)

    def adapter_hash(self, name: str) -> str:
        """Return sha256 over the adapter's weights."""
        digest = hashlib.sha256()
        weights = weights_of(self.model, name)
        for key in sorted(weights):
            digest.update(key.encode())
            digest.update(weights[key].detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """Return the adapter's trainable tensors by name."""
        return {
            key: parameter
            for key, parameter in self.model.named_parameters()
            if f".{name}." in key and is_tuned(key)
        }

    # --- roles ---------------------------------------------------------------------------------

    @contextmanager
    def role(self, adapter: str | None) -> Iterator[Any]:
        """Yield the model with this adapter (None: the bare backbone), in evaluation mode."""
        with _restored(self.model):
            self.model.eval()
            if adapter is None and isinstance(self.model, PeftModel):
                with self.model.disable_adapter():
                    yield self.model
            else:
                if adapter is not None:
                    self.model.set_adapter(adapter)
                yield self.model

    @contextmanager
    def training(self, adapter: str) -> Iterator[Any]:
        """Yield the model in training mode, with only this adapter trainable."""
        with _restored(self.model):
            self.activate(adapter)
            self.model.train()
            yield self.model

    def activate(self, adapter: str) -> None:
        """Make this adapter the active one and the only one that requires gradients."""
        self.model.set_adapter(adapter)
        for key, parameter in self.model.named_parameters():
            parameter.requires_grad_(f".{adapter}." in key and is_tuned(key))

    # --- inside --------------------------------------------------------------------------------

    def _add(self, name: str, config: PeftConfig, seed: int) -> None:
        if name in self.adapters:
            raise ValueError(f"adapter {name!r} exists already")
        # PEFT does not know our 16-bit modules, so an adapter on one of them needs plain ones.
        if _changes(config, half_modules(self.base)):
            store_in_full(self.base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(self.model, PeftModel):
                self.model.add_adapter(name, config)
            else:
                self.model = get_peft_model(self.base, config, adapter_name=name)
        as_fp32(self.parameters_of(name))
        fuse_lora(self.model)


def _changes(config: Any, modules: list[str]) -> bool:
    """Return whether an adapter of this configuration touches one of these modules of the base."""
    if config.modules_to_save or config.trainable_token_indices:
        return True
    return any(check_target_module_exists(config, name) for name in modules)


def as_fp32(parameters: dict[str, nn.Parameter]) -> None:
    """Store trainable weights in fp32: in bf16, rounding would swallow small updates."""
    for parameter in parameters.values():
        parameter.data = parameter.data.float()


def compute_dtype(config: BackboneConfig) -> torch.dtype:
    """Return the dtype; `auto` is bfloat16 or float16 on a GPU, and float32 on a CPU."""
    if config.dtype != "auto":
        chosen: torch.dtype = getattr(torch, config.dtype)
        return chosen
    if not torch.cuda.is_available():
        return torch.float32
    # Older GPUs have no bfloat16.
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def base_fingerprint(files: ModelFiles, config: BackboneConfig) -> str:
    """Return sha256 over the base's files and its quantization."""
    text = f"{files.fingerprint}\0{config.quantization}\0{config.dtype}"
    return hashlib.sha256(text.encode()).hexdigest()


def load_tokenizer(files: ModelFiles, chat_template: str | None = None) -> Any:
    """Return the model's tokenizer, padding on the left; pad is not EOS if there is another choice.

    Raise ModelError when there is no chat template and none is given, or no EOS token.
    """
    check_templates(files.path, chat_template)
    tokenizer = checked_tokenizer(files, padding_side="left")
    tokenizer.template_date = template_date(files.adapter)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no EOS token", where=str(files.path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def guard_cpu_quantization(model: nn.Module) -> int:
    """Keep NF4 weights in the layout that has gradients; return the number of layers guarded.

    bitsandbytes 0.50 repacks 4-bit weights on CPUs with AVX512-BF16 during the first forward
    without gradients, into a layout whose kernel has no backward. Gradients after an evaluation are
    then wrong, without an error. Remove when bitsandbytes' packed path has autograd.
    """
    try:
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError:
        return 0
    guarded = 0
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            guarded += 1
    return guarded


def _write_adapter_config(config: PeftConfig, files: ModelFiles, directory: Path) -> None:
    base = str(files.path) if Path(files.name).is_dir() or files.name == "tiny" else files.name
    content = config.to_dict() | {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "revision": files.revision,
    }
    for key, value in content.items():
        if isinstance(value, set):
            content[key] = sorted(value)
    text = json.dumps(content, indent=2, sort_keys=True, default=str)
    (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _load_base(files: ModelFiles, config: BackboneConfig) -> Any:
    """Return the base, quantized, after checking its files against what its architecture needs."""
    check_fit(files)
    if files.path not in EMBEDDED.values():
        check_weights(weight_files(files.path))
    _check_choices(files, config)
    fingerprint = base_fingerprint(files, config)
    path = None
    if config.quantization == "nf4" and _device() == "cpu":
        path = cache_path(fingerprint, str(compute_dtype(config)))
    cached = load_cached_base(path, fingerprint) if path else None
    with staged(files) as directory:
        as_stored = cached is not None or stored_quantization(files) is not None
        base = _load_directory(cached or directory, files, config, quantize=not as_stored)
    # Again, after loading: the files may have changed between the check and the load.
    if base_fingerprint(files, config) != fingerprint:
        raise ModelError("changed while it was being loaded", where=str(files.path))
    base.name_or_path = base.config.name_or_path = str(files.path)
    if path and not cached:
        save_base(base, path, fingerprint)
    return base


def _load_directory(
    directory: Path, files: ModelFiles, config: BackboneConfig, *, quantize: bool
) -> Any:
    """Load a directory with transformers, and check once more that no weight is missing."""
    from transformers import AutoModelForCausalLM

    dtype = compute_dtype(config)
    with quiet_loading(), built_from(files.path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            **({"quantization_config": _quantization(config, dtype)} if quantize else {}),
            attn_implementation=config.attn_implementation,
            device_map={"": _device()},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    base, info = loaded
    check_complete(fit_of(base, info), files.path, stored_tensors(files.path))
    return base


def _check_choices(files: ModelFiles, config: BackboneConfig) -> None:
    """Refuse an attention kernel that is not transformers' own, and a quantization in the files."""
    attention = config.attn_implementation
    if attention is not None and attention not in ATTENTION:
        raise RecipeError(
            f"attn_implementation is {attention!r:.80}{did_you_mean(attention, ATTENTION)}",
            hint=f"Known: {', '.join(ATTENTION)}",
        )
    stored = stored_quantization(files)
    if stored not in (None, config.quantization):
        raise ModelError(
            f"its weights are stored as {stored}, but quantization is {config.quantization}",
            where=str(files.path / "config.json"),
            hint=f"Set quantization: {stored}"
            if stored in ("nf4", "int8")
            else "Name the bfloat16 model that it was made from",
        )


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu"


def _quantization(config: BackboneConfig, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if config.quantization == "none":
        return None
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _read_template(source: str) -> str:
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"no chat template at {source}", hint="give a .jinja file")
    if (size := path.stat().st_size) > 4 * 65_536:  # a character has at most four bytes
        raise ModelError(
            f"{size:,} bytes; a chat template may have 65,536 characters", where=source
        )
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"the byte at {error.start:,} is not UTF-8", where=source, hint="give a .jinja file"
        ) from None
    if len(text) > 65536:
        raise ModelError(
            f"{len(text):,} characters; a chat template may have at most 65,536", where=source
        )
    return text


def _check_vocabulary(base: Any, tokenizer: Any) -> None:
    rows = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows",
            hint="use the tokenizer that belongs to this model",
        )


@contextmanager
def _restored(model: Any) -> Iterator[None]:
    """Restore train/eval flags, active adapter and requires_grad on exit, after exceptions too."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = model.active_adapter if isinstance(model, PeftModel) else None
    try:
        yield
    finally:
        if active is not None:
            model.set_adapter(active)
        for parameter, required in gradients:
            parameter.requires_grad_(required)
        for module, mode in modes:
            module.training = mode
