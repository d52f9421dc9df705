"""What every stage of a twin sees, on stages that are written down."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.runtime.sequential_cases import sequential_test

from s2ap_defend.sequential import Signal, run_sequential_test
from s2ap_train.twin import Twin

X = torch.rand((6, 1, 2, 2), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def head(scale, asked=None):
    """Three classes whose logits are multiples of three pixels; what it was asked about goes to a list."""

    def stage(images):
        if asked is not None:
            asked.append(images.detach().clone())
        return ((scale * images.flatten(1)[:, :3]).log_softmax(1),)

    return stage


def mirror(images):
    """A purifier that is easy to see: 1 - x; what it leaves is the mean of the image."""
    return 1.0 - images, images.flatten(1).mean(1)


def twin(sees=("raw", "purified"), purify="always", purifier=mirror, test=None, **stages):
    return Twin(
        purifier=purifier,
        clamp_free_purifier=purifier,
        classifier=stages.get("classifier", head(1.0)),
        members=stages.get("members", (head(2.0), head(3.0))),
        test=test or sequential_test(len(sees)),
        device=CPU,
        sees=sees,
        purify=purify,
    )


def test_a_member_that_sees_raw_images_gets_the_image_itself_and_others_the_purified_one():
    asked = [], [], []
    stages = {"classifier": head(1.0, asked[0]), "members": (head(1.0, asked[1]), head(1.0, asked[2]))}
    twin(**stages).answers(X)
    assert torch.equal(asked[0][0], 1 - X)
    assert torch.equal(asked[1][0], X)
    assert torch.equal(asked[2][0], 1 - X)


def test_the_gradient_of_a_member_that_sees_raw_images_passes_no_purifier():
    found = {}
    for path in ("exact", "identity", "none"):
        x = X.clone().requires_grad_()
        _, members = twin().answers(x, path)
        found[path] = [torch.autograd.grad(one[:, 0].sum(), x, retain_graph=True)[0] for one in members]
    assert torch.equal(found["exact"][0], found["none"][0])
    assert torch.equal(found["identity"][0], found["none"][0])
    torch.testing.assert_close(found["identity"][1], -found["exact"][1])  # the slope of 1 - x


def test_on_the_path_none_nobody_sees_a_purifier():
    classifier, members = twin().answers(X, "none")
    assert torch.equal(classifier, head(1.0)(X)[0])
    assert torch.equal(members, torch.stack([head(2.0)(X)[0], head(3.0)(X)[0]]))


@pytest.mark.parametrize(("count", "expected"), [(None, 2), (1, 1), (0, None)])
def test_the_purifier_runs_once_for_all_who_are_asked(count, expected):
    runs = []

    def counted(images):
        runs.append(len(images))
        return mirror(images)

    _, members = twin(purifier=counted).answers(X, "exact", count)
    assert runs == [6]
    assert (None if members is None else len(members)) == expected


def test_verdicts_are_those_of_the_reference_on_what_each_stage_sees():
    test = sequential_test(2, lower=np.full(2, -1.0), upper=np.full(2, 1.0))
    ours = twin(test=test)
    said = ours.stage_answers(X.numpy())
    assert said.on_raw is None
    np.testing.assert_array_equal(said.members[0], head(2.0)(X)[0])
    np.testing.assert_array_equal(said.members[1], head(3.0)(1 - X)[0])
    np.testing.assert_array_equal(said.reconstruction_error, X.flatten(1).mean(1))
    verdicts, expected = ours.verdicts(X.numpy()), run_sequential_test(test, said)
    np.testing.assert_array_equal(verdicts.label, expected.label)
    np.testing.assert_array_equal(verdicts.log_likelihood_ratio, expected.log_likelihood_ratio)


def test_what_the_opening_accepts_keeps_the_classifiers_answer_on_the_raw_image():
    # The first member says the classifier's raw label of every image: all are accepted before anything is purified.
    test = sequential_test(2, lower=np.full(2, -1.0), answer="accurate")
    ours = twin(purify="suspicious", test=test)
    raw = head(1.0)(X)[0]
    np.testing.assert_array_equal(ours.stage_answers(X.numpy()).on_raw, raw)
    np.testing.assert_array_equal(ours.verdicts(X.numpy()).label, raw.argmax(1))
    always = twin(test=test).verdicts(X.numpy())
    np.testing.assert_array_equal(always.base_label, head(1.0)(1 - X)[0].argmax(1))


def test_the_reconstruction_error_is_there_for_a_test_that_counts_it():
    signal = Signal("reconstruction error", np.array([0.5], dtype=np.float32), np.array([-1.0, 1.0]))
    test = sequential_test(2, signals=(signal,), lower=np.full(2, -9.0), upper=np.full(2, 9.0))
    plain = twin(test=replace(test, signals=())).verdicts(X.numpy()).log_likelihood_ratio
    moved = twin(test=test).verdicts(X.numpy()).log_likelihood_ratio - plain
    np.testing.assert_array_equal(moved, np.where(X.flatten(1).mean(1) >= 0.5, 1.0, -1.0))


def test_without_its_purifier_all_see_the_image_and_the_first_twin_still_purifies():
    suspicious = twin(purify="suspicious")
    alone = suspicious.without_purifier()
    classifier, members = alone.answers(X)
    assert torch.equal(classifier, head(1.0)(X)[0])
    assert torch.equal(members[1], head(3.0)(X)[0])
    assert alone.stage_answers(X.numpy()).on_raw is None
    assert not torch.equal(suspicious.answers(X)[0], classifier)
