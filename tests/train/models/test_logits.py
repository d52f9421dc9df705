"""Networks whose answers are no logits that can be attacked are recognised, and attacked on true ones."""

import sys

import pytest
import torch
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.pgd import pgd
from s2ap_train.models import build, create
from s2ap_train.models.channel_groups import channel_groups
from s2ap_train.models.logits import Reading, logits_of, reading_of

FACTORIES = """
import torch
from torch import nn

class Answered(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.last, self.answer = nn.Linear(32, 4), answer

    def forward(self, x):
        return self.answer(self.last(self.features(x)))

def plain(): return Answered(nn.Identity())
def module(): return Answered(nn.Softmax(dim=1))
def function(): return Answered(lambda logits: logits.softmax(dim=1))
def sigmoid(): return Answered(nn.Sigmoid())
def each(): return Answered(lambda logits: logits.sigmoid())
def functional(): return Answered(nn.functional.sigmoid)
def clamped(): return Answered(lambda logits: torch.sigmoid(logits).clamp(1e-6, 1 - 1e-6).view(-1, 4))
def averaged(): return Answered(lambda logits: (logits.sigmoid() + torch.sigmoid(logits)) / 2)
def columns(): return Answered(lambda logits: torch.softmax(nn.functional.pad(logits, (0, 1)), 1)[:, :4])
def called_logarithm(): return Answered(lambda logits: nn.functional.log_softmax(logits, 1))
def percent(): return Answered(lambda logits: 100 * logits.sigmoid())
def gated(): return Answered(lambda logits: logits * logits.sigmoid())

class Wrapped(nn.Module):
    def __init__(self, ending):
        super().__init__()
        self.inner = nn.Sequential(Answered(nn.Identity()), ending)

    def forward(self, x):
        return self.inner(x).reshape(len(x), -1)

def wrapped_softmax(): return Wrapped(nn.Softmax(dim=1))
def wrapped_sigmoid(): return Wrapped(nn.Sigmoid())
def logarithm(): return Answered(nn.LogSoftmax(dim=1))
def scaled(): return Answered(lambda logits: logits * 30000)
def shifted(): return Answered(lambda logits: logits + 1e6)
def thousandfold(): return Answered(lambda logits: 1000 * logits)
def far(): return Answered(lambda logits: logits + 1e8)
def attention(): return Answered(lambda logits: logits * logits.softmax(dim=1))
"""
ODDS = {name: {"odds": True} for name in ("each", "functional", "clamped", "averaged", "wrapped_sigmoid")}
LOGARITHMS = {name: {"log": True} for name in ("function", "columns", "wrapped_softmax")}
ALIKE = {"module": {}, "sigmoid": {}, "logarithm": {}, "called_logarithm": {}, **ODDS, **LOGARITHMS}
AS_THEY_ARE = {"plain": {}, "logarithm": {}, "called_logarithm": {}, "attention": {}, "percent": {}, "gated": {}}
FOUND = {**ALIKE, **AS_THEY_ARE, "scaled": {"divide": 4096.0}, "shifted": {"centre": True}}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "answers.py").write_text(FACTORIES)
    yield lambda name, seed=1: create(f"answers:{name}", (3, 8, 8), 4, seed=seed).eval()
    sys.modules.pop("answers", None)


def images(count=12):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FOUND)
def test_what_a_network_answers_with_is_recognised_and_its_labels_and_its_description_stay(made, name):
    model, plain = made(name), made("plain")
    assert {**model.reading.changed, "divide": 0} == {**FOUND[name], "divide": 0}
    assert ("divide" in model.reading.changed) == ("divide" in FOUND[name])
    assert torch.equal(model(images()).argmax(dim=1), plain(images()).argmax(dim=1)) or name in {
        "shifted",
        "attention",
        "gated",
    }
    rebuilt = build(model.architecture(), seed=1).eval()
    assert torch.equal(rebuilt(images()), model(images()))
    assert rebuilt.reading == model.reading
    assert len(model.notes) == (name not in AS_THEY_ARE)
    inner = "inner.0." if name.startswith("wrapped") else ""
    assert model.state_dict().keys() == {key.replace("network.", f"network.{inner}", 1) for key in plain.state_dict()}


@pytest.mark.parametrize("name", ALIKE)
def test_probabilities_become_the_logits_that_they_were_made_of(made, name):
    expected, found = made("plain")(images()), made(name)(images())
    torch.testing.assert_close(found.log_softmax(dim=1), expected.log_softmax(dim=1), atol=1e-5, rtol=1e-5)


def confident(model):
    state = model.state_dict()
    model.load_state_dict({key: value * (30 if key.endswith("last.weight") else 1) for key, value in state.items()})
    return model


@pytest.mark.parametrize(("name", "found"), [("thousandfold", "divide"), ("far", "centre")])
def test_logits_times_a_thousand_or_plus_a_hundred_million_are_recognised_by_the_loaded_weights(made, name, found):
    model = confident(made(name))
    model.read_outputs()
    assert found in model.reading.changed
    assert model(images()).abs().max() < 30
    labels = confident(made("plain"))(images()).argmax(dim=1)
    assert torch.equal(model(images()).argmax(dim=1), labels) or name == "far"  # float32 has rounded those to eights


@pytest.mark.parametrize("name", ["module", "sigmoid", "function", "each", "scaled", "shifted"])
def test_an_attack_is_as_strong_as_on_the_plain_network(made, name):
    """On probabilities, or on large logits, of a confident network the gradient is 0."""
    plain, model = confident(made("plain")), confident(made(name))
    x = images(60)
    y = plain(x).argmax(dim=1)

    def accuracy(attacked):
        found = pgd(attacked, x, y, eps=0.1, steps=10, step_size=0.03, start=x)
        return float((plain(found).argmax(dim=1) == y).float().mean())

    assert accuracy(model) <= accuracy(plain) + 0.05
    assert accuracy(plain) < 0.7


def test_the_table_of_a_network_may_say_how_its_answers_are_read(made):
    model = create({"name": "user", "factory": "answers:plain", "logits": {"divide": 8.0}}, (3, 8, 8), 4, seed=1).eval()
    assert torch.equal(model(images()) * 8, made("plain")(images()))
    assert model.architecture()["logits"] == {"divide": 8.0}
    with pytest.raises(RecipeError, match=r"logits.divide is 0; it must be above 0 and finite"):
        Reading.of({"divide": 0})
    with pytest.raises(RecipeError, match="it has the keys log, odds, centre and divide"):
        Reading.of({"temperature": 2})


def test_a_softmax_that_runs_elsewhere_too_is_left_in_the_network():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.soft = nn.Linear(192, 4), nn.Softmax(dim=1)

        def forward(self, x):
            x = x.flatten(1)
            return self.soft(self.last(self.soft(x) * x))

    network = Twice()
    assert logits_of(network, (3, 8, 8)) == (False, Reading(log=True))
    assert isinstance(network.soft, nn.Softmax)


def test_outputs_that_are_not_finite_are_taken_as_they_are():
    assert reading_of(torch.full((2, 4), torch.nan)) == Reading()


def test_channels_of_a_network_that_is_read_differently_can_be_removed(made):
    assert [group.name for group in channel_groups(made("scaled"), (3, 8, 8))] == ["network.features.0.weight"]
