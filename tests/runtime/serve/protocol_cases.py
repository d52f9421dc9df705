"""What tests of the codec have in common: a served model, and one image for it."""

import numpy as np

from s2ap_defend.serve.served import ServedModel
from s2ap_defend.types import Verdicts

SHAPE = (1, 2, 3)
SERVED = ServedModel(model="digits", shape=SHAPE, classes=10)
OPEN = ServedModel(model="digits", shape=SHAPE, classes=10, outputs=Verdicts.FIELDS)
VALUES = [0.0, 0.25, 0.5, 0.75, 1.0, 0.125]
NESTED = [[[[0.0, 0.25, 0.5], [0.75, 1.0, 0.125]]]]
IMAGES = np.array(VALUES, dtype=np.float32).reshape(1, *SHAPE)
