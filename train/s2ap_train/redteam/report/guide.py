"""What stands under every report: how it is read, whom it is about, and what it does not cover."""

__all__ = ["ABLATION_LEGEND", "COSTS_LEGEND", "COVERED", "HOW_TO_READ", "NOT_COVERED"]

HOW_TO_READ = (
    "An attack wins when the input is answered, not flagged, and the final label is wrong. Images that are wrong "
    "without an attack count as won.",
    "worst case: an image counts as lost as soon as one attack in the l_inf ball wins on it, whatever that attack was "
    "made for. Robust accuracy is the share of images on which none did: an upper bound, since a stronger attack may "
    "find more.",
    "knows: what the attacker has. Attacks that know only the classifier are made on it and replayed on the file; "
    "their figures say little about an attacker who knows the defence, so read them beside the worst case.",
    "bare: the classifier inside the file, alone, under the same attack made on it; '-' where there is nothing to "
    "attack in it. corrected: flagged, and the final label is the true one. label: final label right, flagged or "
    "not; only attacks with the goal 'wrong label' aim at it. asked: members on average.",
    "Intervals hold 95 % (Clopper and Pearson): they speak of other images from the same source, not of other "
    "attacks and not of other training seeds.",
)
COVERED = (
    "The attacker changes the image before it reaches the file, within the stated budgets, in floating point. He has "
    "the file itself: every weight, table, threshold and the noise bank. Nothing in it is a secret.",
    "He may ask the file as often as his budget says, and sees the verdict and the evidence.",
)
NOT_COVERED = (
    "Patches, stickers and other changes of a few regions beyond any budget.",
    "Physical attacks: prints, lighting, camera angle, and rotations, translations or scaling of the image.",
    "Poisoned training data, a back door in the classifier, or a forged file: sign the file.",
    "Extraction of the classifier by many queries, and what the members' answers give away of the training data.",
    "Inputs from another distribution than the calibration data: the false-alarm rate holds for images like those.",
    "Larger budgets, other norms, and attacks that are not in the table.",
)
COSTS_LEGEND = (
    "p-values are those of each pair alone: they are not corrected for the number of pairs, and up to one in "
    "twenty is below .05 where a part changes nothing."
)
ABLATION_LEGEND = (
    "clean: answered and right without attack. PGD: not broken by an attack made on the row's own classifier, without "
    "its defence.",
    "adaptive: worst case per image of all attacks; the attacker knows everything in the row, thresholds included, "
    "and wins when the input is not flagged and the final label is wrong. Every row also faces what was found for the "
    "others.",
    "label: the same, if a flagged image with a wrong label, or an unanswered one, counts against the defence too; "
    "descents do not aim at it.",
    "Only the full defence and the undefended classifier face every attack of this evaluation. Every other row faces "
    "one plan of descents, PGD and what was found for others: it was attacked less, so its figures are the looser "
    "bounds.",
    "flagged: clean images / images under the adaptive attack. asked: members for a clean image. ms: one clean image "
    "alone.",
)
