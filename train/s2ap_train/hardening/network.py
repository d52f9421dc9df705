"""A trained network of a recipe and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from s2ap_defend.manifest import Seeds
from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.ensemble import Fitted
from s2ap_train.models import Classifier
from s2ap_train.models.cost import flops, parameter_count
from s2ap_train.models.dead_channels import without_dead_channels
from s2ap_train.training import TrainingData

VALIDATION_ATTACK_STEPS = 20


@dataclass(frozen=True)
class Network:
    """A trained classifier and what is known of it; accuracies are on the validation split.

    Attributes:
        model: In evaluation mode, on the CPU.
        method: 'plain', 'adversarial', or how it was made smaller: 's2ap', 's2ap-channel', 's2ap-2:4', 'subnetwork',
            'iterative-magnitude', 'random-channel', 'l1-norm', 'fresh-channel', 'lottery-ticket', 'mutation-gf', ...
        sparsity: Fraction of the weights of the unpruned network that are zero or removed.
        adversarially_trained: Whether it was trained against attacks.
        seeds: Of initialisation, mask and data order; with them, the recipe and the plain network it can be made again.
        clean_accuracy: Without attack.
        robust_accuracy: Under PGD at the recipe's eps.
        flops: Of one image, as executed: zeros in weights are multiplied like other numbers.
        parameters: Trainable numbers that are shipped.
        seconds: Of its training, on the machine that trained it.
    """

    model: Classifier
    method: str
    sparsity: float
    adversarially_trained: bool
    seeds: Seeds
    clean_accuracy: float
    robust_accuracy: float
    flops: int
    parameters: int
    seconds: float


def network_record(fitted: Fitted, data: TrainingData, *, eps: float) -> dict[str, Any]:
    """What is stored with the weights, as JSON values, and what `known_network` reads."""
    model = fitted.model
    flips = [epoch["flip_rate"] for epoch in fitted.history if "flip_rate" in epoch]
    return {
        "architecture": model.architecture(),
        "method": fitted.method,
        "seeds": fitted.seeds.model_dump(),
        "sparsity": fitted.sparsity,
        "adversarially_trained": fitted.adversarially_trained,
        **measured(model, data, eps=eps),
        "flops": flops(model, model.image_shape),
        "parameters": parameter_count(model),
        "flip_rate": sum(flips) / len(flips) if flips else None,
        "history": list(fitted.history),
        **fitted.details,
    }


def measured(model: nn.Module, data: TrainingData, *, eps: float) -> dict[str, float]:
    """Accuracy without attack and under PGD on validation images."""
    return {
        "clean_accuracy": accuracy(model, *data.validation),
        "robust_accuracy": robust_accuracy(model, *data.validation, eps=eps, steps=VALIDATION_ATTACK_STEPS),
    }


def known_network(model: Classifier, record: Mapping[str, Any]) -> Network:
    """The network with what its record says."""
    return Network(
        model=model,
        method=record["method"],
        sparsity=record["sparsity"],
        adversarially_trained=record["adversarially_trained"],
        seeds=Seeds(**record["seeds"]),
        clean_accuracy=record["clean_accuracy"],
        robust_accuracy=record["robust_accuracy"],
        flops=record["flops"],
        parameters=record["parameters"],
        seconds=record["seconds"],
    )


def network_summary(record: Mapping[str, Any]) -> str:
    """A line about it."""
    text = f"accuracy {record['clean_accuracy']:.1%}  under PGD {record['robust_accuracy']:.1%}"
    if record["sparsity"]:
        text += f"  sparsity {record['sparsity']:.0%}"
    return text if record["flip_rate"] is None else f"{text}  mask flips {record['flip_rate']:.2%}"


def lean(network: Network) -> Network:
    """The same network without the channels that its masks left dead, counted anew; itself where there are none."""
    found = without_dead_channels(network.model, network.model.image_shape)
    model = found.model
    if not found.removed or not isinstance(model, Classifier):
        return network
    return replace(network, model=model, flops=flops(model, model.image_shape), parameters=parameter_count(model))
