"""What a reader has at hand, and stand-ins for what takes long: they leave behind what the command would."""

import itertools
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from tests.docs.documents import ROOT, blocks, text_of
from tests.runtime.signing_keys import write_key
from tests.train.planted_runs import make_run

from s2ap_defend.commands.main import run
from s2ap_defend.manifest import Protocol
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.sequential import first_answers
from s2ap_export.commands.calibrate.clean_data import load_clean_data
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import load_data


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file of the newest version that the tests store, calibrated, so that it can be watched for drift."""
    stored = (ROOT / "tests/contract/golden").glob("version-*.onnx")
    versions = {int(path.stem.removeprefix("version-")): path for path in stored if path.stem[-1].isdigit()}
    path = tmp_path_factory.mktemp("docs") / "model.onnx"
    options = ["--data", "digits", "--calibrate-on", "all", "--limit", "80", "-o", str(path)]
    assert run(["calibrate", str(versions[max(versions)]), *options]) == 0
    file = open_model_file(path)
    split = {"split": {"source": "digits"}, "test_sha256": load_data("digits", 0).sha256("test")}
    protocol = Protocol(**split, eps=0.15, l2=None, pixels=3, samples=64, budget="quick")
    made = file.manifest.provenance.model_copy(update={"protocol": protocol, "seed": 0})
    write_model_file(file.proto, file.manifest.model_copy(update={"provenance": made}), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Iterator[Path]:
    """The current folder: model files, images and benchmarks where the documents have them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build/demo").mkdir(parents=True)
    for name in ("model.onnx", "build/model.onnx"):
        shutil.copy(model, name)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for name in ("digit.png", "build/demo/0-clean-3.png", "build/demo/0-attacked-3.png"):
        Image.fromarray(pixels).save(name)
    Image.fromarray(np.kron(pixels, np.ones((2, 3), np.uint8))).save("photo.jpg")
    np.save("images.npy", np.float32(pixels[None, None] / 255))
    np.save("photos.npy", np.float32(np.pad(pixels, 12)[None, None].repeat(3, 1) / 255))
    np.save("garments.npy", np.float32(np.pad(pixels, 10)[None, None] / 255))
    for folder, i in itertools.product(("photos", "new"), range(100)):
        photo = tmp_path / f"{folder}/{3 + i % 2}/{i}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(pixels, i)).convert("RGB").save(photo)
    (tmp_path / "best.pt").touch()
    for module, document, function in (("mynets", "tutorial.md", "build"), ("mine", "evaluation.md", "descend")):
        source = next(block for block in blocks(text_of(document)) if f"def {function}" in block)
        (tmp_path / f"{module}.py").write_text(source)
    _, public = write_key(tmp_path, "private")  # as openssl makes them
    public.rename("public.pem")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    yield tmp_path
    for module in ("mynets", "mine"):
        sys.modules.pop(module, None)  # other tests have a package of that name


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Commands end where training or attacks would begin, after everything they check before that."""

    def launch(_compute, _run, settings, output, *_):
        if hasattr(settings, "pruning"):
            made = settings.pruning
            method, base = ("s2ap", made.method) if getattr(made, "s2ap", None) else (made.method, made.method)
            about = {"structure": getattr(made, "structure", "unstructured"), "target_sparsity": made.sparsity}
            make_run(output, method, settings.seed, base=base, data=settings.data.source, name=settings.name, **about)
        raise click.exceptions.Exit(0)

    def harden(_recipe, output, *_, **__):
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model, output)
        raise click.exceptions.Exit(0)

    def clean_data(*arguments, **options):
        """Labels are the first answers of the untrained file, so that it has enough of them right."""
        data, file = load_clean_data(*arguments, **{**options, "limit": 80}), open_model_file(model)
        said = StageEngines.from_file(file).ask(data.images)
        return replace(data, labels=first_answers(file.manifest.to_test(), said))

    def stop(*_, **__):
        raise click.exceptions.Exit(0)

    monkeypatch.setattr("s2ap_export.commands.calibrate.clean_data.load_clean_data", clean_data)
    monkeypatch.setattr("s2ap_train.compute.launch", launch)
    monkeypatch.setattr("s2ap_export.hardening.harden.harden", harden)
    monkeypatch.setattr("s2ap_export.hardening.harden.look_before", stop)
    monkeypatch.setattr("s2ap_export.hardening.networks.compared_networks", lambda *_, **__: None)
    monkeypatch.setattr("s2ap_train.redteam.evaluation.evaluate_file", stop)
    monkeypatch.setattr("s2ap_train.hardening.train.train_components", stop)
    monkeypatch.setattr("s2ap_defend.bench.measure.measure", stop)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the benchmarks on the path; what is imported from there is forgotten again."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]
