"""What jobs found on disk: the same bits again, and nothing that another key wrote or that was damaged."""

import math

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from s2ap_defend.errors import RecipeError
from s2ap_train.jobs import Found, Store

IMAGES = np.random.default_rng(0).random((3, 1, 4, 4), dtype=np.float32)
FOUND = Found(
    IMAGES.transpose(0, 1, 3, 2),
    {"broken_by": {"pgd": 2}, "level": math.inf, "seconds": 0.1 + 0.2},
    {"by": np.array([0, 2, 1]), "right": np.array([True, False, True]), "count": np.array(7)},
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, ("networks", 1))


def assert_same(one, other):
    assert dict(one.notes) == dict(other.notes)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in {**one.arrays, "images": one.images}.items():
        found = {**other.arrays, "images": other.images}[name]
        assert (array.dtype, array.shape) == (found.dtype, found.shape)
        assert np.array_equal(array, found)


def the_file(folder):
    (path,) = folder.iterdir()
    return path


def test_what_was_found_is_loaded_bit_by_bit_whatever_its_memory_layout(store, tmp_path):
    store.save("a", FOUND)
    assert the_file(tmp_path).suffix == ".safetensors"
    for again in (store.load("a"), Store(tmp_path, ("networks", 1)).load("a")):
        assert_same(again, FOUND)
        assert again.sha256() == FOUND.sha256()
        again.images[0] = 0.0  # its own memory


def test_another_key_finds_nothing(store, tmp_path):
    store.save("a", FOUND)
    assert store.load("b") is None
    assert Store(tmp_path, ("networks", 2)).load("a") is None


def test_without_a_folder_it_remembers_what_was_found():
    store = Store(None, "key")
    assert store.load("a") is None
    store.save("a", FOUND)
    assert_same(store.load("a"), FOUND)


def test_a_file_that_is_damaged_or_foreign_counts_as_missing(store, tmp_path):
    store.save("a", FOUND)
    path = the_file(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for damage in (b"", b"{}", whole[:-1], whole[:100], bytes(flipped), whole.replace(b'pgd\\": 2', b'pgd\\": 3')):
        assert damage != whole
        path.write_bytes(damage)
        assert store.load("a") is None
    save_file(load(whole), path)  # no metadata
    assert store.load("a") is None
    store.save("b", FOUND)
    (other,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert store.load("a") is None
    path.write_bytes(whole)
    assert store.load("a") is not None


def test_what_no_job_may_note_is_our_own_bug(store, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save("a", Found(IMAGES, {"images": IMAGES}))
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_said_in_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(RecipeError, match=r"store.*cannot be written .*name another folder"):
        Store(tmp_path / "store", "key").save("job", Found(np.zeros((1, 1, 2, 2), np.float32)))
    folder = tmp_path / "folder"
    store = Store(folder, "key")
    store.save("job", Found(np.zeros((1, 1, 2, 2), np.float32)))
    entry = next(folder.iterdir())
    entry.unlink()
    entry.mkdir()
    with pytest.raises(RecipeError, match="cannot be written"):
        store.save("job", Found(np.zeros((1, 1, 2, 2), np.float32)))
    assert [path.name for path in folder.iterdir()] == [entry.name]


def test_entries_of_a_store_are_counted_by_their_number_of_images(store, tmp_path):
    assert Store(tmp_path / "nowhere", "key").count(3) == Store(None, "key").count(3) == 0
    for name in "ab":
        store.save(name, FOUND)
    Store(tmp_path, ("networks", 2)).save("c", FOUND)
    (tmp_path / "damaged.safetensors").write_bytes(b"no header")
    save_file({"images": IMAGES}, tmp_path / "unmarked.safetensors", {"notes": "{}"})  # of an older version
    assert store.count(3) == 3
    assert store.count(4) == 0
