"""All attacks by name, with what one loop over them needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.fia import fia
from s2ap_train.attacks.from_foolbox import cw_l2, deepfool, fgsm, pgd
from s2ap_train.attacks.ila import ila
from s2ap_train.attacks.jsma import jsma
from s2ap_train.attacks.local_search import local_search
from s2ap_train.attacks.one_pixel import one_pixel
from s2ap_train.attacks.right_images import Classifier
from s2ap_train.attacks.square import square

Norm = Literal["linf", "l2", "l0"]


@dataclass(frozen=True)
class Attack:
    """An attack with the settings of its paper as defaults.

    Attributes:
        run: (classifier, images float32 [N, C, H, W] in [0, 1], labels int64 [N], *, seed, ...) -> attacked images.
        norm: In which its change is small.
        budget: Keyword of `run` that bounds the change in that norm; None if it looks for the least change.
        asks_only: Whether answers are enough for it, without gradients.
        source: Paper.
    """

    run: Callable[..., Float32]
    norm: Norm
    budget: str | None
    asks_only: bool
    source: str

    def __call__(
        self,
        classifier: Classifier,
        images: Float32,
        labels: Int64,
        *,
        seed: int,
        **settings: Any,  # noqa: ANN401 - each attack has its own
    ) -> Float32:
        """Attacked images, float32 [N, C, H, W] in [0, 1]; what the classifier gets wrong anyway is unchanged."""
        return self.run(classifier, images, labels, seed=seed, **settings)


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "fgsm": Attack(fgsm, "linf", "eps", False, "Goodfellow et al. 2015, arXiv 1412.6572"),
        "jsma": Attack(jsma, "l0", "fraction", False, "Papernot et al. 2016, arXiv 1511.07528"),
        "cw-l2": Attack(cw_l2, "l2", None, False, "Carlini and Wagner 2017, arXiv 1608.04644"),
        "deepfool": Attack(deepfool, "l2", None, False, "Moosavi-Dezfooli et al. 2016, arXiv 1511.04599"),
        "one-pixel": Attack(one_pixel, "l0", "pixels", True, "Su et al. 2019, arXiv 1710.08864"),
        "ila": Attack(ila, "linf", "eps", False, "Huang et al. 2019, arXiv 1907.10823"),
        "local-search": Attack(
            local_search, "l0", "rounds", True, "Narodytska and Kasiviswanathan 2017, arXiv 1612.06299"
        ),
        "fia": Attack(fia, "linf", "eps", False, "Wang et al. 2021, arXiv 2107.14185"),
        "pgd": Attack(pgd, "linf", "eps", False, "Madry et al. 2018, arXiv 1706.06083"),
        "square": Attack(square, "linf", "eps", True, "Andriushchenko et al. 2020, arXiv 1912.00049"),
    }
)
