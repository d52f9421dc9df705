"""The file in a browser, without this package: onnxruntime-web in headless Chromium, by the example's own page."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.contract.test_runtimes import FILES, JAVASCRIPT
from tests.runtime.serve.browser import Tab, program, tab

from s2ap_defend import DefendedClassifier

pytest.importorskip("websockets")
pytestmark = [
    pytest.mark.skipif(program() is None, reason="Chromium is not installed: apt-get install chromium-headless-shell"),
    pytest.mark.skipif(
        not (JAVASCRIPT / "node_modules" / "onnxruntime-web").exists(), reason="no onnxruntime-web: make test-node"
    ),
]
COUNT = 256


class Quiet(SimpleHTTPRequestHandler):
    """Files of the example's folder, and those of the test."""

    def __init__(self, *arguments: object, more: Path, **named: object) -> None:
        self.more = more
        super().__init__(*arguments, directory=str(JAVASCRIPT), **named)

    def translate_path(self, path: str) -> str:
        own = self.more / path.removeprefix("/more/")
        return str(own) if path.startswith("/more/") else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(golden: Path, sparse_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that the page may fetch: models by name, and images."""
    made = tmp_path_factory.mktemp("fetched")
    for name in FILES:
        source = sparse_model_path if name == "sparse" else golden / f"{name}.onnx"
        (made / f"{name}.onnx").write_bytes(source.read_bytes())
    (made / "images.bin").write_bytes(images().astype("<f4").tobytes())
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Tab]:
    """The example's page, served on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, more=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with tab() as opened:
                opened.open(
                    f"http://127.0.0.1:{server.server_port}/", "document.querySelector('#model')?.disabled === false"
                )
                yield opened
                assert opened.problems == []
        finally:
            server.shutdown()
            thread.join()


def images() -> np.ndarray:
    return np.random.default_rng(0).random((COUNT, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("name", FILES)
def test_the_file_gives_the_same_verdicts_in_chromium(name: str, page: Tab, folder: Path) -> None:
    answered = json.loads(
        page.value(f"""(async () => {{
            const {{ ask, load }} = await import("/verdicts.mjs");
            const fetched = async (name) => (await fetch(`/more/${{name}}`)).arrayBuffer();
            const session = await load(new Uint8Array(await fetched("{name}.onnx")));
            return JSON.stringify(await ask(session, new Float32Array(await fetched("images.bin"))));
        }})()""")
    )
    verdicts = DefendedClassifier.load(folder / f"{name}.onnx", device="cpu", threads=1)(images())
    for output in ("label", "adversarial", "members_used", "abstained"):
        assert answered[output] == getattr(verdicts, output).tolist(), output
        assert len(answered[output]) == COUNT


def test_the_page_shows_the_verdicts_on_image_files_and_what_it_could_not_read(
    page: Tab, abstaining_model_path: Path, tmp_path: Path
) -> None:
    bytes_of = np.rint(255 * images()[:6, 0]).astype(np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(len(bytes_of))]
    for path, one in zip(paths, bytes_of, strict=True):
        Image.fromarray(one).save(path)
    said = "document.getElementById('status').textContent"
    page.choose(paths[0], into="#model")
    page.until(f"{said}.startsWith('0.png: ')")
    page.choose(abstaining_model_path, into="#model")
    page.until(f"{said}.startsWith('Takes images of 1x8x8')")
    page.choose(*paths)
    page.until(f"{said} === '6 of 6 images answered'")
    rows = page.value("[...document.querySelectorAll('#verdicts tr')].map((row) => row.innerText.split('\\t'))")
    verdicts = DefendedClassifier.load(abstaining_model_path, device="cpu", threads=1)(
        bytes_of[:, None].astype(np.float32) / np.float32(255)
    )
    words = np.where(verdicts.adversarial, "adversarial", np.where(verdicts.abstained, "undecided", "clean"))
    labels = np.where(verdicts.abstained, "no answer", verdicts.label.astype(str))
    assert rows == [
        [path.name, label, word, str(used)]
        for path, label, word, used in zip(paths, labels, words, verdicts.members_used, strict=True)
    ]
    assert len(set(words)) > 1
    (tmp_path / "no.png").write_bytes(b"no image")
    page.choose(tmp_path / "no.png")
    page.until(f"{said}.startsWith('no.png: ')")
