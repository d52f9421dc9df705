"""The page at /docs: the OpenAPI description to read, with nothing that runs and nothing from elsewhere."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

__all__ = ["write_docs"]

VERSIONED = "/versions/{version}"
REFERENCE = "#/components/schemas/"


def write_docs(description: Mapping[str, Any]) -> str:
    """The page of an OpenAPI description."""
    info = description["info"]
    paths, security = description["paths"], description.get("security", [])
    found = [
        (path, method, {"security": security, **operation})
        for path, methods in paths.items()
        if VERSIONED not in path
        for method, operation in methods.items()
    ]
    found.sort(key=lambda one: "inference" not in one[2]["tags"])  # what most readers look for comes first
    versioned = {path.replace(VERSIONED, "") for path in paths if VERSIONED in path}
    operations = [_operation(*one, versioned=one[0] in versioned) for one in found]
    schemas = [_schema(name, schema) for name, schema in description["components"]["schemas"].items()]
    title = escape(info["title"])  # without its version, which nobody sees who has no key
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: its API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
</head>
<body>
<header>
<h1>{title}</h1>
<p>{escape(info["summary"])} The same for programs: <a href="openapi.json">openapi.json</a>;
to try it: <a href="/">the page</a>.</p>
</header>
<main class="docs">
{"".join(operations)}
<section aria-labelledby="objects">
<h2 id="objects">Objects</h2>
{"".join(schemas)}
</section>
</main>
</body>
</html>
"""


def _operation(path: str, method: str, operation: Mapping[str, Any], *, versioned: bool) -> str:
    name = f"{method}{path}".replace("/", "-").translate({ord("{"): None, ord("}"): None})
    parts = [f"<p>{escape(operation['summary'])}</p>"]
    if versioned:
        parts.append(f"<p class='quiet'>Also with <code>{VERSIONED}</code> behind the model.</p>")
    if operation["security"]:
        parts.append("<p class='quiet'>Needs a key.</p>")
    parameters = [(one["name"], one["in"], _kind(one["schema"])) for one in operation.get("parameters", [])]
    if parameters:
        parts.append(_table("Parameters", ("name", "where", "what"), parameters))
    if "requestBody" in operation:
        bodies = [(media, _kind(content["schema"])) for media, content in operation["requestBody"]["content"].items()]
        parts.append(_table("Body, one of", ("media type", "what"), bodies))
    statuses: dict[tuple[str, str, str], list[str]] = {}
    for status, answer in operation["responses"].items():
        for media, content in answer["content"].items():
            statuses.setdefault((answer["description"], media, _kind(content["schema"])), []).append(status)
    answers = [(", ".join(found), *what) for what, found in statuses.items()]
    parts.append(_table("Answers", ("status", "when", "media type", "what"), answers))
    return f"""<section aria-labelledby="{escape(name)}">
<h2 id="{escape(name)}"><code>{method.upper()} {escape(path)}</code></h2>
{"".join(parts)}
</section>
"""


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value is, in a few words; an object that has a name, by it."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REFERENCE)
    kind = " or ".join(map(str, schema.get("enum", [schema.get("type", "")])))
    kind = "bytes" if schema.get("format") == "binary" else kind
    return ": ".join(part for part in (kind, schema.get("description")) if part)


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(one)}</td>' for one in row)}</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2))
    return f"<details><summary><code>{escape(name)}</code></summary><pre>{text}</pre></details>"
