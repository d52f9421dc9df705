"""An evaluation as one HTML file: no network, no script, nothing beside it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from s2ap_defend.model_file import replace_file
from s2ap_defend.tables import harmless
from s2ap_defend.types import Float32
from s2ap_train.page import TableText, html_image, html_note, html_page, html_picture, html_table
from s2ap_train.redteam.report.console import rejecting_in_words
from s2ap_train.redteam.report.effects import against_pruned_in_words, cost_in_words
from s2ap_train.redteam.report.guide import ABLATION_LEGEND, COSTS_LEGEND, COVERED, HOW_TO_READ, NOT_COVERED
from s2ap_train.redteam.report.plots import pictures
from s2ap_train.redteam.report.tables import (
    WORST_CASE,
    ablation_table,
    assumptions_table,
    attack_tables,
    configuration_table,
    curve_tables,
    detection_table,
    goal_table,
)
from s2ap_train.redteam.report.words import (
    caveats,
    check_result,
    found_in_words,
    headline,
    labels_attacked,
    percent,
    search_in_words,
    summary,
    unanswered,
    verdict,
)
from s2ap_train.redteam.results import Check, Evaluation, GalleryItem

__all__ = ["evaluation_page", "write_page"]

_SMALL = 96
"""Pixels up to which images are kept exactly; larger ones are compressed."""
_QUALITY = 70
_STYLE = (
    "nav a{margin-right:1rem;white-space:nowrap}h2{margin-top:2.5rem;border-bottom:2px solid var(--line)}"
    ".verdict{border:2px solid;border-left-width:1rem;border-radius:.4rem;padding:.6rem 1rem;margin:1rem 0}"
    ".verdict b{font-size:1.25em}.measured{border-color:#0072B2}.worse,.doubtful{border-color:#E69F00}"
    ".incomplete{border-color:#888}.masked{border-color:#D55E00;border-style:double;border-width:6px 6px 6px 1rem}"
    ".tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0;padding:0}.tiles div{flex:1 1 9rem;border:1px solid "
    "var(--line);border-radius:.4rem;padding:.5rem .8rem}.tiles b{display:block;font-size:1.6em}"
    ".item{border:1px solid var(--line);border-radius:.4rem;padding:.6rem .8rem;margin:.8rem 0;break-inside:avoid}"
    ".strip{display:flex;flex-wrap:wrap;gap:.6rem}.strip figure{margin:.3rem 0;flex:0 1 8.5rem}"
    ".strip img{width:8.5rem;background:none}.pixels img{image-rendering:pixelated}"
    ".strip>div{margin-right:2rem}.sum tbody tr:last-child{font-weight:700}"
    ".checks{list-style:none;padding:0}.checks li{border-left:.4rem solid var(--line);padding:.1rem .8rem;"
    "margin:.5rem 0;break-inside:avoid}.checks .passed{border-color:#009E73}.checks .failed{border-color:#D55E00;"
    "border-left-style:double;border-left-width:.8rem}"
    "td:not(.text){white-space:nowrap}td.text{min-width:6rem;vertical-align:top}"
    "@media print{nav{display:none}h2{break-after:avoid}}"
)
_SECTIONS = {
    "attacks": "Attacks",
    "checks": "Can the figures be believed",
    "effort": "With more means",
    "detector": "The detector",
    "parts": "What each part is worth",
    "images": "Images",
    "threat": "Threat model",
    "reading": "How to read it",
    "configuration": "Exact configuration",
}


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Write the page: whole, or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    replace_file(path, evaluation_page(evaluation).encode())


def evaluation_page(evaluation: Evaluation) -> str:
    """The page as HTML; whatever comes from a file is escaped."""
    plots = {name: html_picture(picture.content, picture.caption) for name, picture in pictures(evaluation).items()}
    goals = goal_table(evaluation)
    bodies = {
        "attacks": [
            *map(_attack_table, attack_tables(evaluation)),
            *(html_note(text) for text in (search_in_words(evaluation), unanswered(evaluation)) if text),
            plots.get("composition", ""),
            html_table(goals) if goals is not None else "",
            *_not_run(evaluation),
        ],
        "checks": _checks(evaluation),
        "effort": [plots.get("eps", ""), plots.get("effort", ""), *_side_by_side(curve_tables(evaluation))],
        "detector": [
            html_table(detection_table(evaluation.detection)) if evaluation.detection is not None else "",
            plots.get("roc", ""),
            plots.get("members", ""),
        ],
        "parts": _parts(evaluation),
        "images": _gallery(evaluation.gallery),
        "threat": [
            *map(_paragraph, COVERED),
            _paragraph("Not covered:"),
            _bullets(NOT_COVERED),
            html_table(assumptions_table(evaluation)),
        ],
        "reading": [_bullets(HOW_TO_READ)],
        "configuration": [html_table(configuration_table(evaluation))],
    }
    written = {name: "".join(parts) for name, parts in bodies.items() if any(parts)}
    links = " ".join(f'<a href="#{name}">{_SECTIONS[name]}</a>' for name in written)
    return html_page(
        f"Red team report: {harmless(evaluation.configuration.model)}",
        *_top(evaluation),
        f"<nav>{links}</nav>",
        *(f'<section id="{name}"><h2>{_SECTIONS[name]}</h2>{body}</section>' for name, body in written.items()),
        style=_STYLE,
    )


def _top(evaluation: Evaluation) -> list[str]:
    """What a reader in a hurry sees: the verdict, three sentences, five figures, and what limits them."""
    said, worst = verdict(evaluation), evaluation.worst_case
    low, high = worst.robust_accuracy_interval
    hold = f"hold under every attack (95 % interval {percent(low)} to {percent(high)})"
    if evaluation.masked:
        hold = f"were not broken, but gradients are masked: no measure ({percent(low)} to {percent(high)})"
    aimed = "" if labels_attacked(evaluation) else " (not attacked for)"
    tiles = (
        (percent(worst.robust_accuracy), hold),
        (percent(evaluation.bare_worst_case.robust_accuracy), "hold without the defence, under its own attacks"),
        (percent(worst.label_accuracy), f"get the right label under every attack, flagged or not{aimed}"),
        (
            percent(evaluation.clean.accuracy),
            f"right without attack; undefended {percent(evaluation.bare_clean.accuracy)}",
        ),
        (percent(evaluation.clean.flagged), "of clean images raise an alarm"),
    )
    boxes = "".join(f"<div><b>{figure}</b> {escape(text)}</div>" for figure, text in tiles)
    return [
        f'<div class="verdict {said.level}"><b>{escape(said.title)}</b><p>{escape(said.text)}</p></div>',
        *map(_paragraph, summary(evaluation)),
        f'<div class="tiles">{boxes}</div>',
        html_note(f"{headline(evaluation)}."),
        _bullets(caveats(evaluation)),
    ]


def _attack_table(table: TableText) -> str:
    """A table of attacks; its last row stands out if it sums up the others."""
    last = ' class="sum"' if table.rows and table.rows[-1][0] == WORST_CASE else ""
    return f"<div{last}>{html_table(table)}</div>"


def _side_by_side(tables: Iterable[TableText]) -> list[str]:
    columns = "".join(f"<div>{html_table(replace(table, notes=()))}</div>" for table in tables)  # captions have them
    return [f'<div class="strip">{columns}</div>'] if columns else []


def _checks(evaluation: Evaluation) -> list[str]:
    if not evaluation.checks:
        return [_paragraph("No sanity check was run: nothing says whether the attacks worked as they should.")]
    counts = [sum(check.passed is result for check in evaluation.checks) for result in (True, False, None)]
    return [
        _paragraph(
            "Sanity checks of the attack, not of the defence (Carlini et al. 2019, arXiv 1902.06705): "
            f"{counts[0]} passed, {counts[1]} FAILED, {counts[2]} not judged."
        ),
        f'<ul class="checks">{"".join(map(_check, evaluation.checks))}</ul>',
    ]


def _check(check: Check) -> str:
    result = check_result(check)
    masks = " (masks)" if check.masking and check.passed is False else ""
    found = f"<br>{escape(found_in_words(check))}" if check.found else ""
    kind = result.lower().replace(" ", "-")
    return (
        f'<li class="{kind}"><b>{result}{masks}</b> {escape(check.name)}{found}'
        f'<br><span class="note">{escape(check.meaning)}</span></li>'
    )


def _parts(evaluation: Evaluation) -> list[str]:
    options, parts = evaluation.configuration, []
    if evaluation.against_pruned is not None:
        parts.append(_paragraph(against_pruned_in_words(evaluation.against_pruned)))
    if evaluation.ablation:
        table = ablation_table(evaluation.ablation, samples=options.samples, eps=options.eps)
        parts += [html_table(table), *map(html_note, ABLATION_LEGEND)]
    if evaluation.costs:
        parts += [_bullets(map(cost_in_words, evaluation.costs)), html_note(COSTS_LEGEND)]
    return [*parts, _paragraph(rejecting_in_words(evaluation))]


def _not_run(evaluation: Evaluation) -> list[str]:
    if not evaluation.not_run:
        return []
    return [
        _paragraph("Not run, or not on all images:"),
        _bullets(f"{name}: {why}" for name, why in evaluation.not_run.items()),
    ]


def _gallery(items: Iterable[GalleryItem]) -> list[str]:
    shown = [_item(item) for item in items]
    if not shown:
        return []
    return [
        _paragraph(
            "Examples of the strongest attacks, chosen by rule: of each as many images that the attacker won as lost "
            "ones, as far as there are both, the first ones that were right without attack; how often he wins is in "
            "the tables. The difference is shown around grey, multiplied so that its largest change fills the scale."
        ),
        *shown,
    ]


def _item(item: GalleryItem) -> str:
    change = item.attacked - item.original
    largest = float(np.abs(change).max())
    factor = 0.5 / largest if largest else 1.0
    strip = (
        ("original", item.original),
        ("attacked", item.attacked),
        (f"difference x {factor:.3g}", 0.5 + factor * change),
        ("purified", item.purified),
    )
    label, said = harmless(item.label), harmless(item.verdict)
    figures = "".join(
        f"<figure>{_image(image, f'{text}, true label {label}')}<figcaption>{text}</figcaption></figure>"
        for text, image in strip
    )
    small = " pixels" if max(item.original.shape[1:]) <= _SMALL else ""
    who = "attacker won" if item.won else "attacker lost"
    return (
        f'<div class="item"><b>{who}</b>: {escape(harmless(item.attack))}, true label {escape(repr(label))}; '
        f'{escape(said)}<div class="strip{small}">{figures}</div></div>'
    )


def _image(image: Float32, text: str) -> str:
    """One image [C, H, W]: exact to 8 bits when small, compressed when large; other than 1 or 3 channels as mean."""
    pixels = image if len(image) in {1, 3} else image.mean(axis=0, keepdims=True)
    eight = np.rint(255 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight)
    stream = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(stream, format="PNG", optimize=True)
        return html_image(stream.getvalue(), text)
    picture.save(stream, format="JPEG", quality=_QUALITY)
    return html_image(stream.getvalue(), text, media="image/jpeg")


def _paragraph(text: str) -> str:
    return f"<p>{escape(harmless(text))}</p>"


def _bullets(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(harmless(line))}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
