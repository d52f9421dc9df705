"""A model file with ONNX Runtime alone, without this package: image files in, labels out.

    python examples/plain_onnxruntime.py model.onnx photo.png ...

It needs numpy, onnxruntime and Pillow. The size of images and the names of the classes are in the file's metadata.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model: str, *photos: str) -> list[str]:
    """What the file says of each photo: its class, 'flagged' behind it where the file took it for an attack."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["s2ap_defend"])
    names = [output.name for output in session.get_outputs()]
    images = np.stack([pixels(photo, **manifest["input"]) for photo in photos])
    answers = dict(zip(names, session.run(None, {"image": images}), strict=True))
    said = []
    for label, flagged, abstained in zip(answers["label"], answers["adversarial"], answers["abstained"], strict=True):
        name = "no answer" if abstained else manifest["classes"][label]
        said.append(f"{name}, flagged" if flagged else name)
    return said


def pixels(photo: str, channels: int, height: int, width: int, **_: object) -> np.ndarray:
    """Float32 [C, H, W] in [0, 1], not normalised: the file does that itself. The whole photo is resized."""
    with Image.open(photo) as image:
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    resized = upright.resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(resized, dtype=np.float32).reshape(height, width, channels) / np.float32(255)
    return values.transpose(2, 0, 1)


if __name__ == "__main__":
    for photo, said in zip(sys.argv[2:], main(*sys.argv[1:]), strict=True):
        print(f"{photo}: {said}")
