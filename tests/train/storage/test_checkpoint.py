import hashlib
import json
import pickle
import stat

import pytest
import torch

from s2ap_defend.errors import RecipeError
from s2ap_train.models import SmallCNN, build
from s2ap_train.storage.checkpoint import load_checkpoint, restore, save_checkpoint, tensor_bytes, write_folder
from s2ap_train.storage.run_folder import read_run, write_run


@pytest.fixture
def model():
    return SmallCNN(widths=(3, 4), pool_after=(0, 1), seed=7).eval()


@pytest.fixture
def folder(tmp_path, model):
    folder = tmp_path / "runs" / "base"
    save_checkpoint(folder, tensors=model.state_dict(), record={"architecture": model.architecture(), "seed": 7})
    return folder


def test_a_checkpoint_rebuilds_the_model(folder, model):
    tensors, record = load_checkpoint(folder)
    rebuilt = build(record["architecture"])
    restore(rebuilt, tensors)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(rebuilt.eval()(images), model(images))
    assert record["seed"] == 7
    assert record["weights_sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def test_the_folder_holds_two_files_and_no_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "weights.safetensors"]
    with pytest.raises((pickle.UnpicklingError, ValueError, EOFError)):
        pickle.loads((folder / "weights.safetensors").read_bytes())  # noqa: S301
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_beside(folder, model):
    tensors, record = load_checkpoint(folder)
    save_checkpoint(folder, tensors={**tensors, "classifier.bias": torch.ones(10)}, record={**record, "seed": 8})
    again, record = load_checkpoint(folder)
    assert record["seed"] == 8
    assert torch.equal(again["classifier.bias"], torch.ones(10))
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_a_write_that_fails_leaves_the_old_checkpoint(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RecipeError, match="is not JSON"):
        save_checkpoint(folder, tensors={"w": torch.ones(1)}, record={"loss": float("nan")})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="exists and is not a checkpoint; choose another folder"):
        save_checkpoint(tmp_path, tensors={}, record={})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(RecipeError, match=rf"{name} cannot be read \(No such file"):
        load_checkpoint(folder)


def test_truncated_or_changed_weights_are_refused(folder):
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    for broken in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(broken)
        with pytest.raises(RecipeError, match=r"has SHA-256 .*expects .*truncated or was changed"):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "carries format version 2, this version reads 3"),
        ({"module": "os"}, r"holds the keys \['format_version', 'module', .*expected exactly"),
        ({"record": []}, "expected exactly"),
        ({"record": {"seed": 8}}, "the record in .* was changed; copy the folder again or train it again"),
        ({"sha256": {"../weights.safetensors": "0"}}, "expected exactly"),
    ],
)
def test_a_foreign_record_is_refused(folder, change, message):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecipeError, match=message):
        load_checkpoint(folder)


def test_a_record_that_is_not_json_is_refused(folder):
    (folder / "checkpoint.json").write_text('{"format_version": 3,')
    with pytest.raises(RecipeError, match="is not JSON"):
        load_checkpoint(folder)


def test_weights_are_never_filtered_to_fit(folder, model):
    tensors, _ = load_checkpoint(folder)
    before = model.classifier.bias.clone()
    renamed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(RecipeError, match=r"missing \['blocks.0.*unknown \['module.blocks"):
        restore(model, renamed)
    other = SmallCNN(widths=(3, 5), pool_after=(0, 1)).state_dict()
    with pytest.raises(RecipeError, match=r"has shape .* in the checkpoint, the SmallCNN expects"):
        restore(model, other)
    assert torch.equal(model.classifier.bias, before)


def test_memory_layout_and_integers_survive(tmp_path):
    tensors = {"a": torch.arange(6).reshape(2, 3).T, "b": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    save_checkpoint(tmp_path / "c", tensors=tensors, record={})
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_run_folder_gives_back_what_was_written_and_knows_when_it_was_changed(tmp_path, model):
    parts = {
        "weights": model.state_dict(),
        "masks": {"classifier.weight": torch.rand(model.classifier.weight.shape) > 0.5},
        "scores": {"classifier.weight": torch.rand(model.classifier.weight.shape)},
    }
    config, metrics = {"sparsity": 0.5}, {"robust_accuracy": 0.75, "collapse": None}
    write_run(tmp_path / "run", **parts, config=config, metrics=metrics, record={"architecture": model.architecture()})
    run = read_run(tmp_path / "run")
    for name, tensors in parts.items():
        assert all(torch.equal(getattr(run, name)[key], tensor) for key, tensor in tensors.items())
    assert run.config == config
    assert run.metrics == {"format_version": 1, **metrics}
    restore(build(run.record["architecture"]), run.weights)
    changed = (tmp_path / "run" / "metrics.json").read_text().replace("0.75", "0.95")
    (tmp_path / "run" / "metrics.json").write_text(changed)
    with pytest.raises(RecipeError, match=r"metrics.json has SHA-256 .*truncated or was changed"):
        read_run(tmp_path / "run")


def test_a_checkpoint_that_is_no_run_is_named(folder):
    with pytest.raises(RecipeError, match="is a checkpoint but not a run"):
        read_run(folder)


TABLE = b'{"format_version": 1}'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metrics.json": None}, r"has no metrics\.json, only config\.json, masks\.safetensors, .*; run prune again"),
        ({"config.json": None}, r"has no config\.json, only masks\.safetensors"),
        ({"metrics.json": b"not json"}, r"metrics\.json is not JSON \(Expecting value.*; run prune again"),
        ({"metrics.json": b"\xff\xfe{"}, r"metrics\.json is not JSON"),
        ({"metrics.json": b"[" * 100_000}, r"metrics\.json is not JSON"),
        ({"config.json": b"{"}, r"config\.json is not JSON"),
        ({"metrics.json": b"[]"}, r"metrics\.json holds a list, expected a table of keys and values; run prune again"),
        ({"config.json": b"[1]"}, r"config\.json holds a list, expected a table"),
        ({"metrics.json": b"{}"}, r"metrics\.json has version None, this version reads 1"),
    ],
)
def test_a_run_whose_files_agree_with_their_hashes_but_not_with_its_format_is_refused(tmp_path, files, message):
    tensors = dict.fromkeys(("weights.safetensors", "masks.safetensors", "scores.safetensors"), tensor_bytes({}))
    whole = {**tensors, "config.json": b"{}", "metrics.json": TABLE}
    write_folder(tmp_path / "whole", whole, {"kind": "run"})
    assert read_run(tmp_path / "whole").metrics == {"format_version": 1}
    wrong = {name: content for name, content in (whole | files).items() if content is not None}
    write_folder(tmp_path / "wrong", wrong, {"kind": "run"})
    with pytest.raises(RecipeError, match=rf"/wrong.*{message}"):
        read_run(tmp_path / "wrong")
