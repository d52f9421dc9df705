"""How the cost of a defended file grows: with the batch, the members, the side of an image; and whether it is steady.

    python benchmarks/latency.py build/model.onnx --data images.npy --json FILE --plot FILE.png

The batch is measured on the file itself, by the room of `s2ap-defend bench`. Members and sides are measured on
untrained networks in graphs of the same make (latency_files.py): with images that all stop after the opening, and with
images that ask everybody. One thread, in seconds of the processor, which other processes do not lengthen much; rounds
of all variants alternate, a call takes its median over them.

Written down before measuring: time grows with the batch in proportion or less; with members that are not asked not at
all, with those that are asked in proportion; with the pixels in proportion. Ten thousand batches take no more memory
than a thousand, and eight threads get the verdicts of one.
"""

import time
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
from latency_files import ONE_STEP, built
from report import as_text, machine
from rich.console import Console

from s2ap_defend import DefendedClassifier
from s2ap_defend.bench.measure import measure
from s2ap_defend.bench.measured import BARE
from s2ap_defend.bench.rounds import alternate, exponent, typical_round
from s2ap_defend.bench.steady import measure_steady
from s2ap_defend.bench.traffic import find_traffic
from s2ap_defend.errors import DefendError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.images import ImageFiles
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_train.compute.threads import one_thread

MEMBERS = (4, 8, 16, 32, 64, 100)
SIDES = (28, 32, 64, 128)
MEMBERS_BATCH, SIDES_BATCH, SIDES_MEMBERS = 8, 2, 4
THREADS = 8
EXECUTORS = ("whole", "staged")

Series = dict[str, list[float]]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Clean images, as for s2ap-defend bench.")
@click.option("--batches", default="1,2,4,8,16,32,64,128,256", show_default=True, help="Images of a call.")
@click.option("--members", default=",".join(map(str, MEMBERS)), show_default=True, help="Members of a graph.")
@click.option("--sides", default=",".join(map(str, SIDES)), show_default=True, help="Pixels of an image's side.")
@click.option("--soak", type=click.IntRange(2), default=10_000, show_default=True, help="Batches in a row.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the growth here.")
def main(
    model: Path,
    data: tuple[Path, ...],
    batches: str,
    members: str,
    sides: str,
    soak: int,
    rounds: int,
    file: Path | None,
    plot: Path | None,
) -> None:
    """Print exponents and multiples."""
    began, reporter = time.monotonic(), Reporter(Console())
    try:
        for path in (file, plot):
            if path is not None:
                check_writable(path)
        growth = {"batch": _by_batch(model, data, _sizes(batches), rounds, reporter)}
        with one_thread():
            growth["members not asked"] = _by_members(_sizes(members), rounds, reporter, asks_all=False)
            growth["members asked"] = _by_members(_sizes(members), rounds, reporter, asks_all=True)
            growth["pixels"] = _by_side(_sizes(sides), rounds, reporter)
        steady = {name: _steady(model, name, data, soak, reporter) for name in EXECUTORS}
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    document: dict[str, Any] = {
        "command": "benchmarks/latency.py",
        "machine": machine(),
        "clock": "processor",
        "rounds": rounds,
        "seconds": time.monotonic() - began,
        "growth": growth,
        "steady": steady,
    }
    _print(document)
    if file is not None:
        replace_file(file, as_text(document).encode())
    if plot is not None:
        _draw(growth, plot)


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(one) for one in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise click.ClickException(f"{text!r} is no list of sizes, such as 4,8,16")
    return found


def _by_batch(model: Path, data: tuple[Path, ...], sizes: list[int], rounds: int, reporter: Reporter) -> dict[str, Any]:
    opened = open_model_file(model)
    files = ImageFiles(opened.manifest.input.shape)
    traffic = find_traffic("clean", files, model, data=data, attacked=(), most=max(*sizes, 64))
    reporter.line(f"Traffic: {traffic.source}")
    found = measure(
        opened, traffic, batches=sizes, device="cpu", threads=1, clock="processor", rounds=rounds, reporter=reporter
    )
    milliseconds = {BARE: [1e3 * one.batch / one.bare.images_per_s for one in found.batches]}
    for name in EXECUTORS:
        milliseconds[name] = [1e3 * one.batch / one.executors[name].images_per_s for one in found.batches]
    return _growth(sizes, milliseconds) | {"file": model.name, "traffic": traffic.source}


def _by_members(sizes: list[int], rounds: int, reporter: Reporter, *, asks_all: bool) -> dict[str, Any]:
    found: Series = {}
    for count in sizes:
        graph = built((1, 28, 28), max(count, 2), asks_all=asks_all)
        images = np.random.default_rng(0).random((MEMBERS_BATCH, 1, 28, 28), dtype=np.float32)
        _add(found, alternate(graph.variants(images), rounds, clock="processor"))
        reporter.line(f"{count} members, {'all' if asks_all else 'the opening'} asked: done")
    return _growth(sizes, found) | {"batch": MEMBERS_BATCH, "shape": [1, 28, 28]}


def _by_side(sizes: list[int], rounds: int, reporter: Reporter) -> dict[str, Any]:
    found: Series = {}
    for side in sizes:
        graph = built((3, side, side), SIDES_MEMBERS, asks_all=False, purification=ONE_STEP)
        images = np.random.default_rng(0).random((SIDES_BATCH, 3, side, side), dtype=np.float32)
        _add(found, alternate(graph.variants(images), rounds, clock="processor"))
        reporter.line(f"{side}x{side} pixels: done")
    return _growth([side**2 for side in sizes], found) | {"batch": SIDES_BATCH, "members": SIDES_MEMBERS}


def _add(found: Series, seconds: dict[str, np.ndarray]) -> None:
    for name, values in seconds.items():
        found.setdefault(name, []).append(1e3 * typical_round(values))


def _growth(sizes: list[int], milliseconds: Series) -> dict[str, Any]:
    """Times, exponents over all sizes, and multiples of the bare classifier."""
    bare = np.array(milliseconds[BARE])
    return {
        "sizes": sizes,
        "milliseconds": milliseconds,
        "exponents": {name: exponent(sizes, values) for name, values in milliseconds.items()},
        "times_bare": {name: (np.array(milliseconds[name]) / bare).tolist() for name in EXECUTORS},
    }


def _steady(model: Path, name: str, data: tuple[Path, ...], batches: int, reporter: Reporter) -> dict[str, Any]:
    """Memory and verdicts over many batches of one image, and of many threads at once."""
    classifier = DefendedClassifier.load(model, device="cpu", threads=1, executor=name)  # type: ignore[arg-type]
    files = ImageFiles(classifier.input_shape)
    images = find_traffic("clean", files, model, data=data, attacked=(), most=16).first(16)
    found = measure_steady(classifier, images, batches)
    reporter.line(f"{name}: {batches} batches in a row, {found.threads} threads: done")
    return {
        "batches": batches,
        "identical": not found.different,
        "threads": found.threads,
        "threads_identical": not found.threads_different,
        "bytes_after_a_tenth": found.early_bytes,
        "bytes_at_the_end": found.late_bytes,
    }


def _print(document: dict[str, Any]) -> None:
    for what, of in document["growth"].items():
        print(f"\n{what}: {', '.join(map(str, of['sizes']))}")
        for name, values in of["milliseconds"].items():
            slope, ratios = of["exponents"][name], of["times_bare"].get(name, [])
            times = "" if not ratios else f"   x bare {', '.join(f'{ratio:.3g}' for ratio in ratios)}"
            print(f"  {name:16s} exponent {'-' if slope is None else f'{slope:.2f}'}{times}")
            print(f"  {'':16s} ms {', '.join(f'{value:.3g}' for value in values)}")
    for name, found in document["steady"].items():
        memory = [found[key] for key in ("bytes_after_a_tenth", "bytes_at_the_end")]
        grown = "-" if None in memory else f"{(memory[1] - memory[0]) / 1e6:+.1f} MB"
        alone, together = ("same" if found[key] else "DIFFERENT" for key in ("identical", "threads_identical"))
        print(f"\n{name}: {found['batches']} batches in a row, memory {grown} after the first tenth, verdicts {alone};")
        print(f"  {found['threads']} threads, verdicts {together}")


def _draw(growth: dict[str, dict[str, Any]], path: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), constrained_layout=True)
    for axis, (what, of) in zip(axes.flat, growth.items(), strict=True):
        for name, values in of["milliseconds"].items():
            slope = of["exponents"][name]
            label = name if slope is None else f"{name}, exponent {slope:.2f}"
            axis.loglog(of["sizes"], values, marker="o", markersize=3, label=label)
        axis.set_xlabel(what)
        axis.set_ylabel("ms a batch")
        axis.legend(fontsize=7)
        axis.grid(visible=True, which="both", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
