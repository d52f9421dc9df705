"""`s2ap-defend classify`: verdicts for image files and folders of them, printed as they come."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click
import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from s2ap_defend.commands.options import device_option, model_argument, on_white_option, resize_option
from s2ap_defend.engines import Device
from s2ap_defend.errors import InputError
from s2ap_defend.tables import harmless
from s2ap_defend.types import Resize, Verdicts

if TYPE_CHECKING:
    from s2ap_defend.classifier import DefendedClassifier
    from s2ap_defend.images import Entry

ROWS_PER_BATCH = 256
BATCH_BYTES = 64 * 1024 * 1024
"""Largest batch, so that a folder of any size needs no more memory than that."""
_WIDEST_CLASS = 24
_STYLES = {"clean": "green", "adversarial": "red", "undecided": "yellow", "not read": "magenta"}


class Report(Protocol):
    """What is printed of each image, in their order."""

    def verdict(self, row: dict[str, Any], *, of_many: bool) -> None:
        """Print a verdict."""

    def failure(self, entry: "Entry") -> None:
        """Print that an image could not be read."""

    def close(self) -> None:
        """Print the end."""


@click.command()
@model_argument
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, an image a line, instead of a table.")
@on_white_option
@resize_option
@device_option
def classify(
    model: Path,
    images: tuple[Path, ...],
    as_json: bool,
    on_white: bool,
    resize: Resize | Literal["trained"] | None,
    device: Device,
) -> None:
    """Purify, test and label images: files, folders, .npy or .npz of float32 [N, C, H, W] in [0, 1].

    Images are read as viewers show them, or refused (docs/images.md). Folders are searched to the bottom. An image that
    cannot be read does not stop the others; the exit code is 2 then.
    """
    from s2ap_defend.classifier import DefendedClassifier
    from s2ap_defend.images import ImageFiles, chosen_resize

    classifier = DefendedClassifier.load(model, device=device)
    how = chosen_resize(resize, classifier.manifest.input.resize)
    files = ImageFiles(classifier.input_shape, on_white, how)
    entries = chain.from_iterable(map(files.images, images))
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    report: Report = _Json() if as_json else _Lines(classifier.classes)
    answered = failed = 0
    try:
        for batch in _batches(entries, classifier.input_shape):
            for entry, row in _judged(classifier, batch):
                if row is not None:
                    answered += 1
                    report.verdict(row, of_many=entry.of_many)
                    continue
                if len(images) == 1 and entry.path == images[0]:
                    raise InputError(entry.error)
                failed += 1
                report.failure(entry)
                messages.print(harmless(f"not classified: {entry.error}"), style="yellow", markup=False)
    finally:
        report.close()
    if files.left_out.count:
        other = "" if files.left_out.count == 1 else f" and {files.left_out.count - 1} more"
        messages.print(harmless(f"left out, no images by their endings: {files.left_out.first}{other}"), markup=False)
    if failed:
        raise InputError(f"{failed} could not be read, {answered} classified; the reasons are above")


def _batches(entries: Iterable["Entry"], shape: tuple[int, int, int]) -> Iterator[list["Entry"]]:
    channels, height, width = shape
    rows = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // (4 * channels * height * width)))
    source = iter(entries)
    while batch := list(islice(source, rows)):
        yield batch


def _judged(classifier: "DefendedClassifier", batch: list["Entry"]) -> Iterator[tuple["Entry", dict[str, Any] | None]]:
    """Entries with what is printed of them, in order; None where an image could not be read."""
    import numpy as np

    images = [entry.image for entry in batch if entry.image is not None]
    verdicts = classifier(np.stack(images)) if images else None
    i = 0
    for entry in batch:
        if entry.image is None or verdicts is None:
            yield entry, None
        else:
            yield entry, _describe(classifier.classes, verdicts, i, entry)
            i += 1


def _describe(classes: tuple[str, ...], verdicts: Verdicts, i: int, entry: "Entry") -> dict[str, Any]:
    label = int(verdicts.label[i])
    base = int(verdicts.base_label[i])
    return {
        "file": str(entry.path),
        "index": entry.index,
        "label": label,
        "class": classes[label],
        "adversarial": bool(verdicts.adversarial[i]),
        "abstained": bool(verdicts.abstained[i]),
        "base_label": base,
        "base_class": classes[base],
        "probability": float(verdicts.probabilities[i, base]),
        "label_change_rate": float(verdicts.label_change_rate[i]),
        "log_likelihood_ratio": float(verdicts.log_likelihood_ratio[i]),
        "members_used": int(verdicts.members_used[i]),
        "votes": verdicts.votes[i].tolist(),
        "reconstruction_error": float(verdicts.reconstruction_error[i]),
    }


class _Json:
    """One array, an object a line, written as verdicts come."""

    def __init__(self) -> None:
        self._begun = False

    def verdict(self, row: dict[str, Any], *, of_many: bool) -> None:  # noqa: ARG002
        self._write(row)

    def failure(self, entry: "Entry") -> None:
        self._write({"file": str(entry.path), "index": entry.index, "error": entry.error})

    def close(self) -> None:
        click.echo("\n]" if self._begun else "[]")

    def _write(self, row: dict[str, Any]) -> None:
        readable = {key: _utf8(value) if isinstance(value, str) else value for key, value in row.items()}
        click.echo((",\n" if self._begun else "[\n") + orjson.dumps(readable).decode(), nl=False)
        self._begun = True


class _Lines:
    """A line for each image, never cut: what the file decided first, the path last; a terminal may wrap its end."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        widest = max(len("no answer"), *(min(_WIDEST_CLASS, cell_len(harmless(name))) for name in classes))
        self._widths = (len("adversarial"), widest, widest + len(" (100%)"), len("members"), len("disagree"), 8)
        self._console = Console(highlight=False, soft_wrap=True)
        self._begun = False

    def verdict(self, row: dict[str, Any], *, of_many: bool) -> None:
        verdict = "adversarial" if row["adversarial"] else "undecided" if row["abstained"] else "clean"
        name = f"{row['file']} [{row['index']}]" if of_many else row["file"]
        cells = (
            "no answer" if row["abstained"] else row["class"],
            f"{row['base_class']} ({row['probability']:.0%})",
            f"{row['members_used']:>{self._widths[3]}}",
            f"{row['label_change_rate']:>{self._widths[4]}.0%}",
            f"{row['log_likelihood_ratio']:>+{self._widths[5]}.2f}",
        )
        self._print(verdict, cells, name)

    def failure(self, entry: "Entry") -> None:
        self._print("not read", ("-",) * 5, str(entry.path))

    def close(self) -> None:
        pass

    def _print(self, verdict: str, cells: tuple[str, ...], name: str) -> None:
        if not self._begun:
            self._begun = True
            self._line("verdict", ("label", "classifier", "members", "disagree", "nats".rjust(8)), "image", "bold")
        self._line(verdict, cells, name, _STYLES[verdict])

    def _line(self, verdict: str, cells: tuple[str, ...], name: str, style: str) -> None:
        padded = [
            cell + " " * (width - cell_len(cell))
            for cell, width in zip(map(harmless, (verdict, *cells)), self._widths, strict=True)
        ]
        line = Text("  ".join((*padded, harmless(name))))
        line.stylize(style, 0, len(verdict) if style != "bold" else None)
        self._console.print(line, soft_wrap=True)


def _utf8(name: str) -> str:
    """A name that is no Unicode text, such as some systems allow for files, with escapes for what is none."""
    return name.encode("utf-8", "backslashreplace").decode()
