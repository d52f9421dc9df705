"""A defended file as other libraries attack it: a torch module with gradients, foolbox's model, ART's black box.

Whatever a library reports, success is for the file to say (`s2ap_defend.types.Verdicts`): a library counts neither
flags nor answers that are not given, and the twin equals the file up to rounding alone.
"""

from s2ap_train.views.black_box import art_black_box
from s2ap_train.views.module import DefendedModule, as_foolbox

__all__ = ["DefendedModule", "art_black_box", "as_foolbox"]
