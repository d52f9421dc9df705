"""The page at /: HTML, a style sheet and a script, shipped with the package; nothing is loaded from elsewhere."""

import math
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import numpy as np
from starlette.responses import Response

from s2ap_defend.manifest import Manifest
from s2ap_defend.serve.served import ServedModel
from s2ap_defend.types import Resize

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE_FILES = ("page.css", "page.js", "page-evidence.js", "page-resize.js")
"""What the page at / loads, each from its name."""


def page_file(name: str) -> Response:
    """One of the page's files."""
    return page_response(files("s2ap_defend.serve").joinpath(name).read_bytes(), PurePath(name).suffix)


def page_response(content: bytes, suffix: str) -> Response:
    """A file with this ending, under the policy of the page."""
    return Response(content, media_type=MEDIA_TYPES[suffix], headers=HEADERS)


def describe_page(manifest: Manifest, served: ServedModel, resize: Resize | None) -> dict[str, Any]:
    """What the page must know: the model, and what its evidence is to be compared with, if that is exposed."""
    channels, height, width = served.shape
    description: dict[str, Any] = {
        "model": served.model,
        "classes": list(manifest.classes),
        "input": {"channels": channels, "height": height, "width": width},
        "resize": resize,
        "evidence": None,
    }
    if "base_label" in served.outputs:
        test, decision = manifest.test, manifest.decision
        description["evidence"] = {
            "members": len(manifest.members),
            "jurors": sum(member.vote_weight > 0.0 for member in manifest.members),
            "jury_weight": sum(member.vote_weight for member in manifest.members),
            "answers": decision.who_answers,
            "answers_flagged": "the whole jury" if test.correction == "correct" else decision.who_answers,
            "purify": decision.purify,
            "clean_rate": float(np.mean([member.clean_disagreement_rate for member in manifest.members])),
            "adversarial_rate": float(np.mean([member.adversarial_disagreement_rate for member in manifest.members])),
            "lower": [_finite(value) for value in test.lower],
            "upper": [_finite(value) for value in test.upper],
        }
    return description


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
