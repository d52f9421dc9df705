"""A loop over frames: a verdict each, an alarm where several in a row are flagged.

    python examples/video.py model.onnx frames/          # a folder of frames, in the order of their names
    python examples/video.py model.onnx clip.gif         # an animated image

A camera is one more source of frames: yield what it captures as uint8 [H, W, C] (RGB), as `frames` does. One frame in
twenty may be flagged at a false-alarm rate of .05, so a single flag says little about a video.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from s2ap_defend import DefendedClassifier
from s2ap_defend.images import resize

IN_A_ROW = 3
"""Flagged frames, one after another, that are an alarm."""


def frames(source: Path) -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 [H, W, 3] of a folder of images or of an animated one."""
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield np.asarray(frame.convert("RGB"))


def fitted(frame: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """A frame as the model takes it, float32 [C, H, W]: cut to its proportions and resized, as by `image_size`."""
    channels, height, width = shape
    pixels = np.asarray(Image.fromarray(frame).convert("L" if channels == 1 else "RGB"))
    return resize(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1), (height, width), "crop")


def watch(model: str, source: str) -> Iterator[str]:
    """A line for every frame."""
    classifier, flagged = DefendedClassifier.load(model), 0
    for number, frame in enumerate(frames(Path(source))):
        verdict = classifier(np.ascontiguousarray(fitted(frame, classifier.input_shape))[None])
        flagged = flagged + 1 if verdict.adversarial[0] else 0
        answer = "no answer" if verdict.abstained[0] else classifier.classes[verdict.label[0]]
        said = "  ALARM" if flagged >= IN_A_ROW else "  flagged" if flagged else ""
        yield f"frame {number}: {answer}{said}"


if __name__ == "__main__":
    for line in watch(*sys.argv[1:]):
        print(line)
