"""What tables of settings have in common."""

from s2ap_train.settings.table import REFUSED, Table, placed

__all__ = ["REFUSED", "Table", "placed"]
