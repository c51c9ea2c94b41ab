"""The JSON Schema of a recipe file, for editors that complete and check as one types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.recipe.settings.base import CONFIGS, RecipeHead, StageConfig


def json_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a recipe file, for editors that complete and check as one types."""
    head = RecipeHead.model_json_schema()
    definitions: dict[str, Any] = head.pop("$defs", {})
    stages = []
    for kind, config in CONFIGS.items():
        schema = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[config.__name__] = schema
        stages.append(_stage_schema(kind, config))
    head["properties"]["stages"] = {
        "type": "array",
        "minItems": 1,
        "items": {"oneOf": stages},
        "description": "Stages in the order they run; a value may name an earlier stage.",
    }
    head["required"] = sorted({*head.get("required", ()), "stages"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "alignkit recipe",
        "description": "Stages on one backbone, run by `alignkit run`.",
        **{key: value for key, value in head.items() if key not in ("title", "description")},
        "$defs": definitions,
    }


def _stage_schema(kind: str, config: type[StageConfig]) -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {kind: {"$ref": f"#/$defs/{config.__name__}"}},
        "required": [kind],
        "additionalProperties": False,
        "description": (config.__doc__ or "").strip(),
    }
