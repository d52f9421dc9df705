"""What makes a trained part stale: its own settings, its data, the source of its network, what it starts from."""

import io
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from s2ap_defend.progress import Reporter
from s2ap_train.data.digits import load_digits
from s2ap_train.hardening.parts import PartList
from s2ap_train.hardening.train import train_components
from s2ap_train.recipe import load_recipe
from s2ap_train.recipe.key import data_digest

FACTORY = "from mynets.layers import block\n\ndef make(in_channels, classes):\n    return block(in_channels, classes)\n"
LAYERS = """from torch import nn

def block(channels, classes):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, classes))
"""
ONE_EPOCH = "{epochs = 1, lr = 0.1, batch_size = 50, eps = 0.1, attack_steps = 1}"
SETTINGS = (
    'model="mynets.small:make"',
    "plain.epochs=1",
    f"adversarial={ONE_EPOCH}",
    f"pruning.training={ONE_EPOCH}",
    "pruning.s2ap.warmup_epochs=0",
    f"finetune={ONE_EPOCH}",
    'members.robust.models=[{name = "small_cnn", widths = [4, 6]}]',
    f"members.robust.pretraining={ONE_EPOCH}",
    f"members.robust.finetune={ONE_EPOCH}",
    f"members.robust.pruning.training={ONE_EPOCH}",
    "members.robust.pruning.s2ap.warmup_epochs=0",
    "members.mutation.settings.least_accuracy=0.0",
    "score_model.epochs=1",
    "score_model.width=8",
    *(f"members.{name}.count={1 if name in {'robust', 'mutation'} else 0}" for name in load_recipe("digits").members),
)
ALL = {"score-model", "plain", "adversarial", "pruned", "member-robust-0", "member-mutation-0"}
OF_THE_USERS_NETWORK = {"plain", "adversarial", "pruned", "member-mutation-0"}


class Project:
    """A folder with a user's network, images in data.npz, and the work folder of a hardening."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data.npz"

    def harden(self, *overrides: str) -> set[str]:
        """The parts that were trained."""
        recipe, text = load_recipe("digits", (*SETTINGS, *overrides)), io.StringIO()
        recipe = recipe.model_copy(update={"data": recipe.data.model_validate({"source": "npz", "root": self.data})})
        reporter = Reporter(Console(file=text, width=200))
        train_components(recipe, recipe.load_data(), self.folder / "work", reporter, workers=1)
        told = [line.split(": ", 1) for line in text.getvalue().splitlines() if line.split(":")[0] in ALL]
        assert {name for name, _ in told} == ALL, text.getvalue()
        return ALL - {name for name, what in told if what.startswith("reused")}

    def change_data(self, key: str, row: int = 0) -> None:
        with np.load(self.data) as file:
            arrays = dict(file)
        arrays[key][row] = (arrays[key][row] + 1) % 10 if key.startswith("y_") else arrays[key][row] // 2
        np.savez(self.data, **arrays)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project in which everything was trained."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mynets").mkdir()
    (folder / "mynets" / "__init__.py").write_text("")
    (folder / "mynets" / "small.py").write_text(FACTORY)
    (folder / "mynets" / "layers.py").write_text(LAYERS)
    splits = load_digits(0)
    images = {f"x_{name}": (getattr(splits, name).images[:300] * 255).astype(np.uint8) for name in ("train", "test")}
    labels = {f"y_{name}": getattr(splits, name).labels[:300] for name in ("train", "test")}
    np.savez(folder / "data.npz", **images, **labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert Project(folder).harden() == ALL
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mynets"]:
        del sys.modules[name]


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it, to change something in."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return Project(folder)


def test_nothing_is_trained_again_where_nothing_changed_nor_where_the_data_only_moved(project):
    project.data = project.data.rename(project.folder / "moved.npz")
    assert project.harden() == set()


@pytest.mark.parametrize("key", ["x_train", "y_train"])
def test_another_training_image_or_label_makes_every_part_stale(project, key):
    project.change_data(key)
    assert project.harden() == ALL


def test_test_images_decide_no_part(project):
    project.change_data("x_test")
    assert project.harden() == set()


@pytest.mark.parametrize("file", ["small.py", "layers.py", "__init__.py"])
def test_another_source_of_the_network_makes_those_stale_that_are_made_of_it(project, file):
    source = project.folder / "mynets" / file
    source.write_text(source.read_text() + "\n# changed\n")
    assert project.harden() == OF_THE_USERS_NETWORK


def test_a_file_that_the_network_does_not_import_changes_nothing(project):
    (project.folder / "mynets" / "other.py").write_text("import nothing\n")
    assert project.harden() == set()


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("score_model.lr=0.001", {"score-model"}),
        ("plain.lr=0.07", {"plain", "member-mutation-0"}),
        ("adversarial.lr=0.07", {"adversarial", "pruned"}),
        ("finetune.lr=0.07", {"pruned"}),
        ("members.robust.finetune.lr=0.07", {"member-robust-0"}),
        ("members.mutation.settings.rate=0.02", {"member-mutation-0"}),
        ("eps=0.2", ALL - {"score-model"}),
    ],
)
def test_another_setting_makes_those_stale_that_it_decides(project, override, stale):
    assert project.harden(override) == stale


def test_labels_decide_every_network_and_not_the_score_model():
    recipe = load_recipe("digits", [f"members.{name}.count=0" for name in load_recipe("digits").members])
    splits = recipe.load_data()
    relabelled = replace(splits, train=replace(splits.train, labels=splits.train.labels[::-1].copy()))
    one, two = ({part.name: part.key for part in PartList(recipe, data).all()} for data in (splits, relabelled))
    assert {name for name in one if one[name] == two[name]} == {"score-model"}
    assert two["plain"].differs_in(asdict(one["plain"])) == "data"
    assert two["pruned"].differs_in(asdict(one["pruned"])) == "data and starting networks"
    assert two["plain"].differs_in(None) == "format"


def test_images_of_another_shape_with_the_same_bytes_are_other_data():
    splits = load_digits(0)
    turned = {name: replace(part, images=part.images.reshape(-1, 1, 4, 16)) for name, part in splits.by_name.items()}
    other = replace(splits, **turned)
    assert other.sha256() == splits.sha256()
    assert data_digest(other) != data_digest(splits)
    renamed = replace(splits, classes=tuple(f"digit {name}" for name in splits.classes))
    assert data_digest(renamed) == data_digest(splits)
    assert data_digest(renamed, measured=True) != data_digest(splits, measured=True)
