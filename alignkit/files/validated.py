"""Validate fields with a pydantic model and explain the first failure in our words."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignkit.errors import did_you_mean
from alignkit.files.json_text import type_name
from alignkit.files.problems import RowError

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], fields: Any) -> M:
    """Build `model` from these fields; RowError in our words where they do not fit."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explain(error, model) from None


def _explain(error: ValidationError, model: type[BaseModel]) -> RowError:
    """Explain pydantic's first error in our words."""
    first = error.errors(include_url=False)[0]
    path = ""
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    if first["type"] == "missing":
        return RowError("missing-key", f'no "{path}"', f'add "{path}" to the row', field=path)
    if first["type"] == "extra_forbidden":
        guess = did_you_mean(str(first["loc"][-1]), model.model_fields)
        return RowError(
            "unknown-key", f'unknown key "{path}"{guess}', 'move it into "extra"', field=path
        )
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return RowError("value", reason, "correct or remove the row", field=path or None)
    given = first["input"]
    shown = type_name(given) if isinstance(given, dict | list) else f"{given!r:.40}"
    reason = first["msg"].replace("Input should be", "should be")
    return RowError(
        "value", f'"{path}" is {shown}: {reason}', "correct or remove the row", field=path
    )
