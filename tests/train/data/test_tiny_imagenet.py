"""Tiny-ImageNet in its own layout."""

from pathlib import Path

import pytest
from tests.train.toy_images import labelled, load, picture, write_folder, write_zip

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import read


def tiny_imagenet() -> dict[str, bytes]:
    """Tiny-ImageNet's layout with three classes, of which two have the same name, and one grey image."""
    numbers = ("n01443537", "n02129165", "n03126707")
    contents = {}
    lines = []
    for label, number in enumerate(numbers):
        for n in range(8):
            mode = "L" if n == 0 else "RGB"
            contents[f"train/{number}/images/{number}_{n}.JPEG"] = picture(10 * label + n, mode=mode, kind="JPEG")
        contents[f"train/{number}/{number}_boxes.txt"] = b"x\t0\t0\t5\t5\n"
        for n in range(2):
            name = f"val_{label}{n}.JPEG"
            contents[f"val/images/{name}"] = picture(1000 + 10 * label + n, kind="JPEG")
            lines.append(f"{name}\t{number}\t0\t0\t5\t5\n")
    contents["test/images/test_0.JPEG"] = picture(5000, kind="JPEG")
    contents["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    contents["wnids.txt"] = "".join(f"{number}\n" for number in reversed(numbers)).encode()
    contents["words.txt"] = (
        b"n00000001\tentity\nn01443537\tgoldfish, Carassius auratus\nn02129165\tcrane\nn03126707\tcrane\n"
    )
    return contents


@pytest.mark.parametrize("prefix", ["", "tiny-imagenet-200/"])
def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path: Path, prefix: str) -> None:
    contents = tiny_imagenet()
    whole = {prefix + name: content for name, content in contents.items()}
    splits = load(write_zip(tmp_path / "tiny.zip", whole))
    assert splits.classes == ("goldfish, Carassius auratus", "crane (n02129165)", "crane (n03126707)")
    assert splits.image_shape == (3, 6, 6)
    assert labelled(splits, "test") == {
        read(content, (3, 6, 6)).tobytes(): splits.classes[int(name.split("_")[1][0])]
        for name, content in contents.items()
        if name.startswith("val/images")
    }
    assert sum(len(part) for part in splits.by_name.values()) == 24 + 6
    assert load(write_folder(tmp_path / "tiny", whole)).sha256() == splits.sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val/val_annotations.txt": b"val_00.JPEG n01443537\n"}, "val_annotations.txt, line 1, is 'val_00.JPEG n01"),
        ({"val/val_annotations.txt": b"\xff\xfe"}, "is not UTF-8 text"),
        ({"val/images/val_99.JPEG": picture(9)}, r"val/images/val_99\.JPEG has no class in val/val_annotations\.txt"),
        ({"val/images/val_00.JPEG": None}, r"lists val_00\.JPEG, which is not in val/images"),
        ({"wnids.txt": b"n01443537\nn02129165\n"}, "has the class 'n03126707', which train lacks"),
        ({"wnids.txt": b"n01443537\nn02129165\nn03126707\nn9\n", "words.txt": b"n9\tfish"}, "no image of class 'fish'"),
    ],
)
def test_tiny_imagenet_whose_lists_disagree_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    contents = {name: content for name, content in {**tiny_imagenet(), **change}.items() if content is not None}
    with pytest.raises(RecipeError, match=message):
        load(write_folder(tmp_path, contents))
