"""Every purifier and baseline in front of every classifier, under attacks that know all of it.

    python benchmarks/purification.py [digits|fashion|cifar10-small|cifar10-resnet18] [--data PATH]
        [--variants NAMES] [--classifiers NAMES] [--json FILE] [--pictures FOLDER]

Attacks, each from scratch on every image: PGD on the bare classifier (oblivious), BPDA, the exact gradient of the
unrolled purifier, the same with straight-through clamps, with the J-free purifier's gradient, APGD-CE and APGD-DLR of
pyautoattack through the exact gradient, Square on the answers, and what broke the other purifiers in front of this
classifier or the bare classifiers (transfer). The worst case counts an image only if it is right without attack and
under all of them. What was trained and attacked is kept in the work folder, and a second run goes on from there.

Written down before measuring. Under the oblivious attack most purifiers gain; under the exact gradient none gains more
than noise in front of the adversarially trained and the pruned classifier, wide ones lose 5 points or more, and SAM
does not differ from rho 0. Squeezing and rounding fall to BPDA. Square breaks next to nothing that gradients do not.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from purification_attacks import Attacked
from purification_plots import draw_curves, draw_images
from purification_runs import CLASSIFIERS, Parts, Setting, attack_all, curves
from purification_tables import SHOWN_CURVES, figures, print_tables
from purification_variants import CIFAR, PRESETS, RECIPE
from purification_variants import variants as all_variants
from report import as_text, data_overrides, machine, medians
from rich.console import Console

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.progress import Reporter
from s2ap_defend.types import Float32
from s2ap_export.tracing.trace import trace_images
from s2ap_train.compute.threads import one_thread
from s2ap_train.purifier.variants import Variant
from s2ap_train.recipe import load_recipe

BATCHES = (1, 64)


@click.command()
@click.argument("recipe", default="digits")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data lies.")
@click.option("--samples", type=click.IntRange(10), help="Test images that are attacked.")
@click.option(
    "--steps", type=click.IntRange(1), help="Of attacks that differentiate the purifier, twice as many of others."
)
@click.option("--queries", type=click.IntRange(1), help="Of Square, an image.")
@click.option("--restarts", type=click.IntRange(1), help="Of every gradient attack.")
@click.option("--variants", help="Purifiers, comma-separated; all by default, 'off' always.")
@click.option("--classifiers", help=f"What they stand before, comma-separated; by default {', '.join(CLASSIFIERS)}.")
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path, file_okay=False), help="By default build/purification-RECIPE."
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Write PNG files to this folder.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
def main(
    recipe: str,
    data: tuple[Path, ...],
    samples: int | None,
    steps: int | None,
    queries: int | None,
    restarts: int | None,
    variants: str | None,
    classifiers: str | None,
    workers: int | None,
    work_dir: Path | None,
    file: Path | None,
    pictures: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train what is missing, attack every system, print the tables."""
    began, name = time.monotonic(), Path(recipe).stem
    cheap = None if steps is None else 2 * steps
    given = {"samples": samples, "steps": steps, "cheap_steps": cheap, "queries": queries, "restarts": restarts}
    preset = replace(PRESETS.get(name, CIFAR), **{key: value for key, value in given.items() if value is not None})
    folder = work_dir or Path("build") / f"purification-{name}"
    reporter, processes = Reporter(Console()), workers or os.cpu_count() or 1
    try:
        for target in [file] if file else []:
            check_writable(target)
        for target in _pictures(pictures, name) if pictures else ():
            check_writable(target)
        setting = Setting(load_recipe(recipe, [*data_overrides(data), *overrides]), preset, folder)
        known = list(all_variants(setting.recipe.purifier, preset))
        names = known if variants is None else _listed(f"off,{variants}", known)
        behind = list(CLASSIFIERS) if classifiers is None else _listed(classifiers, list(CLASSIFIERS))
        parts = Parts(setting, reporter)
        found = attack_all(parts, names, behind, reporter, processes)
        shown = [name for name in SHOWN_CURVES if name in names]
        drawn = curves(parts, shown, behind[-1], reporter, processes)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    document = {
        "command": "benchmarks/purification.py",
        "recipe": setting.recipe.model_dump(
            mode="json", exclude={"data": {"root"}, "members": True, "detection": True}
        ),
        "preset": asdict(preset),
        "samples": len(parts.data),
        "classifiers": {name: _accuracies(parts, name) for name in behind},
        "machine": machine(),
        "figures": figures(found, names, behind),
        "cost": cost(parts, names),
        "curves": drawn,
    }
    document["seconds"] = time.monotonic() - began
    print_tables(document)
    print(f"\n{document['seconds']:.0f} s in this run")
    if pictures is not None:
        _draw(pictures, name, parts, found, drawn)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, as_text(document).encode())


def cost(parts: Parts, names: list[str], rounds: int = 5) -> dict[str, Any]:
    """Network passes and milliseconds of one image, one thread; in ONNX Runtime where the purifier can be exported."""
    found: dict[str, Any] = {}
    images = {str(batch): np.resize(parts.data.images, (batch, *parts.data.images.shape[1:])) for batch in BATCHES}
    with one_thread():
        for name in names:
            variant = parts.variant(name)
            exported = variant.traceable and not variant.stochastic
            call = _served(variant, parts.splits.image_shape) if exported else partial(_eager, variant)
            seconds = medians({batch: partial(call, x) for batch, x in images.items()}, rounds)
            found[name] = {
                "work": variant.work,
                "depth": variant.depth,
                **{f"ms_{batch}": 1e3 * seconds[str(batch)] / batch for batch in BATCHES},
                "by": "ONNX Runtime" if exported else "torch",
            }
    return found


def _served(variant: Variant, shape: tuple[int, int, int]) -> Callable[[Float32], object]:
    stage = trace_images(variant.exact, shape, "purifier")
    engine = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu", threads=1)
    return lambda images: engine.run({"image": images}, ["purified"])


def _eager(variant: Variant, images: Float32) -> None:
    with torch.no_grad():
        variant.purify(torch.from_numpy(images))


def _accuracies(parts: Parts, name: str) -> dict[str, float]:
    network = parts.networks[name]
    return {"validation_accuracy": network.clean_accuracy, "validation_robust_accuracy": network.robust_accuracy}


def _draw(
    folder: Path, name: str, parts: Parts, found: Mapping[tuple[str, str], Attacked], drawn: Mapping[str, Any]
) -> None:
    behind = next(iter(found))[0]
    chosen = [variant for variant in (RECIPE, "wide") if (behind, variant) in found]
    purifiers = {variant: parts.variant(variant) for variant in chosen}
    images, lines = _pictures(folder, name)
    attacked = found[behind, RECIPE if RECIPE in chosen else "off"].worst
    draw_images(images, parts.data.images, attacked, purifiers)
    draw_curves(lines, drawn)


def _pictures(folder: Path, name: str) -> tuple[Path, Path]:
    """Files of the images and of the curves."""
    return folder / f"purifier-{name}.png", folder / f"purifier-{name}-curves.png"


def _listed(named: str, known: list[str]) -> list[str]:
    """The names of a comma-separated list, in the known order; names with commas are matched longest first."""
    wanted, rest = [], named
    while rest:
        match = max((name for name in known if rest == name or rest.startswith(f"{name},")), key=len, default=None)
        if match is None:
            raise click.ClickException(f"{rest!r} is not known; choose from {'; '.join(known)}")
        rest = rest.removeprefix(match).removeprefix(",").strip()
        wanted.append(match)
    return [name for name in known if name in wanted]


if __name__ == "__main__":
    main()
