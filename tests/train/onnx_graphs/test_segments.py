"""Checkpointed unrolling: the same gradient, to the last bit, from less memory."""

import weakref

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from s2ap_defend.model_file import open_model_file
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.twin import Twin, pipeline

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.uniform(0.1, 0.9, (3, 2, 4, 4)).astype(np.float32)
WEIGHT, BIAS = RANDOM.standard_normal((2, 2, 3, 3)).astype(np.float32), np.ones((2, 1, 1), np.float32)


def two_branches():
    """Thirteen operators: the second one's value is read again by the last, the fifth one's is an output."""
    nodes = [helper.make_node("Conv", ["image", "w"], ["h0"], pads=[1, 1, 1, 1])]
    for i, name in enumerate(("Sigmoid", "Exp", "Tanh", "Sqrt") * 2):
        nodes.append(helper.make_node(name, [f"h{i}"], [f"h{i + 1}"]))
    nodes += [
        helper.make_node("Shape", ["h8"], ["shape"]),
        helper.make_node("Expand", ["bias", "shape"], ["wide"]),
        helper.make_node("Mul", ["h8", "wide"], ["scaled"]),
        helper.make_node("Add", ["scaled", "h1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", 2, 4, 4))],
        [helper.make_empty_tensor_value_info(name) for name in ("y", "h4")],
        [numpy_helper.from_array(value, name) for name, value in (("w", WEIGHT), ("bias", BIAS))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, those that were made in it."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for storage in {t.untyped_storage() for t in tree_iter(result) if isinstance(t, torch.Tensor)}:
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.drop, key, size)
        return result

    def drop(self, key, size):
        self.known.discard(key)
        self.bytes -= size


def gradient(twin, images, path="exact"):
    x = torch.from_numpy(images).requires_grad_()
    return torch.autograd.grad(twin.classify(twin.purify(x, path))[:, 0].sum(), x)[0]


@pytest.mark.parametrize("segments", [2, 3, 5, 40])
def test_segments_change_neither_values_nor_gradients(segments):
    x = torch.from_numpy(IMAGE).requires_grad_()
    results = []
    for count in (1, segments):
        y, h = torch_stage(two_branches(), segments=count)(x)
        results.append((y.detach(), h.detach(), *torch.autograd.grad((y * h).sum(), x)))
    for whole, cut in zip(*results, strict=True):
        assert torch.equal(whole, cut)
    assert results[0][2].abs().min() > 0


def test_segments_end_where_the_fewest_values_are_alive():
    # Alive behind each operator, h1 and the output h4 included: 1 1 2 2 2 3 3 3 3 4 4 3. Of the eight places around the
    # middle, 3 to 10, two are alive behind the third, fourth and fifth, and the fifth is the nearest.
    first, second = torch_stage(two_branches(), segments=2)._segments
    assert (len(first.steps), len(second.steps), len(second.inputs)) == (5, 8, 2)
    for count in (3, 5, 13, 40):
        parts = torch_stage(two_branches(), segments=count)._segments
        assert sum(len(part.steps) for part in parts) == 13
        assert 1 < len(parts) <= count


def test_a_stage_has_a_segment():
    with pytest.raises(ValueError, match="one segment or more, got 0"):
        torch_stage(two_branches(), segments=0)


@pytest.mark.parametrize("path", ["exact", "straight_through"])
def test_the_gradient_through_the_purifier_is_the_same_from_less_memory(tiny_model_path, random_images, path):
    file = open_model_file(tiny_model_path)
    found, peaks = [], []
    for segments in (1, 4):
        twin = Twin.from_file(file, segments=segments)
        with Live() as live:
            found.append(gradient(twin, random_images[:32], path))
        peaks.append(live.peak)
    assert torch.equal(*found)
    assert peaks[1] < 0.6 * peaks[0], "one step with a look ahead asks the score model twice: about a half is kept"


def test_a_purifier_is_cut_where_it_asks_its_score_model_once_its_memory_counts(tiny_model_path, monkeypatch):
    file = open_model_file(tiny_model_path)
    assert Twin.from_file(file)._purifier._segments == ()
    kept = pipeline.kept_bytes(torch_stage(pipeline.cut_stage(file.proto, "purifier")), (1, 8, 8), torch.device("cpu"))
    for limit, segments in ((256 * kept, 0), (256 * kept - 1, 2)):
        monkeypatch.setattr(pipeline, "UNCUT_BYTES", limit)
        assert len(Twin.from_file(file)._purifier._segments) == segments


def test_what_the_backward_pass_keeps_is_counted_by_image():
    # 32 numbers each: Sigmoid, Exp, Tanh and Sqrt keep their eight results, Conv its input, Mul the widened bias, for
    # h8 alone asks for a gradient there. The weights of Conv, which it keeps too, do not grow with the images.
    kept = pipeline.kept_bytes(torch_stage(two_branches()), (2, 4, 4), torch.device("cpu"))
    assert kept == (8 + 1 + 1) * 32 * 4
