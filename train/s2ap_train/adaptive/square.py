"""Square attack, black box and end to end: it asks the system itself and needs no gradient."""

from s2ap_defend.types import Float32
from s2ap_train.adaptive.systems import System
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet


def square(system: System, data: ImageSet, *, eps: float, queries: int, seed: int) -> Float32:
    """Attacked images [N, C, H, W] after a random search of square patches (Andriushchenko et al. 2020).

    Andriushchenko et al., arXiv 1912.00049, with the score of the system instead of its margin. Images that already
    succeed are returned as they are.

    Args:
        system: What is attacked.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        queries: Queries per image.
        seed: Of the search.
    """
    return square_search(
        lambda images, labels: system(images, labels).score,
        data.images,
        data.labels,
        eps=eps,
        queries=queries,
        seed=seed,
    )
