"""AutoAttack, the published yardstick, on what answers in a file, against what our own attacks leave of it.

    python benchmarks/autoattack.py MODEL [--data FOLDER] [--samples N] [--first K] [--network first-juror|jury]
        [--evaluation FILE] [--json FILE]

The library pyautoattack (Croce and Hein 2020, arXiv 2003.01690) runs its standard version, APGD-CE, targeted APGD-DLR,
targeted FAB and Square, on the first juror of the file, r; or on the whole jury, as it answers where it is asked to the
end and nothing is flagged. With the JSON of `evaluate --json` of the same images it says how far the two are apart:
they should agree within 2 points. Every shard is stored, and the same command goes on after an interruption.

Written down before measuring: AutoAttack takes ten times as many steps, and leaves up to a point less of r.
"""

import json
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from report import as_text, machine
from rich.console import Console
from torch import Tensor, nn

from s2ap_defend.commands.options import model_argument
from s2ap_defend.errors import DefendError, InputError, RecipeError
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_export.commands.evaluated_recipe import recipe_of
from s2ap_train.adaptive.answer_surrogate import AnswerSurrogate
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Found, ResumableJob, Store, run_resumable
from s2ap_train.measures.autoattack import autoattacked
from s2ap_train.redteam.ablation.names import PRUNED, UNFLAGGED
from s2ap_train.statistics.figures import clopper_pearson
from s2ap_train.twin import Twin

Which = Literal["first-juror", "jury"]
ROWS: dict[Which, str] = {"first-juror": PRUNED, "jury": UNFLAGGED}
"""The row of an evaluation that a network is compared with; the jury of the file stops asking early."""
SHARD = 50
VERSION = 1
"""Raise it with every change of what a shard finds."""


class Answering(nn.Module):
    """What answers in a file, as a network: images [N, C, H, W] in [0, 1] -> log-probabilities [N, K].

    Args:
        model: The file.
        which: The first juror alone, or all that the file asks.

    Raises:
        RecipeError: If it has no juror.
    """

    def __init__(self, model: Path, which: Which) -> None:
        super().__init__()
        self._twin = Twin.from_file(open_model_file(model))
        self._answer = AnswerSurrogate(self._twin.test, self._twin.device)
        voting = np.flatnonzero(self._twin.test.vote_weights > 0.0)
        if not len(voting):
            raise RecipeError(f"{model} has no juror; name a file whose jury answers")
        self._first = int(voting[0]) if which == "first-juror" else None
        self.anchor = nn.Parameter(torch.zeros(()))  # the library asks where the parameters are

    def forward(self, images: Tensor) -> Tensor:
        """As in the class."""
        if self._first is not None:
            return self._twin.members(images, self._first + 1)[self._first]
        return self._answer.scores(*self._twin.answers(images))


@click.command()
@model_argument
@click.option("--data", type=click.Path(path_type=Path), help="Where the data lie that the file was made with.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Test images.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first of them, from 0.")
@click.option("--network", type=click.Choice(list(ROWS)), default="first-juror", show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=100, show_default=True, help="Steps of each attack.")
@click.option("--queries", type=click.IntRange(1), default=5000, show_default=True, help="Of Square, an image.")
@click.option("--evaluation", type=click.Path(path_type=Path), help="JSON of `evaluate` of the same images.")
@click.option("--workers", type=click.IntRange(1), help="Processes; by default one a core.")
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False), help="By default build/autoattack.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures here.")
def main(
    model: Path,
    data: Path | None,
    samples: int,
    first: int,
    network: Which,
    iterations: int,
    queries: int,
    evaluation: Path | None,
    workers: int | None,
    work_dir: Path | None,
    output: Path | None,
) -> None:
    """Run AutoAttack and compare."""
    reporter = Reporter(Console())
    try:
        if output is not None:
            check_writable(output)
        manifest = open_model_file(model).manifest
        recipe = recipe_of(model, manifest, data=data)
        splits = recipe.load_data()
        test = splits.test
        if first + samples > len(test):
            raise InputError(f"--first {first} and --samples {samples} reach beyond the {len(test)} test images")
        images = test.subset(slice(first, first + samples))
        ours = None if evaluation is None else _ours(evaluation, manifest.weights_sha256, first, samples, network)
        budget = {"eps": recipe.eps, "iterations": iterations, "queries": queries}
        store = Store(
            work_dir or Path("build/autoattack"),
            (VERSION, manifest.weights_sha256, network, splits.sha256("test"), budget),
        )
        shards = [slice(start, min(start + SHARD, samples)) for start in range(0, samples, SHARD)]
        jobs = [
            ResumableJob(
                f"part {number + 1}",
                attacked,
                lambda _, shard=shard: (model, network, images.subset(shard), budget),
                decides=(first + shard.start, first + shard.stop),
            )
            for number, shard in enumerate(shards)
        ]
        done = run_resumable(jobs, store, reporter, title="AutoAttack", workers=workers)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    clean, right = (np.concatenate([done[job.name].arrays[name] for job in jobs]) for name in ("clean", "right"))
    document: dict[str, Any] = {
        "command": "benchmarks/autoattack.py",
        "machine": machine(),
        "recipe": manifest.provenance.recipe,
        "seed": manifest.provenance.seed,
        "weights_sha256": manifest.weights_sha256,
        "network": network,
        "first": first,
        "samples": samples,
        **budget,
        "clean": float(clean.mean()),
        "autoattack": float(right.mean()),
        "autoattack_interval": list(clopper_pearson(int(right.sum()), samples)),
        "ours": ours,
    }
    print_result(document)
    if output is not None:
        replace_file(output, as_text(document).encode())


def attacked(path: Path, network: Which, data: ImageSet, budget: dict[str, Any]) -> Found:
    """One shard; also called in other processes."""
    with one_thread():
        model = Answering(path, network).eval()
        x, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        found, attacks, clean = autoattacked(model, x, y, seed=0, batch_size=SHARD, **budget)
        with torch.no_grad():
            right = clean & (model(found).argmax(1) == y)
        return Found(found.numpy(), {"attacks": list(attacks)}, {"clean": clean.numpy(), "right": right.numpy()})


def print_result(document: dict[str, Any]) -> None:
    """What was found, in two sentences."""
    low, high = (100 * end for end in document["autoattack_interval"])
    print(
        f"{document['network']} of {document['recipe']}, seed {document['seed']}, test images {document['first']} to "
        f"{document['first'] + document['samples'] - 1}, l_inf {document['eps']:g}: {100 * document['clean']:.1f} % "
        f"without attack, {100 * document['autoattack']:.1f} % under AutoAttack ({low:.1f} to {high:.1f})"
    )
    if document["ours"] is not None:
        apart = 100 * (document["ours"] - document["autoattack"])
        agrees = "agree within 2 points" if abs(apart) <= 2.0 else "do not agree within 2 points"
        print(f"ours leaves {100 * document['ours']:.1f} %, {apart:+.1f} points: the two {agrees}")


def _ours(file: Path, weights: str, first: int, samples: int, network: Which) -> float:
    """Label right, of the row of an evaluation that a network is compared with.

    Raises:
        RecipeError: If the file is no evaluation of this model on these images.
    """
    try:
        found = json.loads(file.read_bytes())
        measured = (found["weights_sha256"], found["configuration"].get("first", 0), found["samples"])
        rows = {row["name"]: row["worst_case"]["label_accuracy"] for row in found["ablation"]}
        label: float = rows[ROWS[network]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecipeError(f"{file} is no JSON of `evaluate` with its ablation ({error!r})") from error
    if measured != (weights, first, samples):
        raise RecipeError(f"{file} is of another model or other images: {measured}, not {(weights, first, samples)}")
    return label


if __name__ == "__main__":
    main()
