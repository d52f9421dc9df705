"""Alert rules and the dashboard: what they ask Prometheus for is what the server publishes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.runtime.serve.certificates import Authority
from tests.runtime.serve.live import live

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.shipped import shipped_file

DEPLOY = Path(__file__).parents[2] / "deploy"
OF_PROMETHEUS = {"job", "instance"}
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
QUERIES = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, list[dict[str, str]]]:
    """The labels of every sample by its name, once an image was answered, with everything on that has metrics."""
    classifier = DefendedClassifier.load(shipped_file(Path("fashion")), device="cpu", threads=1)
    batch = np.zeros((1, *classifier.input_shape), dtype=np.float32)
    authority = Authority(tmp_path_factory.mktemp("authority"))
    certificate, key = authority.issue(tmp_path_factory.mktemp("server"))
    with live(classifier, expose_evidence=True, tls_cert=certificate, tls_key=key) as server:
        server.tls = authority.trust
        assert server.answers(batch) == 200
        text = httpx.get(f"{server.url}/metrics", verify=authority.trust).text
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def parts(node: object) -> Iterator[object]:
    """An expression and everything in it."""
    yield node
    inner = [getattr(node, name, None) for name in ("vector_selector", "expr", "param", "lhs", "rhs")]
    for one in [*(part for part in inner if part is not None), *getattr(node, "args", ())]:
        yield from parts(one)


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_valid_and_asks_for_samples_that_are_published(name, published):
    expression = promql_parser.parse(QUERIES[name].replace("$__rate_interval", "5m").replace("$model", ".*"))
    asked = [part for part in parts(expression) if isinstance(part, promql_parser.VectorSelector)]
    assert asked
    for selector in asked:
        assert selector.name in published, selector
        for matcher in selector.matchers.matchers:
            if matcher.name not in OF_PROMETHEUS:
                values = {labels.get(matcher.name) for labels in published[selector.name]}
                assert any(value is not None and re.fullmatch(matcher.value, value) for value in values), matcher
    labels = {key for selector in asked for one in published[selector.name] for key in one} | OF_PROMETHEUS
    sums = [part for part in parts(expression) if isinstance(part, promql_parser.AggregateExpr) and part.modifier]
    assert {label for one in sums for label in one.modifier.labels} <= labels


def test_every_alert_says_how_bad_it_is_and_what_it_saw():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 7
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
    shown = {key for rule in RULES for key in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])}
    assert shown <= {"instance", "model"}


def test_panels_lie_apart_and_use_the_chosen_source():
    cells = set()
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not own & cells
        cells |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
