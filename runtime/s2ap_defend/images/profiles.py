"""ICC profiles: colours to sRGB."""

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from s2ap_defend.errors import InputError

LARGEST_PROFILE = 4 * 1024 * 1024  # bytes; published CMYK profiles have up to 3 MiB
PLAIN_LEVELS = 2
"""A profile that changes no colour by more levels of 255 is sRGB; the pixels are left as they are."""
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}


def to_srgb(colours: NDArray[np.uint8], profile: bytes | None, name: str) -> NDArray[np.uint8]:
    """Convert to sRGB: relative colorimetric with black point compensation (LittleCMS).

    A profile of another kind than the pixels, such as one of RGB left in a grey image, is ignored, as browsers do.
    CMYK without one is multiplied, R = (1 - C)(1 - K), as browsers do.

    Args:
        colours: uint8 [H, W, C]; C is 1 (grey), 3 (RGB) or 4 (CMYK).
        profile: The file's ICC profile.
        name: What to call the file in messages.

    Returns:
        uint8 [H, W, 1] for grey, else [H, W, 3].

    Raises:
        InputError: If the profile is damaged or too large.
    """
    channels = colours.shape[2]
    if profile:
        if len(profile) > LARGEST_PROFILE:
            raise InputError(f"{name} has a colour profile of {len(profile)} bytes, the limit is {LARGEST_PROFILE}")
        try:
            transform, fits = _transform(profile, channels)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{name} has a colour profile that cannot be used ({' '.join(str(error).split())}); convert it to sRGB"
            ) from error
        if transform is not None:
            return _applied(transform, colours)
        if fits or channels < 4:
            return colours
    return np.asarray(_image(colours).convert("RGB")) if channels == 4 else colours


@lru_cache(maxsize=8)
def _transform(profile: bytes, channels: int) -> tuple[ImageCms.ImageCmsTransform | None, bool]:
    """What converts to sRGB, None where nothing is to do; and whether the profile is of such pixels."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _SPACES[channels]:
        return None, False
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        _MODES[channels],
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE,  # so that threads may share it
    )
    if channels < 4:
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        probe = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), axis=-1).reshape(1, -1, channels)
        changed = np.abs(_applied(transform, probe).astype(int) - probe)
        if changed.max() <= PLAIN_LEVELS:
            return None, True
    return transform, True


def _applied(transform: ImageCms.ImageCmsTransform, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    converted = ImageCms.applyTransform(_image(colours), transform)
    if converted is None:
        raise ValueError("the profile converts nothing")
    grey = converted.convert("L") if colours.shape[2] == 1 else converted
    return np.asarray(grey).reshape(*colours.shape[:2], -1)


def _image(colours: NDArray[np.uint8]) -> Image.Image:
    mode = _MODES[colours.shape[2]]
    data = np.ascontiguousarray(colours)
    return Image.frombytes(mode, (data.shape[1], data.shape[0]), data.tobytes())
