"""Many tasks ask one classifier; what they ask together runs together.

    python examples/asyncio_batches.py model.onnx images.npz

Every image is a request of its own here, as in a service that is not an HTTP server.
"""

import asyncio
import sys
from pathlib import Path

from s2ap_defend import DefendedClassifier
from s2ap_defend.asynchronous import AsyncClassifier
from s2ap_defend.images import load_images


async def main(model: str, source: str) -> list[str]:
    """Class of every image in a file, 'flagged' where the defence flags it."""
    classifier = DefendedClassifier.load(model)
    images = load_images(Path(source), classifier.input_shape)
    async with AsyncClassifier(classifier, max_batch=32) as ask:
        answers = await asyncio.gather(*(ask(images[i : i + 1]) for i in range(len(images))))
    return ["flagged" if one.adversarial[0] else classifier.classes[one.label[0]] for one in answers]


if __name__ == "__main__":
    print("\n".join(asyncio.run(main(*sys.argv[1:]))))
