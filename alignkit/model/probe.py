"""Store outputs of an adapter with it and replay them on loading: proof that it came back whole.

Heads lost or re-initialised on reload are the field's most repeated reward-model bug. With every
adapter lie token ids, the model's outputs for them, and what the adapter sits on; loading computes
the outputs again.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from alignkit.errors import ModelError, TrainingFailed
from alignkit.model.heads import ScalarHead

FILE = "probe.json"
MAX_BYTES = 1 << 20
SENTENCE = "The shop opens at nine, and the kettle you ordered is here: shall we send it?"
# By dtype: largest difference between two outputs, relative to their size.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


class Probe(BaseModel):
    """What is stored with an adapter: token ids, the model's outputs, and what it sits on."""

    model_config = ConfigDict(extra="allow", frozen=True)

    ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1024)]
    logits: Annotated[list[FiniteFloat], Field(min_length=1, max_length=32)]
    score: FiniteFloat | None
    model: str
    base: str
    template_sha256: str
    fingerprint: str


def write_probe(backbone: Any, adapter: str, directory: Path, head: ScalarHead | None) -> None:
    """Store the model's outputs under this adapter in its directory."""
    ids = probe_ids(backbone)
    logits, score = _outputs(backbone, adapter, ids, head)
    content = {
        "ids": ids,
        "logits": [round(value, 6) for value in logits.tolist()],
        "score": score,
        **identity(backbone),
    }
    (directory / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def replay_probe(backbone: Any, adapter: str, directory: Path, head: ScalarHead | None) -> None:
    """Compute the outputs again. Raises ModelError if they or the base differ from the stored.

    An adapter without a probe, made elsewhere, is accepted. Another quantization of the same base
    rightly changes the outputs, so then only the base is compared.
    """
    file = directory / FILE
    if not file.exists():
        return
    stored = _read(file)
    current = identity(backbone)
    _check_base(stored, current, directory)
    if stored.fingerprint != current["fingerprint"]:
        return
    rows = backbone.base.get_input_embeddings().weight.shape[0]
    if max(stored.ids) >= rows:
        raise ModelError(f"has a token beyond the {rows:,} of the model", where=str(file))
    logits, score = _outputs(backbone, adapter, stored.ids, head)
    if len(stored.logits) != len(logits):
        raise ModelError(f"has {len(stored.logits)} logits, not {len(logits)}", where=str(file))
    expected = torch.tensor(stored.logits)
    limit = TOLERANCE[backbone.dtype] * float(expected.abs().max().clamp(min=1.0))
    gap = float((logits - expected).abs().max())
    if not gap <= limit:  # `not <=`, because a comparison with NaN is false
        raise ModelError(
            f"its stored logits differ from those it gives now by {gap:.3g} (at most {limit:.3g})",
            where=str(directory),
            hint="the weights were changed or damaged; copy the directory again",
        )
    if score is not None and stored.score is not None:
        _check_score(stored.score, score, directory, TOLERANCE[backbone.dtype])


def identity(backbone: Any) -> dict[str, Any]:
    """Return what an adapter sits on: base files, tokenizer and template, quantization."""
    template = str(backbone.tokenizer.chat_template)
    return {
        "model": backbone.files.name,
        "base": backbone.files.fingerprint,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "fingerprint": backbone.fingerprint,
    }


def probe_ids(backbone: Any) -> list[int]:
    """Return token ids of a fixed sentence, at least two of them."""
    ids = backbone.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"][:24]
    return [int(token) for token in ids] or [0, 1]


def check_outputs(
    backbone: Any, adapter: str, head: ScalarHead | None = None, *, after: str = "training"
) -> None:
    """Raise TrainingFailed unless the model under this adapter gives finite numbers.

    `after` names what the weights have just been through, such as `step 12`.
    """
    logits, score = _outputs(backbone, adapter, probe_ids(backbone), head)
    are_finite = bool(logits.isfinite().all())
    if not (are_finite and math.isfinite(score or 0.0)):
        raise TrainingFailed(
            f"the model's {'score is' if are_finite else 'logits are'} not finite after {after}",
            hint="lower learning_rate, or raise warmup_steps",
        )


@torch.no_grad()
def _outputs(
    backbone: Any, adapter: str, ids: list[int], head: ScalarHead | None
) -> tuple[Tensor, float | None]:
    """Return the first 32 logits of the last token (on the CPU), and the head's score or None."""
    with backbone.role(adapter):
        rows = torch.tensor([ids], device=backbone.device)
        states = backbone.base.base_model(input_ids=rows, use_cache=False).last_hidden_state
        logits = backbone.base.get_output_embeddings()(states[:, -1])[0, :32].float().cpu()
        score = float(head(states[:, -1])) if head is not None else None
    return logits, score


def _check_base(stored: Probe, current: dict[str, Any], directory: Path) -> None:
    if stored.base != current["base"]:
        raise ModelError(
            f"was trained on {stored.model} ({stored.base[:12]}), "
            f"but this is {current['model']} ({current['base'][:12]})",
            where=str(directory),
            hint="name the base it was trained on, in the same revision",
        )
    if stored.template_sha256 != current["template_sha256"]:
        raise ModelError(
            f"was trained with another chat template ({stored.template_sha256[:12]}, "
            f"this is {current['template_sha256'][:12]})",
            where=str(directory),
            hint="remove chat_template: the template saved with the adapter is used then",
        )


def _check_score(expected: float, actual: float, directory: Path, tolerance: float) -> None:
    if not abs(expected - actual) <= tolerance * max(abs(expected), 1.0):
        raise ModelError(
            f"its probe scored {expected:.4f} when it was saved and {actual:.4f} now",
            where=str(directory),
            hint="the head or the adapter was changed or damaged; copy the directory again",
        )


def _read(file: Path) -> Probe:
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise ModelError(f"not an ordinary file of at most {MAX_BYTES >> 10} KiB", where=str(file))
    try:
        return Probe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(f"{field}: {first['msg']:.120}", where=str(file)) from None
