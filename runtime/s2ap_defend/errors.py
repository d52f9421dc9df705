"""The errors of s2ap-defend.

    DefendError
    ├── ModelFileError   a model file is missing, broken, changed, or of another version
    ├── EngineError      an inference engine or device is missing or failed
    ├── InputError       an image, array or request is not what the model takes
    └── RecipeError      a recipe, option or checkpoint names something that does not exist or cannot work

Every message says what was found, what was expected, and what to do. The command line prints it on one line and
exits with code 2; the server answers 400 (InputError) or 500.
"""


class DefendError(Exception):
    """Base of all errors that s2ap-defend raises on purpose."""


class ModelFileError(DefendError):
    """A defended model file cannot be used."""


class EngineError(DefendError):
    """An inference engine cannot be created or failed while running."""


class InputError(DefendError):
    """An input does not fit the model."""


class RecipeError(DefendError):
    """A recipe, command option or training checkpoint cannot be used."""


def first_line(error: Exception) -> str:
    """What an error says first, for a message of one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
