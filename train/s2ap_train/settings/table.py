"""Tables of settings that refuse what they do not know, and say where."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from s2ap_defend.errors import RecipeError

REFUSED = "refused"
"""Type of pydantic's error for a value that its own class refused with a RecipeError."""


def placed(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Hand a RecipeError to pydantic, which lets all that is no ValueError pass without noting its place.

    A wrap validator of a table's fields.
    """
    try:
        return handler(value)
    except RecipeError as error:
        raise PydanticCustomError(REFUSED, "{reason}", {"reason": str(error)}) from error


class Table(BaseModel):
    """A table of a recipe: frozen, no unknown keys, refusals with their place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    _placed = field_validator("*", mode="wrap")(placed)
