"""Several pruning runs side by side: means over seeds, paired differences, stability; as text, pictures and a page."""

from s2ap_train.commands.compare.comparison import Comparison, compare_runs
from s2ap_train.commands.compare.runs import find_runs

__all__ = ["Comparison", "compare_runs", "find_runs"]
