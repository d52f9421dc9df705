"""What tests send over gRPC."""

from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype


def tensor(images) -> InferInput:
    made = InferInput("image", list(images.shape), np_to_triton_dtype(images.dtype))
    made.set_data_from_numpy(images)
    return made
