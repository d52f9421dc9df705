"""Which data set a recipe trains on, and how it is cut."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Resize
from s2ap_train.data.source import Resizing

SourceName = Literal["digits", "cifar10", "cifar100", "svhn", "fashion-mnist", "folder", "npz"]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=2, le=4096)]


class DataSettings(BaseModel):
    """A data set and its split; a recipe may give the source's name alone: data = "digits".

    Attributes:
        source: Kind of data set; 'folder' is a folder or zip of images, or several of them.
        root: Where it lies; a relative path starts from the current folder. Every source but 'digits' needs it.
        image_size: Size that images are brought to, pixels: one number for squares, or [height, width]; None takes
            them as they are.
        resize: How images of other sizes are brought to it, see `Resize`; None is 'crop'.
        channels: 1 or 3 converts the images of a folder; None takes what they have, all the same.
        on_white: Whether what is transparent in the images of a folder is composited on white; otherwise such images
            are refused.
        train_limit: At most so many training images, without the held-out ones.
        test_limit: At most so many test images.
        validation: Images held out of the training part for choosing; None is a twentieth of
            it, or of train_limit where that is smaller.
        fit: Images held out for the sequential test's tables; the same.
        calibration: Images held out for the false-alarm boundary; the same.
        classes: Names of the classes in the order of the network's outputs; None takes the data's own order.
        checksums: Whether the files of a published data set must be the published ones, by MD5. Without it CIFAR's
            pickles are read only if they hold nothing but arrays, lists, numbers and text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceName
    root: Path | tuple[Path, ...] | None = None
    image_size: Side | tuple[Side, Side] | None = None
    resize: Resize | None = None
    channels: Literal[1, 3] | None = None
    on_white: bool = False
    train_limit: Count | None = None
    test_limit: Count | None = None
    validation: Count | None = None
    fit: Count | None = None
    calibration: Count | None = None
    classes: tuple[str, ...] | None = None
    checksums: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:  # noqa: ANN401  pydantic hands over whatever the recipe says
        if not isinstance(value, str):
            return value
        known = get_args(SourceName)
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise RecipeError(f"data {value!r} is not known; {hint}")
        return {"source": value}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == "digits" and self.root is not None:
            raise RecipeError("data.root is given for the digits, which come with scikit-learn; remove it")
        if self.source != "folder" and len(self.roots) > 1:
            raise RecipeError(
                f"data.root is a list of {len(self.roots)}, but only 'folder' reads several; give one path"
            )
        if self.source != "folder" and self.channels is not None:
            raise RecipeError(f"data.channels converts image files, data.source is {self.source!r}; remove it")
        if self.classes is not None and self.source not in {"folder", "npz"}:
            raise RecipeError(
                f"data.classes orders the classes of a folder or .npz file, data.source is {self.source!r}"
            )
        if self.source != "folder" and self.on_white:
            raise RecipeError(f"data.on_white is for image files, data.source is {self.source!r}; remove it")
        if self.resize is not None and self.image_size is None:
            raise RecipeError(
                f"data.resize is {self.resize!r}, but no size is given; set data.image_size (--image-size), too"
            )
        return self

    @property
    def resizing(self) -> Resizing | None:
        """Size that images are brought to, and how; None: they are taken as they are."""
        if self.image_size is None:
            return None
        sides = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return Resizing(sides, self.resize or "crop")

    @property
    def roots(self) -> tuple[Path, ...]:
        """All roots, with ~ expanded."""
        given = self.root if isinstance(self.root, tuple) else () if self.root is None else (self.root,)
        return tuple(path.expanduser() for path in given)
