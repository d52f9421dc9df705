"""The drift monitor: uniform without drift, loud with it; and what a server tells of it."""

import asyncio
import json
import math

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.runtime.serving_client import until_warm

from s2ap_defend import DefendedClassifier, DriftMonitor, DriftReport
from s2ap_defend.serve import ServerConfig, create_app


@pytest.fixture(scope="module")
def watched(tiny_model_path) -> DefendedClassifier:
    """A classifier whose manifest carries reference ratios."""
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)
    images = np.random.default_rng(10).random((64, *classifier.input_shape), dtype=np.float32)
    ratios = sorted(classifier(images).log_likelihood_ratio.tolist())
    record = classifier.manifest.test.calibration.model_copy(
        update={"reference_ratios": tuple(ratios), "expected_false_alarm_rate": 0.125}  # of the right ones only
    )
    test = classifier.manifest.test.model_copy(update={"calibration": record})
    manifest = classifier.manifest.model_copy(update={"test": test})
    return DefendedClassifier(classifier.path, manifest, classifier.executor)


def ask(classifier, batches, **options) -> tuple[dict[str, float], dict]:
    """Send batches of images to an application; the drift gauges and the model's statistics then."""

    async def session():
        app = create_app(classifier, ServerConfig(model=classifier.path, **options))
        model = app.state.service.default.served.model
        async with app.router.lifespan_context(app):
            await until_warm(app.state.service)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
                for images in batches:
                    tensor = {"name": "image", "shape": images.shape, "datatype": "FP32"}
                    tensor["parameters"] = {"binary_data_size": images.nbytes}
                    head = json.dumps({"inputs": [tensor]}).encode()
                    answer = await http.post(
                        f"/v2/models/{model}/infer",
                        content=head + images.tobytes(),
                        headers={"Inference-Header-Content-Length": str(len(head))},
                    )
                    assert answer.status_code == 200, answer.text
                metrics = (await http.get("/metrics")).text
                statistics = (await http.get("/v2/models/stats")).json()["model_stats"][0]
        gauges = {
            sample.name: sample.value
            for family in text_string_to_metric_families(metrics)
            for sample in family.samples
            if sample.name.startswith("s2ap_drift_")
        }
        return gauges, statistics

    return asyncio.run(session())


def test_a_server_with_evidence_tells_the_drift_of_every_batch(watched) -> None:
    images = np.random.default_rng(11).random((6, *watched.input_shape), dtype=np.float32)
    gauges, statistics = ask(watched, [images[:4], images[4:]], expose_evidence=True)
    expected = DriftMonitor(watched.manifest).update(watched(images))
    reference = np.random.default_rng(10).random((64, *watched.input_shape), dtype=np.float32)
    assert expected.expected_flagged == watched(reference).adversarial.mean() > 0.0
    assert gauges == {
        "s2ap_drift_detected": 0.0,
        "s2ap_drift_window_rows": 6.0,
        "s2ap_drift_ks_statistic": pytest.approx(expected.statistic),
        "s2ap_drift_p_value": pytest.approx(expected.p_value),
        "s2ap_drift_mean_p_value": pytest.approx(expected.mean_p_value),
        "s2ap_drift_log_martingale": pytest.approx(expected.log_martingale),
    }
    assert statistics["drift"]["count"] == 6
    assert statistics["drift"]["statistic"] == pytest.approx(expected.statistic)
    assert set(statistics["drift"]) == set(DriftReport.__dataclass_fields__)


def test_a_server_without_evidence_tells_drift_once_a_window_only(watched) -> None:
    rng = np.random.default_rng(12)
    window = DriftMonitor(watched.manifest).window
    part = rng.random((window // 2 - 1, *watched.input_shape), dtype=np.float32)
    gauges, statistics = ask(watched, [part, part])
    assert gauges["s2ap_drift_window_rows"] == 0.0
    assert math.isnan(gauges["s2ap_drift_mean_p_value"])
    assert statistics["drift"]["count"] == 0
    assert statistics["drift"]["mean_p_value"] is None
    gauges, statistics = ask(watched, [part, part, part[:2], part[:1]])
    assert gauges["s2ap_drift_window_rows"] == window
    assert statistics["drift"]["count"] == window  # the last image belongs to the next window


def test_a_server_of_a_file_without_references_has_no_drift_metrics(tiny_model_path) -> None:
    gauges, statistics = ask(DefendedClassifier.load(tiny_model_path, device="cpu", threads=1), [])
    assert gauges == {}
    assert "drift" not in statistics
