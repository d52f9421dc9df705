"""Data sets: where the images come from, how they are checked, and how they are cut into five disjoint parts."""

from s2ap_train.data.digits import load_digits
from s2ap_train.data.facts import DataFacts, data_facts
from s2ap_train.data.image_set import ImageSet, Splits
from s2ap_train.data.load import load_data
from s2ap_train.data.settings import DataSettings
from s2ap_train.data.splitting import split

__all__ = ["DataFacts", "DataSettings", "ImageSet", "Splits", "data_facts", "load_data", "load_digits", "split"]
