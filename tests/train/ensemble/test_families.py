"""Families of members: what each trains, what is recorded of it, and what a recipe may say."""

import pytest
from pydantic import TypeAdapter
from tests.train.toy_data import bars, same

from s2ap_defend import RecipeError
from s2ap_train.ensemble import FAMILIES, Base, Family
from s2ap_train.hardening.network import network_record
from s2ap_train.models import create
from s2ap_train.models.cost import flops
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.two_four import supports_two_four
from s2ap_train.recipe import load_ensemble_recipe, load_recipe
from s2ap_train.training import Run, TrainingConfig, TrainingData, train_classifier

MODEL = {"name": "small_cnn", "widths": [8, 12]}
DATA = TrainingData(*bars(), bars(40, seed=1), 4)
NATURAL = {"loss": "natural", "eps": 0, "epochs": 3, "batch_size": 20, "lr": 0.1}
ROBUST = {"epochs": 2, "batch_size": 20, "lr": 0.1, "eps": 0.05, "attack_steps": 2, "validation_steps": 2}
SEARCH = {**ROBUST, "epochs": 1}


def pruned(method, training, tuning=None, **settings):
    trainings = {} if tuning is None else {"pretraining": tuning, "finetune": tuning}
    return {"models": [MODEL], "pruning": {"method": method, "training": training, **settings}, **trainings}


TABLES = {
    "s2ap": pruned("s2ap", SEARCH, ROBUST, sparsity=0.5, s2ap={"warmup_epochs": 0}),
    "s2ap-channel": pruned("s2ap", SEARCH, ROBUST, sparsity=0.5, structure="channel", s2ap={"warmup_epochs": 0}),
    "s2ap-2:4": pruned("s2ap", SEARCH, ROBUST, sparsity=0.5, structure="2:4", s2ap={"warmup_epochs": 0}),
    "iterative-magnitude": {
        "models": [MODEL],
        "pretraining": NATURAL,
        "pruning": {"method": "iterative-magnitude", "sparsity": 0.5, "step": 0.3, "training": NATURAL},
    },
    "subnetwork": pruned("scratch-ticket", {**NATURAL, "lr": 0.5}, sparsity=0.5),
    "random-channel": {"family": "random-channel", "settings": {"training": NATURAL}},
    "l1-norm": {"family": "l1-norm", "settings": {"training": NATURAL}},
    "fresh-channel": {"family": "random-channel", "settings": {"fresh": True, "training": NATURAL}},
    "lottery-ticket": {"family": "lottery-ticket", "settings": {"search": NATURAL, "training": NATURAL}},
    "mutation-gf": {"family": "mutation"},
}
STRUCTURED = {"s2ap-channel", "random-channel", "l1-norm", "fresh-channel"}


def family(name, **settings):
    return TypeAdapter(Family).validate_python({"family": "pruned", "count": 1, **TABLES[name], **settings})


@pytest.fixture(scope="module")
def base():
    model = create(MODEL, (1, 8, 8), 4, seed=9)
    train_classifier(model, *DATA.arrays, TrainingConfig(**NATURAL), run=Run(9))
    return Base(MODEL, 9, lambda: model)


@pytest.mark.parametrize("name", TABLES)
def test_a_member_is_recorded_with_what_makes_it_again_bit_for_bit(base, name):
    table = family(name)
    before = {key: tensor.clone() for key, tensor in base.network().state_dict().items()}
    fitted = table.train(0, DATA, base, run=Run(5))
    record = network_record(fitted, DATA, eps=0.05)
    assert fitted.method == name
    assert record["seeds"]["mask"] == 5
    again = table.train(0, DATA, base, run=Run(record["seeds"]["mask"]))
    assert same(again.model.state_dict(), fitted.model.state_dict())
    other = table.train(0, DATA, base, run=Run(6))
    assert not same(dict(other.model.named_parameters()), dict(fitted.model.named_parameters()))
    assert same(base.network().state_dict(), before), "the plain network is not changed"
    assert record["clean_accuracy"] > 0.8

    inherits = name in {"random-channel", "l1-norm", "mutation-gf"}
    assert record["seeds"]["initialisation"] == (9 if inherits else 5)
    assert record["seeds"]["order"] == (9 if name == "mutation-gf" else 5)
    assert record["adversarially_trained"] is name.startswith("s2ap")

    dense = create(MODEL, (1, 8, 8), 4)
    cost = flops(dense, (1, 8, 8))
    assert record["flops"] < cost if name in STRUCTURED else record["flops"] == cost
    numbers = sum(parameter.numel() for parameter in fitted.model.parameters())
    assert record["parameters"] == numbers
    assert record["sparsity"] == pytest.approx(sparsity(fitted.model, dense))
    if name not in STRUCTURED:
        assert record["sparsity"] == pytest.approx(0.0 if name == "mutation-gf" else 0.5, abs=0.04)


def sparsity(model, dense):
    left = sum(int((weight != 0).sum()) for weight in prunable_weights(model).values())
    return 1 - left / sum(weight.numel() for weight in prunable_weights(dense).values())


def test_two_four_members_have_the_pattern(base):
    fitted = family("s2ap-2:4").train(0, DATA, base, run=Run(5))
    patterned = {name: w for name, w in prunable_weights(fitted.model).items() if supports_two_four(w)}
    assert patterned
    for weight in patterned.values():
        groups = weight.movedim(1, -1).reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all()


def test_whether_a_member_saw_attacks_follows_from_its_last_training(base):
    natural = {**ROBUST, "loss": "natural", "eps": 0}
    tuned_naturally = family("s2ap", finetune=natural).train(0, DATA, base, run=Run(1))
    assert not tuned_naturally.adversarially_trained
    iterative = TABLES["iterative-magnitude"]["pruning"]
    attacked = family("iterative-magnitude", pruning={**iterative, "largest_clean_drop": 1.0, "training": ROBUST})
    assert attacked.train(0, DATA, base, run=Run(1)).adversarially_trained


def test_operators_and_networks_take_turns(base):
    mutants = family("mutation-gf", count=5)
    methods = [mutants.train(number, DATA, base, run=Run(number)).method for number in range(5)]
    assert methods == ["mutation-gf", "mutation-ws", "mutation-ns", "mutation-nai", "mutation-gf"]
    small = {"name": "small_cnn", "widths": [4, 4]}
    networks = family("subnetwork", models=[MODEL, small])
    assert networks.decides(0) == networks.decides(2) != networks.decides(1)


def test_random_and_l1_members_of_one_seed_keep_as_many_channels_but_not_the_same(base):
    random, largest = (
        family(name).train(0, DATA, base, run=Run(2)).details["kept_channels"] for name in ("random-channel", "l1-norm")
    )
    assert {name: len(rows) for name, rows in random.items()} == {name: len(rows) for name, rows in largest.items()}
    assert random != largest
    for name, rows in largest.items():
        norms = dict(base.network().named_parameters())[name].detach().abs().flatten(1).sum(1)
        assert sorted(rows) == sorted(norms.topk(len(rows)).indices.tolist())


def test_what_a_family_calls_its_epochs_is_what_it_trains(base):
    for name in ("s2ap", "subnetwork", "l1-norm", "lottery-ticket", "mutation-gf"):
        calls = []
        family(name).train(0, DATA, base, run=Run(0, on_epoch=lambda epoch, _, calls=calls: calls.append(epoch)))
        assert len(calls) == family(name).epochs(0), name


def test_the_digits_recipe_lists_every_family_and_trains_today_s_mix() -> None:
    recipe = load_recipe("digits")
    counts = {name: table.count for name, table in recipe.members.items()}
    assert {name: count for name, count in counts.items() if count} == {
        "robust": 6,
        "fresh_channel": 3,
        "lottery_ticket": 3,
    }
    assert [recipe.member_seed(name, 1) for name in ("robust", "fresh_channel", "l1_norm")] == [101, 201, 301]
    assert {table.family for table in recipe.members.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", ["digits", "cifar10-small", "cifar10-resnet18"])
def test_every_benchmark_recipe_has_every_family(name) -> None:
    members = load_ensemble_recipe(name).members
    fresh = [table.settings.fresh for table in members.values() if table.family == "random-channel"]
    assert sorted(fresh) == [False, True]
    structures = {getattr(t.pruning, "structure", None) for t in members.values() if t.family == "pruned"}
    assert structures >= {"unstructured", "channel", "2:4"}
    methods = {table.pruning.method for table in members.values() if table.family == "pruned"}
    assert methods == {"hydra", "scratch-ticket", "iterative-magnitude"}
    for table in members.values():
        if table.family in {"random-channel", "l1-norm", "lottery-ticket"}:
            assert not table.settings.training.adversarial


def test_seeds_of_a_family_do_not_move_when_others_do() -> None:
    recipe, longer = load_ensemble_recipe("digits"), load_ensemble_recipe("digits", ("members.robust.count=50",))
    for name in recipe.members:
        assert recipe.member_seed(name, 0) == longer.member_seed(name, 0)
    turned = recipe.model_copy(update={"members": dict(reversed(recipe.members.items()))})
    assert [turned.member_seed(name, 3) for name in recipe.members] == [
        recipe.member_seed(n, 3) for n in recipe.members
    ]
    starts = [recipe.member_seed(name, 0) for name in recipe.members]
    assert len(set(starts)) == len(starts)
    assert load_ensemble_recipe("digits", ("seed=7",)).member_seed("mutation", 0) == recipe.member_seed("mutation", 7)
    assert load_ensemble_recipe("digits", ("members.mutation.first_seed=5",)).member_seed("mutation", 2) == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("members.robust.cuont=1",), r"key members.robust.cuont is not known; did you mean 'count'"),
        (("members.mutation.settings.rte=1",), r"key members.mutation.settings.rte is not known; did you mean 'rate'"),
        (("members.mutation.cuont=1",), r"key members.mutation.cuont is not known; did you mean 'count'"),
        (("members.more.count=1",), r"members.more.family is missing; choose from pruned, random-channel, l1-norm"),
        (("members.robust.family=prund",), r"members.robust.family is 'prund'; did you mean 'pruned'"),
        (("members.robust.pruning.method=hidra",), r"members.robust.pruning.method is 'hidra'; did you mean 'hydra'"),
        (("members.robust.finetune.epocs=1",), r"members.robust.finetune.epocs is not known; did you mean 'epochs'"),
        (("members.subnetwork.pruning.method=hydra",), r"members.subnetwork .*needs the table pretraining"),
        (("members.iterative_magnitude.pruning.method=hydra",), r"method hydra needs the table finetune"),
        (("members.robust.count=-1",), r"members.robust.count is -1"),
        (("members.a/b.family=mutation",), r"members.a/b is 'a/b'"),
        (("members=3",), r"members is 3"),
        (
            ("members.l1_norm.settings.keep_low=0.9", "members.l1_norm.settings.keep_high=0.1"),
            r"^recipe digits: members.l1_norm.settings: keep rates need .* found low 0.9, mean 0.5, high 0.1$",
        ),
        (("members.mutation.settings.rate=2.0",), r"^recipe digits: members.mutation.settings: rate is 2.0, least_acc"),
        (("members.lottery_ticket.settings.sparsity=0",), r"^recipe digits: members.lottery_ticket.settings: sparsity"),
        (
            ("members.lottery_ticket.settings.search.epochs=0",),
            r"^recipe digits: members.lottery_ticket.settings.search: this cannot be trained",
        ),
        (("members.robust.pruning.sparsity=2",), r"^recipe digits: members.robust.pruning: "),
        (('members.robust.models=["nonet"]',), r"^recipe digits: members.robust.models: unknown architecture 'nonet'"),
    ],
)
def test_what_is_wrong_with_a_family_is_named(overrides, message) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("digits", overrides)
    assert "\n" not in str(caught.value)


def test_the_same_member_is_trained_on_a_device_with_the_compute_it_is_given(base):
    from s2ap_train.compute import ComputeSettings, launch

    for name in ("random-channel", "lottery-ticket", "mutation-gf"):
        here = family(name).train(0, DATA, base, run=Run(3)).model
        there = launch(ComputeSettings(accelerator="cpu"), _trained_there, name, base)
        assert same({k: v.contiguous() for k, v in here.state_dict().items()}, there.state_dict())


def _trained_there(compute, name, base):
    return family(name).train(0, DATA, base, run=Run(3, compute)).model
