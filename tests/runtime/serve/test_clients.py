"""Clients that are not ours: schemathesis, Java's HttpClient and curl, which offer HTTP/2."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runtime.serve.key_files import Ring
from tests.runtime.serve.live import live

SETTINGS = """
[parameters]
"path.model" = "{model}"
"path.version" = "1"
[checks]
positive_data_acceptance.enabled = false  # no schema says that bytes are an image, or numbers as many as a shape
not_a_server_error.expected-statuses = ["2xx", "4xx", 504]  # a timeout of a microsecond has passed at once
[warnings]
enabled = false
"""


@pytest.fixture(scope="module")
def server(classifier):
    with live(classifier) as server:
        yield server


def schemathesis(server, folder: Path, *options: str, operations: int = 19) -> None:
    """Check that the server keeps to its description of itself."""
    pytest.importorskip("schemathesis")
    (folder / "schemathesis.toml").write_text(SETTINGS.format(model=server.service.default.name))
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=folder, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {operations}" in done.stdout


def test_schemathesis_finds_nothing_in_a_few_requests(server, tmp_path):
    schemathesis(server, tmp_path, "--phases", "fuzzing", "--max-examples", "1", "--generation-deterministic")


@pytest.mark.slow
def test_schemathesis_finds_nothing_in_many_requests(server, tmp_path):
    schemathesis(server, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "100", "--continue-on-failure")


@pytest.mark.slow
def test_schemathesis_finds_no_way_around_the_keys(classifier, tmp_path):
    ring = Ring(tmp_path)
    ring.add("all", "infer", "evidence", "admin")
    key = f"Authorization: Bearer {ring.tokens['all']}"
    with live(classifier, keys=ring.path) as server:
        options = ["--phases", "coverage,fuzzing", "--max-examples", "20"]
        loaded = ["--exclude-path-regex", "/unload$"]  # whoever may unload the model has it answer 503
        schemathesis(server, tmp_path, "-H", key, *options, *loaded, operations=18)


@pytest.fixture
def body(batch, tmp_path) -> Path:
    """A file of one raw image."""
    path = tmp_path / "image.bin"
    path.write_bytes(batch[:1].tobytes())
    return path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_that_offers_http2_gets_its_answer(server, body):
    sent = ["-H", "Inference-Header-Content-Length: 0", "--data-binary", f"@{body}", "-H", "Expect: 100-continue"]
    command = [
        "curl",
        "-sS",
        "--http2",
        "--max-time",
        "20",
        "-w",
        "%{http_code} %{size_download}",
        "-o",
        body.parent / "answer",
    ]
    done = subprocess.run([*command, *sent, f"{server.url}{server.infer}"], capture_output=True, text=True, check=True)
    status, size = done.stdout.split()
    answer = (body.parent / "answer").read_bytes()
    assert (status, int(size)) == ("200", len(answer))
    assert answer.startswith(b'{"model_name"')


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_javas_own_client_gets_its_answers(server, body):
    command = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", Path(__file__).parent / "Client.java"]
    done = subprocess.run(
        [*command, f"{server.url}{server.infer}", body], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["200", "HTTP_1_1"]] * 2
