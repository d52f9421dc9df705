"""Whether a file stays as it is: memory and verdicts over many batches, and of many threads at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from s2ap_defend.bench.memory import resident_bytes
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.types import Float32, Verdicts

__all__ = ["THREADS", "Steady", "measure_steady"]

THREADS = 8
_BATCHES_OF_A_THREAD = 50


@dataclass(frozen=True)
class Steady:
    """What many batches of one image each left behind.

    Attributes:
        batches: In a row, on one thread.
        different: Those of them whose verdicts had other bits than at first.
        threads: That shared the classifier afterwards.
        threads_batches: Batches of theirs.
        threads_different: Those of them whose verdicts had other bits than at first.
        early_bytes: Resident memory after a tenth of the batches; None where the system does not tell.
        late_bytes: After all.
    """

    batches: int
    different: int
    threads: int
    threads_batches: int
    threads_different: int
    early_bytes: int | None
    late_bytes: int | None

    @property
    def grown_bytes(self) -> int | None:
        """Memory that came after the first tenth."""
        return None if self.early_bytes is None or self.late_bytes is None else self.late_bytes - self.early_bytes


def measure_steady(classifier: DefendedClassifier, images: Float32, batches: int) -> Steady:
    """Run batches of one image, in turn, and compare every output of every batch with that of the first.

    Args:
        classifier: The file.
        images: Its images [N, C, H, W].
        batches: How many in a row, at least 1.
    """
    parts = [images[i : i + 1] for i in range(len(images))]
    expected = [_bits(classifier, part) for part in parts]

    def differs(number: int) -> bool:
        return _bits(classifier, parts[number % len(parts)]) != expected[number % len(parts)]

    different, early = 0, None
    for number in range(batches):
        different += differs(number)
        if number == batches // 10:
            early = resident_bytes()
    late, shared = resident_bytes(), _BATCHES_OF_A_THREAD * THREADS
    with ThreadPoolExecutor(THREADS) as threads:
        of_threads = sum(threads.map(differs, range(shared)))
    return Steady(batches, different, THREADS, shared, of_threads, early, late)


def _bits(classifier: DefendedClassifier, images: Float32) -> bytes:
    verdicts = classifier(images)
    return b"".join(getattr(verdicts, name).tobytes() for name in Verdicts.FIELDS)
