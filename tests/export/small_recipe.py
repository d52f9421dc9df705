"""The digits recipe with networks too small and short to defend anything."""

SMALL = {
    "model.widths": "[4, 4, 8]",
    "plain.epochs": 2,
    "adversarial.epochs": 2,
    "pruning.training.epochs": 2,
    "finetune.epochs": 1,
    "members.robust.count": 2,
    "members.robust.models": '[{name = "small_cnn", widths = [4, 4, 8]}]',
    "members.robust.pretraining.epochs": 1,
    "members.robust.pruning.training.epochs": 2,
    "members.robust.finetune.epochs": 1,
    "members.random_channel.count": 2,
    "members.random_channel.settings.training.epochs": 1,
    "members.fresh_channel.count": 0,
    "members.lottery_ticket.count": 0,
    "members.l1_norm.count": 1,
    "members.l1_norm.settings.training.epochs": 1,
    "score_model.epochs": 1,
    "score_model.width": 8,
    "purifier.steps": 1,
    "decision_choice.samples": 10,
    "decision_choice.steps": 1,
    "evaluation.samples": 10,
    "evaluation.attacks": '"fgsm,pgd,apgd-ce,unrolled-pgd"',
    "choice.samples": 12,
    "choice.steps": 2,
    "choice.settings": "[]",
}
OVERRIDES = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
"""Options of `harden`."""
