"""Weights that a user brings: every usual form of file, and what is refused."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.weight_file import file_digest, load_weights


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, classes))


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand_like(value) if value.is_floating_point() else value + 7
            for name, value in network().state_dict().items()}  # fmt: skip


def loaded(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    model = network()
    notes = load_weights(model, path)
    return model.state_dict(), notes


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: state, []),
        (lambda state: {"state_dict": state, "epoch": 3}, ["under the key 'state_dict'"]),
        (lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "lr": 0.1},
         ["under the key 'model'", "prefix 'module.'"]),
        (lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
         ["prefix '_orig_mod.'", "prefix 'module.'"]),
    ],
)  # fmt: skip
def test_a_state_dict_is_found_and_what_was_done_is_said(tmp_path, trained, wrap, said):
    torch.save(wrap(trained), tmp_path / "best.pt")
    state, notes = loaded(tmp_path / "best.pt")
    assert all(torch.equal(state[name], value) for name, value in trained.items())
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_a_safetensors_file_is_read(tmp_path, trained):
    save_file(trained, tmp_path / "best.safetensors")
    assert all(torch.equal(loaded(tmp_path / "best.safetensors")[0][name], value) for name, value in trained.items())


def test_a_whole_module_is_not_unpickled(tmp_path):
    torch.save(network(), tmp_path / "best.pt")
    with pytest.raises(
        RecipeError, match=r"that is in the file \(it holds a torch\.nn[\w.]+\); save the state_dict alone"
    ):
        loaded(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: {"optimizer": {"lr": 0.1}}, "hold no state_dict, but optimizer"),
        (lambda state: {name: value for name, value in state.items() if "3." not in name}, "lack 3.weight, 3.bias"),
        (lambda state: state | {"4.weight": torch.ones(2)}, "hold 4.weight, which it has not"),
        (lambda state: state | {"3.weight": torch.ones(5, 72)}, r"3.weight has shape \[5, 72\], the network's has"),
        (lambda state: state | {"3.bias": torch.full((3,), torch.nan)}, "3.bias holds values that are not finite"),
        (lambda _: [1, 2], "hold a list, expected a state_dict"),
        (
            lambda state: state | {"3.bias": torch.ones(3, dtype=torch.complex64)},
            "3.bias is a tensor of complex64, the network's is a tensor of float32; save the weights as the network",
        ),
        (lambda state: state | {"3.bias": torch.ones(3).to_sparse()}, "3.bias is a sparse_coo tensor of float32"),
        (lambda state: state | {"3.bias": torch.ones(3, dtype=torch.int8)}, "3.bias is a tensor of int8"),
        (lambda state: state | {"3.bias": torch.ones(3, device="meta")}, "3.bias is a tensor of float32, the"),
    ],
)
def test_what_is_not_the_networks_is_refused(tmp_path, trained, change, said):
    torch.save(change(trained), tmp_path / "best.pt")
    with pytest.raises(RecipeError, match=said):
        loaded(tmp_path / "best.pt")


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_quantised_weights_are_refused(tmp_path, trained):
    quantised = torch.quantize_per_tensor(trained["3.weight"], 0.01, 0, torch.qint8)
    torch.save(trained | {"3.weight": quantised}, tmp_path / "best.pt")
    with pytest.raises(
        RecipeError, match=r"3.weight is a quantised tensor of qint8, the network's is a tensor of floa"
    ):
        loaded(tmp_path / "best.pt")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "best.pt")
    for read in (loaded, file_digest):
        with pytest.raises(RecipeError, match="it is a folder, pipe or device"):
            read(tmp_path / "best.pt")


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_a_damaged_or_missing_file_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    for read in (loaded, file_digest):
        with pytest.raises(RecipeError, match="cannot be read"):
            read(path)
    for content in (b"nothing of use" * 10, b"hello", b"", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"are no (file that torch.save wrote|safetensors file)"):
            loaded(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_files_of_another_kind_are_called_what_they_are(tmp_path, monkeypatch):
    torch.jit.script(network()).save(str(tmp_path / "script.pt"))
    with pytest.raises(RecipeError, match=r"script.pt are a TorchScript archive, which holds code; take") as caught:
        loaded(tmp_path / "script.pt")
    (cure,) = re.findall(r"torch\.save\(.*\)", str(caught.value))
    monkeypatch.chdir(tmp_path)
    exec(cure, {"torch": torch})  # noqa: S102  what the message says
    assert loaded(tmp_path / "weights.pt")
    np.savez(tmp_path / "w.npz", weight=np.ones(3))
    with pytest.raises(RecipeError, match=r"w.npz are no file that torch.save wrote; save the state_dict alone"):
        loaded(tmp_path / "w.npz")
    (tmp_path / "cut.pt").write_bytes(b"\x80\x02 cut off")
    with pytest.raises(RecipeError, match=r"cannot be read: the file is damaged, or was not written by torch\.save"):
        loaded(tmp_path / "cut.pt")
