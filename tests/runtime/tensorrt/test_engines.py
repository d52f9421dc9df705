"""The folder of engines: what is built again and why, and what is said where nothing can be built."""

import inspect
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, EngineError, ModelFileError
from s2ap_defend.commands.main import run
from s2ap_defend.model_file import ModelFile
from s2ap_defend.tensorrt.build import BatchProfile, Polygraphy, build_engine, this_machine
from s2ap_defend.tensorrt.index import INDEX, Machine, read_index, stale_engines, write_engines
from s2ap_defend.tensorrt.plan import PlannedEngine

MACHINE = Machine(gpu="NVIDIA H200", driver="570.1", tensorrt="10.9")
Plan = tuple[PlannedEngine, ...]


def serialised(planned: PlannedEngine) -> bytes:
    """What stands for an engine: the index looks at bytes alone."""
    return planned.file.encode() + planned.model[:64]


def test_engines_are_built_once_and_again_when_the_machine_or_a_stage_is_another(planned: Plan, tmp_path: Path) -> None:
    first = write_engines(tmp_path, planned, MACHINE, serialised)
    assert set(first.built.values()) == {"there is no index"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([INDEX, *(one.file for one in planned)])
    assert (tmp_path / planned[0].file).read_bytes() == serialised(planned[0])
    again = write_engines(tmp_path, planned, MACHINE, serialised)
    assert (again.built, len(again.fitting)) == ({}, len(planned))
    newer = MACHINE.model_copy(update={"driver": "571.0"})
    stale = stale_engines(tmp_path, planned, newer)
    assert set(stale.values()) == {"built for driver 570.1, this is 571.0"}
    assert len(stale) == len(planned)
    other = (replace(planned[0], model=planned[0].model + b" "), replace(planned[1], sparse=True), *planned[2:])
    stale = stale_engines(tmp_path, other, MACHINE)
    assert stale == dict.fromkeys((one.file for one in planned[:2]), "built from another stage")


def test_damaged_and_missing_engines_are_built_again_and_those_of_no_stage_removed(
    planned: Plan, tmp_path: Path
) -> None:
    write_engines(tmp_path, planned, MACHINE, serialised)
    (tmp_path / planned[0].file).write_bytes(b"half")
    (tmp_path / planned[1].file).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    wanted = planned[:-1]
    found = write_engines(tmp_path, wanted, MACHINE, serialised)
    assert found.built == dict.fromkeys((one.file for one in planned[:2]), "it is missing or damaged")
    assert not (tmp_path / planned[-1].file).exists()
    assert (tmp_path / "notes.txt").exists()
    (tmp_path / INDEX).write_text("{")
    assert set(stale_engines(tmp_path, wanted, MACHINE).values()) == {"there is no index"}


def test_a_run_that_was_stopped_goes_on_where_it_was(planned: Plan, tmp_path: Path) -> None:
    def stops(engine: PlannedEngine) -> bytes:
        if engine == planned[2]:
            raise EngineError("out of memory")
        return serialised(engine)

    with pytest.raises(EngineError, match="out of memory"):
        write_engines(tmp_path, planned, MACHINE, stops)
    index = read_index(tmp_path)
    assert index is not None
    assert len(index.engines) == 2
    assert set(stale_engines(tmp_path, planned, MACHINE)) == {one.file for one in planned[2:]}


def test_a_folder_that_cannot_be_written_is_one_error(planned: Plan, tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(ModelFileError, match="engines cannot be written"):
        write_engines(tmp_path / "engines", planned, MACHINE, serialised)


def with_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """A program in the place of NVIDIA's, first on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_is_missing_is_named(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(tmp_path, monkeypatch, "exit 9")
    with pytest.raises(EngineError, match="nvidia-smi finds none here; run this on the machine that serves"):
        this_machine()
    with_driver(tmp_path, monkeypatch, "echo 'NVIDIA H200, 570.1'")
    if find_spec("tensorrt") is None:
        with pytest.raises(EngineError, match="TensorRT is not installed for this Python; install NVIDIA's"):
            this_machine()
    if find_spec("polygraphy") is None:
        with pytest.raises(EngineError, match="polygraphy is not installed for this Python"):
            build_engine(planned[0], tmp_path / "engines")
        assert not (tmp_path / "engines").exists()


def parameters(function: object) -> set[str]:
    """What may be named in a call, those that a class hands to its parents among them."""
    sources = [one.__init__ for one in function.__mro__] if inspect.isclass(function) else [function]
    return {name for source in sources for name in inspect.signature(source).parameters}


def test_the_calls_of_polygraphy_are_those_that_the_library_has() -> None:
    library = pytest.importorskip("polygraphy.backend.trt", reason="NVIDIA's polygraphy is not installed")
    called = {name: function for name, function in vars(Polygraphy).items() if not name.startswith("_")}
    assert len(called) == 4
    for name, function in called.items():
        assert parameters(function) - {"self"} <= parameters(getattr(library, name)), name
    assert parameters(library.Profile.add) == parameters(BatchProfile.add)


def test_the_command_builds_nothing_where_there_is_no_gpu(
    file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_driver(tmp_path, monkeypatch, "exit 9")
    folder = tmp_path / "engines"
    assert run(["export", str(file.path), "--tensorrt", str(folder)]) != 0
    assert "nvidia-smi finds none here" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --triton DIR or --tensorrt DIR, one of the two"),
        (["--triton", "a", "--tensorrt", "b"], "give --triton DIR or --tensorrt DIR, one of the two"),
        (["--tensorrt", "b", "--max-batch", "3"], "--max-batch is for --triton"),
        (["--tensorrt", "b", "--expose-evidence"], "--expose-evidence is for --triton"),
    ],
)
def test_one_of_the_two_is_written(
    arguments: list[str], message: str, file: ModelFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(file.path), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_classifier_on_tensorrt_is_refused_in_one_line_where_there_is_none(file: ModelFile, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(has no|could not start) TensorrtExecutionProvider|could not load lib"):
        DefendedClassifier.load(file.path, device="tensorrt", engines=tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


@pytest.mark.gpu
@pytest.mark.skipif(
    shutil.which("nvidia-smi") is None or find_spec("tensorrt") is None or find_spec("polygraphy") is None,
    reason="needs an NVIDIA GPU, TensorRT and polygraphy",
)
def test_engines_are_built_and_answer_as_the_cpu_does(file: ModelFile, tmp_path: Path) -> None:
    assert run(["export", str(file.path), "--tensorrt", str(tmp_path)]) == 0
    assert run(["export", str(file.path), "--tensorrt", str(tmp_path)]) == 0
    images = np.random.default_rng(0).random((20, *file.manifest.input.shape), dtype=np.float32)
    there = DefendedClassifier.load(file.path, device="tensorrt", engines=tmp_path)
    here = DefendedClassifier.load(file.path, device="cpu")
    assert there.executor.name == "staged"
    for rows in (1, 16, 20):
        found, expected = there(images[:rows]), here(images[:rows])
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(found.label, expected.label)
