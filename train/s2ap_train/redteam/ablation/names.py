"""Names of the rows of the ablation."""

from s2ap_defend.sequential import Correction

__all__ = ["ADVERSARIAL", "BARE", "CONFIDENCE", "FULL", "JURY", "PRUNED", "UNFLAGGED", "UNPURIFIED", "WIDER"]

BARE = "bare classifier"
"""The classifier of the file, alone."""
ADVERSARIAL = "adversarially trained"
"""The recipe's classifier, trained against attacks, unpruned; from the work folder of the hardening."""
PRUNED = "robust classifier alone"
"""The first juror of the file, alone."""
CONFIDENCE = "least confident flagged"
"""The first juror, whose least confident inputs are flagged as often on clean images as the file flags."""
WIDER = "wider, same compute"
"""An adversarially trained classifier that costs what the file does."""
JURY = "jury only"
"""The vote of all jurors, each on what it sees in the file; nothing is flagged."""
UNFLAGGED = "answer, never flagged"
"""The file whose test never flags."""
UNPURIFIED = "full, no purifier"
"""The file whose classifier and members all see the image as it came."""
FULL: dict[Correction, str] = {"reject": "full, reject", "correct": "full, correct", "keep": "full, keep"}
"""The whole file, by what flagged images get; one of them is served."""
