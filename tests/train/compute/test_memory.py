import pytest

from s2ap_train.compute.memory import images_at_once


@pytest.mark.parametrize(
    ("shape", "images"),
    [
        ((9, 1, 8, 8), 256),
        ((3, 64, 64), 256),
        ((3, 32, 128), 256),
        ((3, 128, 128), 64),
        ((3, 48, 192), 113),  # 256 * 4096 / 9216
        ((3, 256, 256), 16),
        ((3, 4096, 4096), 1),
    ],
)
def test_large_images_share_the_memory_of_many_of_64_by_64(shape: tuple[int, ...], images: int) -> None:
    assert images_at_once(256, shape) == images
