"""A defended file as a torch module with gradients, through its twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_train.adaptive.plans import surrogates
from s2ap_train.attacks.from_foolbox import foolbox_model
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.twin import Twin

__all__ = ["DefendedModule", "as_foolbox"]


class DefendedModule(nn.Module):
    """Images [N, C, H, W] in [0, 1] -> scores [N, K] of what the file answers, differentiable.

    Scores are log-probabilities of the answer that is given where nothing is flagged: of the mix (`mixed`), of the
    classifier (`accurate`), or the jurors' mean log-probability, which leads the vote (`robust`). `asked` says how many
    members are asked; the file stops as soon as its test decides, so an attack on one number may miss the answers of
    another. Gradients flow through the purifier as `path` says, through the classifier and through all jurors asked.
    They do not flow through sensors and the sequential test, which choose no label here: without `flag`, an attack on
    this module is one by somebody who does not know of the detector, and much of what it finds may be flagged.

    With `flag` there is a class more, the last: its score exceeds that of the answer by the nats by which the evidence
    exceeds its alarm (Carlini and Wagner 2017, arXiv 1705.07263, section 4.2), with the gradients of the test, its
    increments interpolated between bins, and of all members. An attack towards a class that is not the last then goes
    past the detector.

    What has no gradient: the vote as such, the bins' steps, signals of the reconstruction error, the vote of the whole
    jury on what is flagged, and the choice of what is purified: under `suspicious` everything is purified here, which
    differs from the file on images that are accepted as they came (`path = "none"` sees these).

    Args:
        twin: Of the file.
        path: How gradients pass the purifier: 'exact', 'straight_through', 'identity' (BPDA), or 'none', which skips
            it.
        asked: Members whose jurors answer, in their order; None: all. The evidence of `flag` is that of all.
        flag: Whether the last class is 'flagged'.
    """

    def __init__(
        self, twin: Twin, *, path: GradientPath = "exact", asked: int | None = None, flag: bool = False
    ) -> None:
        super().__init__()
        self.twin, self.path, self.asked, self.flag = twin, path, asked, flag
        self._answer, self._evidence = surrogates(twin.test, twin.device)
        # libraries ask parameters where a network is
        self.place = nn.Parameter(torch.zeros(0, device=twin.device), requires_grad=False)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        gradient: GradientPath = "exact",
        asked: int | None = None,
        flag: bool = False,
    ) -> DefendedModule:
        """Open a file, in evaluation mode.

        Args:
            path: The model file.
            device: Where to compute.
            gradient: How gradients pass the purifier.
            asked: Members whose jurors answer; None: all.
            flag: Whether the last class is 'flagged'.

        Raises:
            ModelFileError: If the file cannot be used.
        """
        return cls.of(open_model_file(Path(path)), device=device, gradient=gradient, asked=asked, flag=flag)

    @classmethod
    def of(
        cls,
        file: ModelFile,
        *,
        device: torch.device | str = "cpu",
        gradient: GradientPath = "exact",
        asked: int | None = None,
        flag: bool = False,
    ) -> DefendedModule:
        """The same of a file that is open already."""
        return cls(Twin.from_file(file, device=device), path=gradient, asked=asked, flag=flag).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Scores [N, K], or [N, K + 1] with `flag`."""
        c, m = self.twin.answers(images, self.path, None if self.flag else self.asked)
        scores = self._answer.scores(c, None if m is None else m[: self.asked])
        if not self.flag or m is None:
            return scores
        first = self._answer.first_answer(c, m)
        flagged = scores.amax(1) - self._evidence.until_alarm(c, m, first)
        return torch.cat([scores, flagged[:, None]], dim=1)


def as_foolbox(module: DefendedModule) -> Any:  # noqa: ANN401 - foolbox has no types
    """A module as the `PyTorchModel` that foolbox attacks; bounds are 0 and 1."""
    return foolbox_model(module, module.twin.device)
