"""The choice of the purifier: a sweep over settings under a white-box attack on validation images."""

from s2ap_train.hardening.purifier_choice.choice import check_grid, choose, choose_purifier, stored_share
from s2ap_train.hardening.purifier_choice.decision import By
from s2ap_train.hardening.purifier_choice.report import print_choice

__all__ = ["By", "check_grid", "choose", "choose_purifier", "print_choice", "stored_share"]
