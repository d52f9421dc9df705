"""Every example runs on a file that is promised to last."""

import asyncio
import importlib.util
import io
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
from PIL import Image

from s2ap_defend import DefendedClassifier

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier(tiny_model_path: Path) -> DefendedClassifier:
    return DefendedClassifier.load(tiny_model_path)


def stored(images: np.ndarray) -> np.ndarray:
    """Images [N, 1, H, W] as 8 bits [N, H, W]."""
    return np.rint(255 * images[:, 0]).astype(np.uint8)


def pixels(images: np.ndarray) -> np.ndarray:
    """The same as the model takes them."""
    return stored(images)[:, None].astype(np.float32) / np.float32(255)


def test_every_example_is_run_here() -> None:
    here = {"asyncio_batches", "dataloader", "fastapi_app", "plain_onnxruntime", "video"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == here


def test_the_file_alone_says_of_photos_what_the_package_says(
    tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray, tmp_path: Path
) -> None:
    photos = [tmp_path / f"photo {number}.png" for number in range(12)]
    for photo, image in zip(photos, stored(random_images), strict=False):
        Image.fromarray(image).save(photo)
    verdicts = classifier(pixels(random_images[:12]))
    expected = [
        classifier.classes[label] + (", flagged" if flagged else "")
        for label, flagged in zip(verdicts.label, verdicts.adversarial, strict=True)
    ]
    assert example("plain_onnxruntime").main(str(tiny_model_path), *map(str, photos)) == expected
    assert 0 < sum("flagged" in said for said in expected) < 12


def test_tasks_ask_one_by_one_and_get_the_answers_of_all(
    tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "images.npz", images=random_images[:40])
    answers = asyncio.run(example("asyncio_batches").main(str(tiny_model_path), str(tmp_path / "images.npz")))
    verdicts = classifier(random_images[:40])
    expected = [
        "flagged" if bad else str(label) for label, bad in zip(verdicts.label, verdicts.adversarial, strict=True)
    ]
    assert answers == expected
    assert 0 < answers.count("flagged") < 40


def test_the_application_classifies_an_upload_and_refuses_what_is_no_image(
    tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", str(tiny_model_path))
    file = io.BytesIO()
    Image.fromarray(stored(random_images)[0]).save(file, format="PNG")
    verdict = classifier(pixels(random_images[:1]))
    module = example("fastapi_app")

    async def uploads(*bodies: bytes) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=module.app)
        async with (
            module.opened(module.app),
            httpx.AsyncClient(transport=transport, base_url="http://here") as client,
        ):
            return [await client.post("/classify", content=body) for body in bodies]

    good, broken, large = asyncio.run(uploads(file.getvalue(), b"no image", bytes(module.MOST_BYTES + 1)))
    assert good.json() == {"class": str(verdict.label[0]), "flagged": bool(verdict.adversarial[0])}
    assert (broken.status_code, "is no PNG" in broken.text) == (400, True)
    assert large.status_code == 413


@pytest.mark.parametrize("source", ["folder", "clip.gif"])
def test_the_loop_says_a_line_a_frame_and_raises_an_alarm_after_three_flags_in_a_row(
    source: str, tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray, tmp_path: Path
) -> None:
    flags = classifier(pixels(random_images)).adversarial
    bad, good = (random_images[flags == flagged] for flagged in (True, False))
    order = np.concatenate([good[:2], bad[:4], good[2:3]])
    frames = [Image.fromarray(frame) for frame in stored(order)]
    if source == "folder":
        (tmp_path / source).mkdir()
        for number, frame in enumerate(frames):
            frame.save(tmp_path / source / f"{number:03}.png")
    else:
        frames[0].save(tmp_path / source, save_all=True, append_images=frames[1:])
    lines = list(example("video").watch(str(tiny_model_path), str(tmp_path / source)))
    labels = classifier(pixels(order)).label
    ends = ["", "", "  flagged", "  flagged", "  ALARM", "  ALARM", ""]
    assert lines == [f"frame {i}: {label}{end}" for i, (label, end) in enumerate(zip(labels, ends, strict=True))]


def test_a_frame_of_another_size_is_cut_to_its_central_square_and_resized() -> None:
    frame = np.zeros((16, 40, 3), dtype=np.uint8)
    frame[:, 12:28] = 255
    assert (example("video").fitted(frame, (1, 8, 8)) == 1.0).all()
    assert example("video").fitted(frame, (3, 8, 8)).shape == (3, 8, 8)


def test_a_loader_is_measured_batch_by_batch(
    tiny_model_path: Path, classifier: DefendedClassifier, random_images: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
    labels = np.random.default_rng(0).integers(0, 10, 256)
    np.savez(tmp_path / "test.npz", images=random_images, labels=labels)
    found = example("dataloader").main(str(tiny_model_path), str(tmp_path / "test.npz"))
    assert found["right"] == classifier.score(random_images, labels)
    assert found["flagged"] == classifier(random_images).adversarial.mean()
    assert found["not answered"] == 0.0
