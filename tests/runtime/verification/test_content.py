"""A file is data only: what would name a machine or hold code is found, whatever place it hides in."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from s2ap_defend.verification.content import foreign_content, is_code


def archive() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as written:
        written.writestr("data.pkl", b"")
    return held.getvalue()


def add_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Fancy", ["image"], ["x"], name="member_000/fancy", domain="com.vendor"))


def add_in_branch(model: ModelProto) -> None:
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    branch.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/root/train/net.py", line 9')


def add_pickle(model: ModelProto) -> None:
    data = np.frombuffer(pickle.dumps({"weights": [1, 2, 3]}), dtype=np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(data, "member_000/extra"))


def add_archive(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("member_000/zip", TensorProto.STRING, [1], [archive()]))


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (add_operator, "operator com.vendor.Fancy (member_000/fancy)"),
        (lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "of 'com.microsoft'"),
        (
            lambda model: model.functions.append(
                helper.make_function("own", "Twice", ["a"], ["b"], [], [helper.make_opsetid("", 20)])
            ),
            "1 functions, the first is Twice",
        ),
        (add_in_branch, "'/root/train' in"),
        (
            lambda model: model.metadata_props.add(key="made", value="C:\\Users\\me"),
            "'C:\\\\Users' in the metadata made",
        ),
        (lambda model: model.metadata_props.add(key="from", value="https://host/x"), "'https://host/x' in the metad"),
        (lambda model: setattr(model, "doc_string", "see ~/nets"), "'~/nets' in the description"),
        (lambda model: setattr(model.graph.initializer[0], "doc_string", "/mnt/x"), "'/mnt/x' in"),
        (add_pickle, "a pickle or archive in member_000/extra"),
        (add_archive, "a pickle or archive in member_000/zip"),
    ],
)
def test_what_no_file_may_hold_is_found(plant: Callable[[ModelProto], None], found: str, tiny_model_path: Path) -> None:
    model = onnx.load(tiny_model_path)
    assert foreign_content(model) == []
    plant(model)
    (said,) = foreign_content(model)
    assert found in said


@pytest.mark.parametrize(
    "text",
    [
        "and/or",
        "1/256 of a vote",
        "eps 8/255",
        "member_000/node_1",
        "/m/01g317",
        "mynets:build",
        "a: b",
        "q0/q1: 0.1/0.4",
    ],
)
def test_what_only_looks_like_a_path_is_none(text: str, tiny_model_path: Path) -> None:
    model = onnx.load(tiny_model_path)
    model.metadata_props.add(key="said", value=text)
    assert foreign_content(model) == []


def test_numbers_that_begin_as_a_pickle_does_are_none() -> None:
    assert is_code(pickle.dumps([1, 2]))
    assert is_code(archive())
    assert not is_code(b"\x80\x04" + bytes(range(0, 200, 7)))
    assert not is_code(b"")
