"""The file of a hardening before it is measured: what made it, and how much of its evaluation is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s2ap_defend.files import replace_file
from s2ap_export.hardening.networks import networks_of
from s2ap_train.data import Splits
from s2ap_train.hardening.purifier_choice import By
from s2ap_train.hardening.train import stored_components
from s2ap_train.recipe import Recipe
from s2ap_train.redteam.evaluation import FOLDER
from s2ap_train.redteam.forecast import what_is_left
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.preparation import prepare
from s2ap_train.storage.fingerprint import fingerprint

__all__ = ["Candidate", "candidate_path"]


def candidate_path(work_dir: Path, output: Path) -> Path:
    """Where the file of an output lies until it is measured."""
    return work_dir / "unmeasured" / output.name


@dataclass(frozen=True)
class Candidate:
    """The file of a hardening before it is measured, in its work folder.

    Attributes:
        path: Of the file.
        plan: Of the attacks on it.
        choose: Who decides on its purifier; None: no purifiers are compared.
    """

    path: Path
    plan: Plan
    choose: By | None

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.made-with")

    def remember(self, recipe: Recipe) -> None:
        """Note what the file was made with, which lies there now."""
        replace_file(self._note, fingerprint((recipe, self.choose)).encode())

    def made_with(self, recipe: Recipe) -> bool:
        """Whether a file lies there that this recipe made."""
        try:
            return self.path.is_file() and self._note.read_bytes() == fingerprint((recipe, self.choose)).encode()
        except OSError:
            return False

    def evaluated(self, recipe: Recipe, splits: Splits, work_dir: Path) -> float:
        """Share of the attacks on the file that the work folder holds; 0 where what it came from is not there.

        Args:
            recipe: What it was made with.
            splits: Its data.
            work_dir: The work folder.
        """
        components = stored_components(recipe, splits, work_dir)
        if components is None:
            return 0.0
        made = prepare(
            self.path,
            splits.test.subset(slice(0, recipe.evaluation.samples)),
            self.plan,
            folder=work_dir / FOLDER,
            networks=networks_of(components),
            data_name=splits.name,
        )
        return what_is_left(made).stored_share
