"""Attacks on defended model files and the report of what they reached."""

from s2ap_train.evaluate.adaptive import AdaptiveBudget
from s2ap_train.evaluate.protocol import ATTACKS, Evaluation, evaluate_file
from s2ap_train.evaluate.report import print_report

__all__ = ["ATTACKS", "AdaptiveBudget", "Evaluation", "evaluate_file", "print_report"]
