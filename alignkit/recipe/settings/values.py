"""Types of the values that settings have, and how a problem of several settings is reported."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def wrong(name: str, message: str) -> PydanticCustomError:
    """A problem of several settings together, shown at the place of the one named."""
    return PydanticCustomError("setting", "{message}", {"field": name, "message": message})


def as_tuple(value: object) -> object:
    """One value is a list of one; lists become tuples, so that a config cannot be edited."""
    if value is None or isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, list) else (value,)


Texts = Annotated[
    tuple[str, ...], BeforeValidator(as_tuple, json_schema_input_type=str | list[str])
]
Numbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
    BeforeValidator(as_tuple, json_schema_input_type=float | list[float]),
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
