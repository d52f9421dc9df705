"""Weights in a file next to the model file (ONNX external data): found, mapped into memory, written.

What lies there is read where it is needed, a tensor at a time; nothing loads the whole file.
"""

import mmap
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from s2ap_defend.errors import ModelFileError

__all__ = ["THRESHOLD", "data_file", "fill", "locations", "own_data", "tensor_array", "tensor_bytes"]

THRESHOLD = 1024
"""Bytes from which a tensor goes to external data."""
_PACKED = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1, TensorProto.STRING}
"""Types of which several values share a byte, or that have no fixed size."""


def locations(tensors: Iterable[TensorProto]) -> list[str]:
    """Names of the files of external data that tensors lie in, sorted."""
    return sorted({entry.value for one in tensors for entry in one.external_data if entry.key == "location"})


def own_data(path: Path) -> list[Path]:
    """Files of external data that by their names belong to a model file at this path, and to no other."""
    name = re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]{{12}})?\.data")
    return sorted(one for one in path.parent.glob("*.data") if name.fullmatch(one.name))


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, wherever they lie."""
    width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * width


def tensor_array(tensor: TensorProto, folder: Path) -> NDArray[np.generic]:
    """The values of a tensor; those in external data are mapped, and read when they are touched.

    Args:
        tensor: Of a model file.
        folder: Of that file.

    Raises:
        ValueError: If the file of its data is too short for it.
        OSError: If that cannot be read.
    """
    if tensor.data_location != TensorProto.EXTERNAL or tensor.data_type in _PACKED:
        return numpy_helper.to_array(tensor, str(folder))
    said = {entry.key: entry.value for entry in tensor.external_data}
    offset, wanted = int(said.get("offset", 0)), tensor_bytes(tensor)
    length = int(said.get("length", wanted))
    path = folder / said["location"]
    size = path.stat().st_size
    if length != wanted or offset < 0 or offset + length > size:
        raise ValueError(
            f"{tensor.name} takes {wanted} bytes from {offset} on, by its shape, which exceeds what {path.name} has "
            f"for it: {min(length, max(0, size - offset))} of {size} bytes"
        )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    if not wanted:
        return np.empty(tuple(tensor.dims), dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), offset + length - start, access=mmap.ACCESS_READ, offset=start)
    return np.frombuffer(mapped, dtype, offset=offset - start, count=wanted // dtype.itemsize).reshape(tensor.dims)


def fill(model: ModelProto, folder: Path) -> ModelProto:
    """Copy what lies in external data into the tensors of a model, which is given back.

    Raises:
        OSError, ValueError, onnx.checker.ValidationError: If it cannot be read.
    """
    onnx.load_external_data_for_model(model, str(folder))
    return model


def data_file(path: Path, location: str) -> Path:
    """The file of external data that a model names, if it is one that onnx and ONNX Runtime read.

    They refuse links, which could lead them to any file of this machine; here the reason is said.

    Raises:
        ModelFileError: If it is none.
    """
    if location != Path(location).name or location in {"", ".."} or "\0" in location:
        raise ModelFileError(
            f"{path} says that its external data is at {location!r}, expected the bare name of a file next to it; "
            "export the model again"
        )
    data = path.with_name(location)
    if data.is_symlink():
        raise ModelFileError(
            f"{data} is a symbolic link, as in a Hugging Face cache, and external data must be a regular file; copy "
            f"both files into one folder (cp -L {path} {data} FOLDER) or fetch them into one (local_dir), and name "
            f"FOLDER/{path.name}"
        )
    if not data.is_file():
        raise ModelFileError(f"{data}, the external data of {path.name}, is not there; both files travel together")
    if data.stat().st_nlink > 1:
        raise ModelFileError(
            f"{data} has more than one hard link, and external data must be a file of its own; copy both files into "
            f"one folder (cp {path} {data} FOLDER) and name FOLDER/{path.name}"
        )
    return data
