"""Calibration: from what the members said of held-out inputs to the tables of the sequential test.

Graded evidence in bins with a monotone log-likelihood table, greedy order by detection power, Wald's boundary for
'clean' and a conformal boundary for 'adversarial' (Bates et al. 2023, arXiv 2104.08279): on inputs exchangeable with
the calibration inputs the false-alarm rate is at most alpha, however the members are correlated. The simpler tests,
down to the paper's, are compiled to the same tables.
"""

from s2ap_train.calibration.answers import Answers
from s2ap_train.calibration.boundaries import (
    FalseAlarms,
    alarm_statistic,
    conformal_boundary,
    false_alarms,
    samples_needed,
)
from s2ap_train.calibration.calibration import Calibration, calibrate
from s2ap_train.calibration.correlation import Correlation, member_correlation
from s2ap_train.calibration.evidence import MemberTables, cross_fitted_evidence, fit_tables
from s2ap_train.calibration.jury import Jury, jury_label
from s2ap_train.calibration.ordering import auroc, greedy_order
from s2ap_train.calibration.settings import Detection
from s2ap_train.calibration.weakness import OnWeakness, Weakness, refuse

__all__ = [
    "Answers",
    "Calibration",
    "Correlation",
    "Detection",
    "FalseAlarms",
    "Jury",
    "MemberTables",
    "OnWeakness",
    "Weakness",
    "alarm_statistic",
    "auroc",
    "calibrate",
    "conformal_boundary",
    "cross_fitted_evidence",
    "false_alarms",
    "fit_tables",
    "greedy_order",
    "jury_label",
    "member_correlation",
    "refuse",
    "samples_needed",
]
