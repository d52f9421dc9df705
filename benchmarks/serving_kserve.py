"""KServe's SDK with a model that takes no time, as its documentation begins, for benchmarks/serving.py.

    python benchmarks/serving_kserve.py 8000

It needs the SDK and nothing of this repository, so that it may have an environment of its own.
"""

import sys

import kserve
import numpy as np
from kserve.utils.utils import generate_uuid

ANSWER = {"label": ("INT64", [0]), "adversarial": ("BOOL", [False]), "abstained": ("BOOL", [False])}


class Stub(kserve.Model):
    """Answers the Open Inference Protocol with the same verdicts."""

    def load(self) -> bool:
        """Nothing is loaded."""
        self.ready = True
        return True

    def predict(self, payload: kserve.InferRequest, _: dict[str, str] | None = None) -> kserve.InferResponse:
        """The verdicts of one image."""
        images, outputs = payload.inputs[0].as_numpy(), []
        for name, (datatype, values) in ANSWER.items():
            output = kserve.InferOutput(name, [len(images)], datatype)
            output.set_data_from_numpy(np.array(values), binary_data=False)
            outputs.append(output)
        return kserve.InferResponse(payload.id or generate_uuid(), self.name, outputs)


if __name__ == "__main__":
    model = Stub("stub")
    model.load()
    kserve.ModelServer(http_port=int(sys.argv[1]), workers=1, enable_grpc=False).start([model])
