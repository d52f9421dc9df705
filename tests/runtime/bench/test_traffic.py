import numpy as np
import pytest
from PIL import Image

from s2ap_defend.bench.traffic import find_traffic
from s2ap_defend.errors import InputError
from s2ap_defend.images import ImageFiles

FILES = ImageFiles((1, 8, 8))


def written(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(path)
    return path


def levels(traffic):
    """8-bit grey of every image."""
    return (traffic.images[:, 0, 0, 0] * 255).round().astype(int).tolist()


def find(kind, tmp_path, most=4, **given):
    given = {"data": [], "attacked": []} | given
    return find_traffic(kind, FILES, tmp_path / "model.onnx", most=most, **given)


def test_images_of_a_folder_with_a_folder_for_each_class_are_of_all_classes(tmp_path):
    for i in range(40):
        written(tmp_path / "data" / f"{i // 10}" / f"{i:02}.png", i)
    found = levels(find("clean", tmp_path, most=4, data=[tmp_path / "data"]))
    assert sorted(level // 10 for level in found) == [0, 1, 2, 3]


def test_mixed_traffic_is_clean_and_attacked_images_in_turn_whatever_there_are_of_each(tmp_path):
    clean, attacked = tmp_path / "clean.npy", tmp_path / "attacked.npz"
    np.save(clean, np.zeros((5, 1, 8, 8), dtype=np.float32))
    np.savez(attacked, images=np.ones((2, 1, 8, 8), dtype=np.float32))
    found = find("mixed", tmp_path, most=8, data=[clean], attacked=[attacked])
    assert levels(found) == [0, 255] * 4
    assert found.source == f"5 clean from {clean} in turn with 2 attacked from {attacked}"


def test_few_images_come_again_from_the_first(tmp_path):
    path = tmp_path / "three.npy"
    np.save(path, np.arange(3, dtype=np.float32)[:, None, None, None] / 255 + np.zeros((3, 1, 8, 8), np.float32))
    found = find("clean", tmp_path, data=[path])
    assert sorted(levels(found)) == [0, 1, 2]
    np.testing.assert_array_equal(found.first(5), found.images[[0, 1, 2, 0, 1]])


def test_without_data_the_demonstrations_images_next_to_the_file_are_taken(tmp_path):
    written(tmp_path / "demo" / "3-clean-2.png", 10)
    written(tmp_path / "demo" / "3-attacked-2.png", 20)
    assert levels(find("clean", tmp_path)) == [10]
    attacked = find("attacked", tmp_path)
    assert levels(attacked) == [20]
    assert attacked.source == f"1 attacked from {tmp_path / 'demo'}"
    assert attacked.typical


def test_without_any_images_clean_traffic_is_noise_and_says_so(tmp_path):
    found = find("clean", tmp_path)
    assert found.images.shape == (4, 1, 8, 8)
    assert found.source == "4 images of uniform noise, for want of clean ones"
    assert not found.typical


@pytest.mark.parametrize("kind", ["attacked", "mixed"])
def test_attacked_images_are_never_made_up(kind, tmp_path):
    with pytest.raises(InputError, match=f"--traffic {kind} needs attacked images, and there are none next to"):
        find(kind, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 1, 9, 8), np.float32), "images have shape"),
        (np.full((3, 1, 8, 8), 2, np.float32), "divide 8-bit pixels by 255"),
        (np.zeros((0, 1, 8, 8), np.float32), "the batch is empty"),
    ],
)
def test_images_that_do_not_fit_are_refused(content, message, tmp_path):
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(InputError, match=message):
        find("clean", tmp_path, data=[tmp_path / "bad.npy"])
