"""Tables of a manifest: what attacks left when the file was made, and with what it can be evaluated again."""

from typing import Literal

from pydantic import JsonValue, model_validator

from s2ap_defend.manifest_fields import Amount, Count, ManifestTable, Positive, Rate, Sha256, check_accuracies

__all__ = ["Measurement", "Protocol"]


class Measurement(ManifestTable):
    """Accuracy under one attack, measured on `samples` test images when the file was made.

    Attributes:
        attack: Its name.
        eps: Its l_inf budget, pixels in [0, 1].
        samples: Test images.
        bare_accuracy: Labels of the classifier alone that are right under the same attack, made on it.
        robust_accuracy: Final label right, or flagged, or not answered.
        label_accuracy: Final label right, flagged or not.
        flagged: Images flagged.
        members_used: Members asked, mean.
    """

    attack: str
    eps: Amount
    samples: Positive
    bare_accuracy: Rate
    robust_accuracy: Rate
    label_accuracy: Rate
    flagged: Rate
    members_used: Amount

    @model_validator(mode="after")
    def _right_is_right_or_flagged(self) -> "Measurement":
        check_accuracies(self.label_accuracy, self.robust_accuracy)
        return self


class Protocol(ManifestTable):
    """With what the file can be evaluated again, if the data are there.

    Attributes:
        split: Settings of the data set and of its cut, all but where it lies.
        test_sha256: Of the test images and their labels.
        eps: l_inf budget of the attacks, pixels in [0, 1].
        l2: l2 budget; null: it follows from eps.
        pixels: l0 budget, positions.
        samples: Test images.
        budget: Work of the attacks.
    """

    split: dict[str, JsonValue]
    test_sha256: Sha256
    eps: Amount
    l2: Amount | None
    pixels: Count
    samples: Positive
    budget: Literal["quick", "standard", "full"]
