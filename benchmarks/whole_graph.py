"""What the decision costs in a file's graph: a file as it was written against its stages as they are joined today.

    python benchmarks/whole_graph.py model.onnx --recipe digits
    python benchmarks/whole_graph.py tests/contract/golden/version-4-abstaining.onnx

Written down before changing, from a profile of a file of the recipe `digits` whose answer is mixed and which purifies
what is suspicious: of 371 nodes of the decision in the main graph some 300 run for a clean image, about a microsecond
each, as much as all its stages. Half of them compute an exponential a second time or the whole opening again for
images that nobody suspects.

    clean, batch 1    half the nodes, so two thirds of the time of the file
    batch 64          stages take nearly all of the time: nothing to see
    suspicious        the purifier takes nearly all of the time: nothing to see

All outputs must keep their bits. Rounds alternate; medians of one run on one thread, in seconds of the processor. Clean
images are the recipe's test images; noise is uniform.
"""

import time
from functools import partial
from pathlib import Path

import click
import numpy as np
from purifier_graph import repeat
from report import aligned, machine, medians

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import open_model_file, subgraphs
from s2ap_defend.stages import stage_sizes
from s2ap_defend.types import Float32, Verdicts
from s2ap_export.commands.calibrate.answering import composed
from s2ap_train.compute.threads import one_thread
from s2ap_train.recipe import load_recipe

from onnx import GraphProto, ModelProto  # isort: skip

BATCHES = {1: 10, 8: 3, 64: 1}  # runs that follow each other


def decision_nodes(graph: GraphProto) -> tuple[int, int]:
    """(nodes of the decision in a graph, those in the branches of its Ifs)."""
    inner = [branch for node in graph.node for branch in subgraphs(node)]
    own = sum(node.name.startswith("test") for node in graph.node)
    return own, sum(sum(decision_nodes(branch)) for branch in inner)


def same_bits(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Whether all outputs are the same to the last bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--recipe", help="Its test images are the clean ones; without it there is noise alone.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option("--rounds", default=40, show_default=True)
def main(model: Path, recipe: str | None, overrides: tuple[str, ...], rounds: int) -> None:
    """Print nodes and milliseconds of MODEL, and of its stages joined by the exporter of today."""
    file = open_model_file(model)
    models: dict[str, ModelProto] = {"written": file.proto, "today": composed(file, file.manifest.to_test())}
    images: dict[str, Float32] = {}
    if recipe:
        images["clean"] = load_recipe(recipe, overrides).load_data().test.images
    images["noise"] = np.random.default_rng(0).random((max(BATCHES), *file.manifest.input.shape), dtype=np.float32)
    rows: list[tuple[str, ...]] = [("graph", "nodes of the decision", "in branches"), ("---", "---:", "---:")]
    rows += [(name, *map(str, decision_nodes(one.graph))) for name, one in models.items()]
    print(*aligned(rows), f"members: {len(stage_sizes(file.proto)) - 3}", sep="\n")
    engines = {
        name: OnnxRuntimeEngine(one.SerializeToString(), device="cpu", threads=1) for name, one in models.items()
    }
    header = ("images", "batch", "members asked", "written, ms", "today, ms", "ratio", "same bits")
    lines: list[tuple[str, ...]] = [header, ("---", *["---:"] * (len(header) - 1))]
    with one_thread():
        for kind, every in images.items():
            for batch, often in BATCHES.items():
                feeds = {"image": every[:batch]}
                answers = [engine.run(feeds, Verdicts.FIELDS) for engine in engines.values()]
                found = medians(
                    {
                        name: partial(repeat, partial(engine.run, feeds, Verdicts.FIELDS), often)
                        for name, engine in engines.items()
                    },
                    rounds,
                    clock=time.process_time,
                )
                before, after = (1e3 * found[name] / often for name in models)
                asked = Verdicts(*answers[1]).members_used.mean()
                lines.append(
                    (
                        kind,
                        str(batch),
                        f"{asked:.1f}",
                        f"{before:.3f}",
                        f"{after:.3f}",
                        f"{after / before:.2f}",
                        "yes" if same_bits(*answers) else "NO",
                    )
                )
    print(*aligned(lines), machine(), sep="\n")


if __name__ == "__main__":
    main()
