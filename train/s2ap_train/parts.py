"""Training of all parts of a defence, in parallel processes, each part kept and reused."""

import io
import math
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.data import Splits
from s2ap_train.purifier import UNet
from s2ap_train.recipe import Recipe
from s2ap_train.threads import one_thread
from s2ap_train.workbench import MissingPart, Workbench
from s2ap_train.workshop import Network, Workshop


@dataclass(frozen=True)
class Parts:
    """Everything that a defended model is composed of."""

    plain: Network
    adversarial: Network
    pruned: Network
    members: tuple[Network, ...]
    score_model: UNet

    def classifier(self, name: str) -> Network:
        """The network of that name: 'plain', 'adversarial' or 'pruned'."""
        return {"plain": self.plain, "adversarial": self.adversarial, "pruned": self.pruned}[name]


def train_parts(
    recipe: Recipe, splits: Splits, work_dir: Path, reporter: Reporter, *, workers: int | None = None
) -> Parts:
    """Train or reload every part of the recipe.

    Every process trains with one thread: small networks gain nothing from more, and results do not depend on the
    number of cores.

    Args:
        recipe: What to train.
        splits: The data; train and validation are used.
        work_dir: Folder of the checkpoints.
        reporter: Told about every part.
        workers: Processes that train at the same time; None takes one a core.

    Raises:
        RecipeError: If a setting cannot be trained.
    """
    members = recipe.members
    if members.robust.count + members.random_channel.count + members.l1_norm.count == 0:
        raise RecipeError("the recipe has no members; give members.robust.count or another family a count above 0")
    processes = workers if workers is not None else os.cpu_count() or 1
    missing = _missing(Workshop(recipe, splits, Workbench(work_dir, _silent(), train=False)))
    if processes > 1 and len(missing) > 1:
        _train_in_processes(recipe, missing, work_dir, reporter, min(processes, len(missing)))
        reporter = _silent()
    workshop = Workshop(recipe, splits, Workbench(work_dir, reporter))
    with one_thread():
        plain, standard = workshop.standard_networks()
        adversarial, pruned = workshop.robust_classifiers()
        robust = [workshop.robust_member(i) for i in range(members.robust.count)]
        return Parts(plain, adversarial, pruned, (*robust, *standard), workshop.score_model())


def _missing(workshop: Workshop) -> list[str]:
    missing = []
    for name, work in workshop.groups().items():
        try:
            work()
        except MissingPart:
            missing.append(name)
    return missing


def _train_in_processes(recipe: Recipe, groups: list[str], work_dir: Path, reporter: Reporter, processes: int) -> None:
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _die_on_interrupt)
    try:
        with reporter.step(f"training in {processes} processes", len(groups)) as step:
            running = [pool.submit(_train_group, recipe, work_dir, name) for name in groups]
            for done in as_completed(running):
                text = done.result()
                step.advance()
                reporter.line(text)
    except BaseException:
        for child in multiprocessing.active_children():  # parts are written whole or not at all: nothing is lost
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _die_on_interrupt() -> None:
    """Let Ctrl-C end a worker without a traceback; the parent says what happened."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _train_group(recipe: Recipe, work_dir: Path, name: str) -> str:
    """Train one group in this process and return what it reported; its parts are kept in the work folder."""
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=200), line_every_s=math.inf)
    workshop = Workshop(recipe, recipe.load_data(), Workbench(work_dir, reporter))
    with one_thread():
        workshop.groups()[name]()
    return text.getvalue().rstrip()


def _silent() -> Reporter:
    return Reporter(Console(file=io.StringIO()))
