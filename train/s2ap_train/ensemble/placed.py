"""Where in a recipe a value was refused."""

from __future__ import annotations

from pydantic import ValidatorFunctionWrapHandler
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
