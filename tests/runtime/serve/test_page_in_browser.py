"""The page in headless Chromium: files chosen, keys pressed, what is seen and what a screen reader finds."""

import numpy as np
import pytest
from PIL import Image
from tests.runtime.serve.browser import program, tab
from tests.runtime.serve.key_files import Ring
from tests.runtime.serve.live import live

from s2ap_defend.classifier import DefendedClassifier

pytest.importorskip("websockets")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="Chromium is not installed: apt-get install chromium-headless-shell"),
]


@pytest.fixture(scope="module")
def page():
    with tab() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(classifier):
    with live(classifier, expose_evidence=True) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, random_images):
    """Image files, and one of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(8)]
    for path, image in zip(paths, random_images, strict=False):
        Image.fromarray(np.rint(255 * image[0]).astype(np.uint8)).save(path)
    Image.new("L", (40, 20), 128).save(folder / "large.png")
    return [*paths, folder / "large.png"]


@pytest.fixture(autouse=True)
def opened(page, server):
    page.view()
    page.open(server.url)
    yield
    assert page.problems == []


def text(page, name: str) -> str:
    return page.value(f"document.getElementById('{name}').textContent")


def answered(page, *paths) -> None:
    page.choose(*paths)
    page.until("document.getElementById('status').textContent.includes('answered in')")


def as_read(path, classifier):
    return classifier((np.asarray(Image.open(path), dtype=np.float32) / np.float32(255))[None, None])


def word(verdicts) -> str:
    return "adversarial" if verdicts.adversarial[0] else "undecided" if verdicts.abstained[0] else "clean"


def test_several_images_are_answered_as_offline_and_each_can_be_looked_at(page, classifier, pictures):
    answered(page, *pictures[:8])
    expected = [as_read(path, classifier) for path in pictures[:8]]
    shown = page.value("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.innerText.split('\\n'))")
    assert [row[-2:] for row in shown] == [
        [path.name, f"{'no answer' if one.abstained[0] else classifier.classes[one.label[0]]}, {word(one)}"]
        for path, one in zip(pictures, expected, strict=False)
    ]
    assert len({word(one) for one in expected}) > 1
    for number, one in enumerate(expected):
        page.value(f"document.getElementById('tab-{number}').click()")
        assert text(page, "verdict").endswith(word(one))
        assert text(page, "scale-caption").startswith(f"evidence {one.log_likelihood_ratio[0]:.2f} nats")


def test_the_difference_is_that_of_purified_and_sent(page, classifier, pictures):
    answered(page, pictures[1])
    page.until("document.getElementById('difference-caption').textContent")
    verdicts = as_read(pictures[1], classifier)
    sent = np.asarray(Image.open(pictures[1]), dtype=np.int64)
    signed = np.rint(np.clip(verdicts.purified[0, 0], 0, 1) * 255).astype(np.int64) - sent
    largest = np.abs(signed).max()
    drawn = page.value(
        "[...document.getElementById('difference').getContext('2d').getImageData(0, 0, 8, 8).data]"
        ".filter((_, i) => i % 4 === 0)"
    )
    np.testing.assert_allclose(np.reshape(drawn, (8, 8)), 127.5 + 127.5 * signed / largest, atol=1)
    assert text(page, "difference-caption").startswith("purified minus sent, at most ")


def test_the_scale_has_the_boundaries_of_the_member_that_stopped_the_test(page, classifier, pictures):
    answered(page, pictures[0])
    verdicts, test = as_read(pictures[0], classifier), classifier.manifest.test
    upper, lower = (values[verdicts.members_used[0] - 1] for values in (test.upper, test.lower))
    caption = text(page, "scale-caption")
    assert (f"adversarial from {upper:.2f}" in caption) == bool(np.isfinite(upper))
    assert (f"clean up to {lower:.2f}" in caption) == bool(np.isfinite(lower))
    limits = page.value("document.querySelectorAll('#picture .limit').length")
    assert limits == int(np.isfinite(upper)) + int(np.isfinite(lower)) >= 1


def test_the_time_is_shown_by_step(page, pictures):
    answered(page, pictures[0])
    steps = page.value("[...document.querySelectorAll('#steps th')].map((cell) => cell.textContent)")
    assert steps[:3] == ["decode", "queue", "batch"]
    assert steps[-1] == "network and browser"
    assert len(steps) > 4
    assert all(page.value("[...document.querySelectorAll('#steps progress')].map((bar) => bar.value <= bar.max)"))


def test_everything_is_reached_and_chosen_by_keyboard(page, pictures):
    answered(page, *pictures[:3])
    page.value("document.getElementById('file').focus()")
    assert page.value("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    page.press("Tab")
    focused = "document.activeElement.id"
    assert page.value(focused) == "tab-0"
    for key, at in (("ArrowRight", 1), ("End", 2), ("ArrowRight", 0), ("ArrowLeft", 2), ("Home", 0), ("ArrowRight", 1)):
        page.press(key)
        assert page.value(focused) == f"tab-{at}"
        assert text(page, "summary") == pictures[at].name
    page.press("Tab")
    assert page.value(focused) == "panel"
    assert page.value("document.querySelectorAll('[role=tab][tabindex=\"0\"]').length") == 1


def test_a_screen_reader_finds_names_for_everything(page, pictures):
    answered(page, *pictures[:2])
    page.until("document.getElementById('difference-caption').textContent")
    spoken = page.spoken()
    names = {role: [name for found, name in spoken if found == role] for role, _ in spoken}
    assert names["heading"][:3] == ["s2ap-defend", "Images", "Verdicts"]
    assert names["tablist"] == ["Verdicts"]
    assert [name.split(" ")[0] for name in names["tab"]] == ["0.png", "1.png"]
    assert names["tabpanel"][0].startswith("0.png")
    assert any(name.startswith("evidence") for name in names["image"] + names.get("img", []))
    assert all(names["image"]), names["image"]
    assert all(name for role in ("button", "link", "table") for name in names.get(role, []))
    assert any("2 images" in name for role, name in spoken if role in {"StaticText", "status"})


def test_what_was_not_read_says_why_and_the_browser_resizes_it(page, pictures):
    answered(page, pictures[0], pictures[8])
    assert "large.png was not read" in text(page, "problem")
    assert "40x20 pixels, the model takes 8x8" in text(page, "problem")
    assert text(page, "status").startswith("2 images: 1 ")
    page.value("document.getElementById('resize').click()")
    page.until("document.getElementById('problem').hidden && !document.getElementById('results').ariaBusy")
    page.until("document.getElementById('summary').textContent === 'large.png, resized here'")
    assert "not read" not in text(page, "status")
    page.problems = [one for one in page.problems if "400" not in one]


def test_one_image_that_cannot_be_read_is_said_without_a_result(page, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    page.choose(tmp_path / "no.png")
    page.until("!document.getElementById('problem').hidden")
    assert "no.png is no PNG, JPEG, WebP or BMP image" in text(page, "problem")
    assert page.value("document.getElementById('results').hidden")
    page.value("document.getElementById('resize').click()")
    page.until("document.getElementById('problem').textContent.includes('cannot resize')")
    assert [one for one in page.problems if "400" in one]  # the browser's own record of the answer
    page.problems.clear()


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, pictures, width):
    page.view(width=width)
    answered(page, *pictures[:8])
    assert page.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, 1280])
def test_the_description_of_the_api_fits_and_has_a_heading_for_every_request(page, server, width):
    page.view(width=width)
    page.open(f"{server.url}/docs", "location.pathname === '/docs' && document.readyState === 'complete'")
    assert page.value("Math.max(...[...document.querySelectorAll('table')].map(one => one.scrollWidth))") <= width
    assert page.value("document.documentElement.scrollWidth") <= width
    headings = [name for role, name in page.spoken() if role == "heading"]
    assert {"POST /classify", "POST /v2/models/{model}/infer", "GET /metrics", "Objects"} <= set(headings)


def test_it_is_dark_where_the_system_is_and_text_stands_out(page, pictures):
    answered(page, pictures[0], pictures[1])
    for scheme, dark in (("light", False), ("dark", True)):
        page.view(scheme=scheme)
        ground = luminance(page, "document.body", "backgroundColor")
        assert (ground < 0.1) == dark
        panel = luminance(page, "document.querySelector('#results')", "backgroundColor")
        for place in ("#verdict", "#summary", "dt", "th", "figcaption", "footer a", "#tabs span"):
            ink = luminance(page, f"document.querySelector('{place}')", "color")
            for behind in (ground, panel):
                assert (max(ink, behind) + 0.05) / (min(ink, behind) + 0.05) >= 4.5, (scheme, place)  # WCAG AA


def luminance(page, element: str, what: str) -> float:
    """Relative luminance of a colour, as WCAG 2 defines it."""
    rgb = page.value(f"getComputedStyle({element}).{what}.match(/[\\d.]+/g).slice(0, 3).map(Number)")
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_a_server_with_keys_asks_for_one_and_hides_what_the_key_may_not_see(page, classifier, pictures, tmp_path):
    ring = Ring(tmp_path)
    with live(classifier, keys=ring.path) as closed:
        page.open(closed.url)
        assert page.value("document.activeElement.id") == "key"
        for name, sees in (("asker", False), ("analyst", True)):
            page.open(closed.url)
            page.value(f"document.getElementById('key').value = '{ring.tokens[name]}'")
            page.press("Enter")
            page.until("document.getElementById('size').textContent")
            answered(page, pictures[0])
            assert page.value("document.getElementById('difference').checkVisibility()") == sees
            assert page.value("document.getElementById('hidden').hidden") == sees
    page.problems = [one for one in page.problems if "401" not in one]


def test_the_page_asks_the_model_that_its_address_names_and_links_to_the_others(
    page, classifier, abstaining_model_path, pictures
):
    other = DefendedClassifier.load(abstaining_model_path, device="cpu", threads=1)
    verdicts = [[as_read(path, model) for path in pictures[:8]] for model in (classifier, other)]
    assert [word(one) for one in verdicts[0]] != [word(one) for one in verdicts[1]]
    with live({"first": classifier, "a & b": other}) as several:
        page.open(several.url)
        for name, expected in zip(("first", "a & b"), verdicts, strict=True):
            page.until(f"document.getElementById('model')?.textContent.startsWith('Model {name}:')")
            answered(page, *pictures[:8])
            shown = page.value("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.innerText)")
            assert all(row.endswith(word(one)) for row, one in zip(shown, expected, strict=True))
            page.value("document.querySelector('#model a').click()")
