"""The page at / needs nothing but this server."""

import asyncio
import json
import re
from html import escape
from html.parser import HTMLParser
from importlib.resources import files

import httpx
import pytest

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.serve import ServerConfig, create_app

SCRIPTS = ("page.js", "page-evidence.js", "page-resize.js")
FILES = ("page.html", "page.css", *SCRIPTS)


@pytest.fixture(scope="module")
def classifier(tiny_model_path):
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)


def get(classifier, *paths, **options) -> list[httpx.Response]:
    async def fetch():
        app = create_app(classifier, ServerConfig(model=classifier.path, **options))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http:
            return [await http.get(path) for path in paths]

    return asyncio.run(fetch())


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.inline = False

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.found += [found[key] for key in ("src", "href") if key in found]
        self.ids += [found["id"]] if "id" in found else []
        self.inline |= "style" in found or any(key.startswith("on") for key in found)
        self.inline |= tag in {"script", "style"} and "src" not in found


def parsed(text: str) -> Links:
    links = Links()
    links.feed(text)
    return links


def test_everything_that_the_page_links_to_is_served_here(classifier):
    (page,) = get(classifier, "/")
    assert page.headers["content-type"].startswith("text/html")
    links = [f"/{link}" for link in parsed(page.text).found if link != "data:,"]
    assert {"/page.css", "/page.js", "/metrics", "/openapi.json"} <= set(links)
    assert [response.status_code for response in get(classifier, *links)] == [200] * len(links)


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_the_page_names_another_server(name):
    text = files("s2ap_defend.serve").joinpath(name).read_text("utf-8")
    assert not re.search(r"https?:|[\"'(]//|@import|url\(", text)


def test_the_description_can_be_read_as_a_page_which_runs_nothing(classifier):
    page, described = get(classifier, "/docs", "/openapi.json")
    links = parsed(page.text)
    assert set(links.found) == {"data:,", "page.css", "openapi.json", "/"}
    assert "<script" not in page.text
    assert len(links.ids) == len(set(links.ids))
    for path, methods in described.json()["paths"].items():
        for method, operation in methods.items():
            assert "versions" in path or f"<code>{method.upper()} {path}</code>" in page.text
            assert escape(operation["summary"]) in page.text
    assert page.text.index("/infer</code>") < page.text.index("<code>POST /classify") < page.text.index("<code>GET /v2")
    versioned = sum("/versions/" in path for path in described.json()["paths"])
    assert page.text.count("Also with <code>/versions/{version}</code> behind the model") == versioned
    for name, schema in described.json()["components"]["schemas"].items():
        assert f"<code>{name}</code>" in page.text
        assert escape(json.dumps(schema, indent=2)) in page.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_policy_forbids_other_servers_and_inline_code_and_the_page_keeps_to_it(classifier, path):
    (response,) = get(classifier, path)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not parsed(response.text).inline


def test_the_script_uses_only_elements_that_exist():
    page = parsed(files("s2ap_defend.serve").joinpath("page.html").read_text("utf-8"))
    script = "".join(files("s2ap_defend.serve").joinpath(name).read_text("utf-8") for name in SCRIPTS)
    used = set(re.findall(r'\$\("([a-z-]+)"\)', script))
    assert used <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_learns_what_evidence_is_compared_with_only_if_evidence_is_exposed(classifier):
    hidden = get(classifier, "/page.json")[0].json()
    assert hidden["evidence"] is None
    assert hidden["input"] == dict(zip(("channels", "height", "width"), classifier.input_shape, strict=True))
    assert hidden["classes"] == list(classifier.classes)
    evidence = get(classifier, "/page.json", expose_evidence=True)[0].json()["evidence"]
    assert evidence["members"] == len(classifier.manifest.members)
    assert len(evidence["lower"]) == len(evidence["upper"]) == evidence["members"]
    assert (evidence["answers"], evidence["purify"]) == ("0.25 classifier + 0.75 jury^2", "always")
    assert evidence["answers_flagged"] == "the whole jury"
    assert (evidence["jurors"], evidence["jury_weight"]) == (3, 2.25)


def test_the_openapi_description_names_every_endpoint_of_the_protocol(classifier):
    schema = get(classifier, "/openapi.json")[0].json()
    model = "/v2/models/{model}"
    repository = {f"/v2/repository/{path}" for path in ("index", "models/{model}/load", "models/{model}/unload")}
    expected = repository | {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/metrics", "/classify"}
    for prefix in (model, f"{model}/versions/{{version}}"):
        expected |= {prefix, f"{prefix}/ready", f"{prefix}/config", f"{prefix}/stats", f"{prefix}/infer"}
    assert set(schema["paths"]) == expected
    references = set(re.findall(r"#/components/schemas/(\w+)", str(schema)))
    assert references <= set(schema["components"]["schemas"])
