"""What cheaper score models and shorter descents cost and remove: errors, operations, and time next to the classifier.

    python benchmarks/cheap_purifiers.py digits --json benchmarks/results/cheap-purifiers-digits.json
    python benchmarks/cheap_purifiers.py fashion --data PATH --untrained

Written down before measuring: operations fall four times from 'standard' to 'fast' and from there to 'tiny', time less,
as nodes count at batch 1 and narrow convolutions fill no vector; separable blocks cost a fifth of the operations and
more than a fifth of the time, because a convolution of one channel each moves as much memory; one J-free step over two
directions makes 2 passes where the digits recipe makes 24; what a teacher adds in denoising is less than a point.

Every network is trained as the recipe says, with its seed; 'taught' ones learn from a 'standard' one. The error is the
mean of ||D(y) - x||^2 over that of the noise on validation images: at the purifier's sigma, and over the training's
range. Times are those of exported stages on ONNX Runtime, one thread, as multiples of the recipe's classifier at the
same batch, medians of alternating rounds in one run, in seconds of the processor. Whether a cheaper purifier defends is
not measured here: `s2ap-defend choose-purifier RECIPE --set score_model.size=tiny` attacks it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from purifier_graph import OUTPUTS, repeat
from report import aligned, as_text, data_overrides, machine, medians

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.models import create, fold_batch_norm
from s2ap_train.models.cost import flops, parameter_count
from s2ap_train.purifier import Purification, ScoreTraining, UNet, denoising_error, hadamard_bank, train_score_model
from s2ap_train.purifier.blocks import Blocks
from s2ap_train.purifier.sizes import Size, pass_flops
from s2ap_train.recipe import Recipe, load_recipe
from s2ap_train.training import Run

BATCHES = {1: 20, 64: 3}  # runs of the classifier that follow each other
MODELS: dict[str, tuple[Size, Blocks, Size | None]] = {  # size, blocks, teacher
    "standard": ("standard", "full", None),
    "fast": ("fast", "full", None),
    "tiny": ("tiny", "full", None),
    "standard, separable": ("standard", "separable", None),
    "fast, separable": ("fast", "separable", None),
    "fast, taught": ("fast", "full", "standard"),
    "tiny, taught": ("tiny", "full", "standard"),
}


def descents(config: Purification) -> dict[str, Purification]:
    """The recipe's purifier, and one step over two directions without ascent, with and without the Jacobian."""
    one = replace(config, steps=1, rho=0.0, bank_size=2, sigma=config.sigmas[:1], reuse_ascent=False)
    return {"recipe": config, "one step": one, "one step, J-free": replace(one, mode="j_free")}


class Networks:
    """The score models of one recipe, each trained once.

    Args:
        recipe: Data, seed and training.
        splits: Its data.
        trained: Whether they are trained; otherwise their weights are random.
    """

    def __init__(self, recipe: Recipe, splits: Splits, *, trained: bool) -> None:
        self._recipe, self._splits, self._trained = recipe, splits, trained
        self._known: dict[ScoreTraining, UNet] = {}

    def of(self, config: ScoreTraining) -> UNet:
        """The network of these settings."""
        if config in self._known:
            return self._known[config]
        shape = self._splits.image_shape
        if self._trained:
            teacher = config.of_teacher()
            net = train_score_model(
                self._splits.train.images,
                config,
                run=Run(self._recipe.seed),
                validation=self._splits.validation.images,
                teacher=self.of(teacher) if teacher else None,
            ).net
        else:
            net = UNet(shape[0], *config.architecture(shape), blocks=config.blocks).eval().requires_grad_(False)
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        self._known[config] = net
        return net


def settings(recipe: Recipe, name: str) -> ScoreTraining:
    """The recipe's training for a kind of score model."""
    size, blocks, teacher = MODELS[name]
    plain = replace(recipe.score_model, width=None, multipliers=None, fold=None)
    return replace(plain, size=size, blocks=blocks, teacher=teacher)


def errors(net: UNet, recipe: Recipe, splits: Splits) -> dict[str, float]:
    """Denoising error at the purifier's sigma, and the mean over the training's range."""
    images = torch.from_numpy(splits.validation.images[:256])
    (at_sigma,) = denoising_error(net, images, recipe.purifier.sigmas[:1])
    over = denoising_error(net, images, recipe.score_model.validation_sigmas())
    return {"error_at_sigma": at_sigma, "mean_error": sum(over) / len(over)}


def time_all(
    stages: dict[str, bytes], outputs: dict[str, list[str]], shape: tuple[int, ...], rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of a run of every stage, by batch."""
    engines = {name: OnnxRuntimeEngine(stage, device="cpu", threads=1) for name, stage in stages.items()}
    found: dict[str, dict[str, float]] = {}
    for batch, often in BATCHES.items():
        x = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
        runs: dict[str, Callable[[], object]] = {}
        for name, engine in engines.items():
            run = partial(engine.run, {"image": x}, outputs[name])
            runs[name] = partial(repeat, run, often) if name == "classifier" else run
        seconds = medians(runs, rounds, clock=time.process_time)
        seconds["classifier"] /= often
        found[str(batch)] = {name: 1e3 * value for name, value in seconds.items()}
    return found


@click.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data set lies.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--untrained", is_flag=True, help="Measure operations and time alone, with random weights.")
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
def main(
    recipe_name: str,
    data: tuple[Path, ...],
    overrides: tuple[str, ...],
    untrained: bool,
    rounds: int,
    output: Path | None,
) -> None:
    """Print a table of score models and descents for RECIPE."""
    recipe = load_recipe(recipe_name, (*data_overrides(data), *overrides))
    splits = recipe.load_data()
    shape = splits.image_shape
    network = fold_batch_norm(create(recipe.model, shape, len(splits.classes)).eval())
    rows: dict[str, dict[str, Any]] = {}
    stages = {"classifier": trace_classifier(network, shape, "classifier").SerializeToString()}
    with one_thread():
        networks = Networks(recipe, splits, trained=not untrained)
        for name in MODELS:
            net = networks.of(settings(recipe, name))
            rows[name] = {"parameters": parameter_count(net), "pass_flops": pass_flops(net, shape)}
            rows[name] |= {} if untrained else errors(net, recipe, splits)
            if MODELS[name][2] is None:  # a teacher changes no operation
                for descent, config in descents(recipe.purifier).items():
                    bank = hadamard_bank(config.bank_size, shape, config.bank_seed)
                    stages[f"{name}: {descent}"] = trace_purifier(net, bank, config, shape).SerializeToString()
            print(f"{name}: {rows[name]}", flush=True)
        outputs = {name: ["log_probabilities"] if name == "classifier" else OUTPUTS for name in stages}
        milliseconds = time_all(stages, outputs, shape, rounds)
    print(*table(rows, milliseconds), sep="\n")
    document = {
        "recipe": recipe_name,
        "classifier_flops": flops(network, shape),
        "rounds": rounds,
        "models": rows,
        "milliseconds": milliseconds,
        "machine": machine(),
    }
    print(f"\n{json.dumps(document['machine'])}")
    if output:
        output.write_text(as_text(document))


def table(rows: dict[str, dict[str, Any]], milliseconds: dict[str, dict[str, float]]) -> list[str]:
    """A line for every score model; times are multiples of the classifier's at the same batch, batch 1 / batch 64."""
    names = list(dict.fromkeys(name.partition(": ")[2] for name in milliseconds["1"] if ": " in name))
    header = ("score model", "parameters", "MFLOPs a pass", "error at sigma", "mean error", *names)
    lines: list[tuple[str, ...]] = [header, ("---", *["---:"] * (len(header) - 1))]
    for name, row in rows.items():
        found = [f"{row[key]:.3f}" if key in row else "" for key in ("error_at_sigma", "mean_error")]
        times = []
        for descent in names:
            ratios = (
                of[f"{name}: {descent}"] / of["classifier"]
                for of in milliseconds.values()
                if f"{name}: {descent}" in of
            )
            times.append(" / ".join(f"{ratio:.1f}" for ratio in ratios))
        lines.append((name, f"{row['parameters']:,}", f"{row['pass_flops'] / 1e6:.2f}", *found, *times))
    return aligned(lines)


if __name__ == "__main__":
    main()
