"""The report in a real headless Chromium, on a phone and on a desk."""

import shutil
from pathlib import Path

import pytest

from tests.calibration.studies.test_report import CONFIG, FIGURES, score
from tests.calibration.studies.tiny import made_study

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-studies")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium: make test-studies")
        running = playwright.chromium.launch(executable_path=found)  # None: the one that playwright installed
        yield running
        running.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made_study(folder / "s.sqlite", CONFIG, score).report(folder / "report.html")
    return folder / "report.html"


@pytest.fixture(params=[400, 1400])
def page(browser, path, request):
    """The page at a width, with all that it says and asks for."""
    tab = browser.new_page(viewport={"width": request.param, "height": 900})
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    tab.close()


def column(page, name):
    names = page.locator("#table thead th button").all_inner_texts()
    return page.locator(f"#table tbody td:nth-child({names.index(name) + 1})").all_inner_texts()


def test_it_fits_its_width(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    letters = page.evaluate("parseFloat(getComputedStyle(document.querySelector('#table td')).fontSize)")
    assert letters >= 14


def test_every_figure_is_drawn(page):
    assert page.locator("figure").evaluate_all("all => all.map(one => one.id)") == FIGURES
    for image in page.locator("figure img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("one => one.complete && one.naturalWidth > 100")
        box, shown = image.bounding_box(), page.viewport_size["width"]
        assert min(300, shown - 60) <= box["width"] <= shown
        assert len(image.get_attribute("alt")) > 50


def test_it_sorts(page):
    for _ in range(2):
        page.get_by_role("button", name="mean").click()
        order = page.locator("th[aria-sort]").get_attribute("aria-sort")
        values = [float(text) for text in column(page, "mean")]
        assert len(values) == 2 * 2 * 2 * 3
        assert values == sorted(values, reverse=order == "descending")
    assert order == "descending"


def test_it_filters(page):
    page.get_by_label("pattern").select_option("window(2)")
    page.get_by_label("arm").select_option("calibrated")
    assert page.locator("#count").inner_text() == "Rows 1 to 4 of 4"
    assert set(column(page, "pattern")) == {"window(2)"}
    page.get_by_label("contains").fill("nothing at all")
    assert page.locator("#count").inner_text() == "No row fits"


def test_keys_alone_do(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the summary"
    page.get_by_role("button", name="mean").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("mean")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_it_prints(page, tmp_path):
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#filters").is_visible()
    assert page.locator("#table tbody tr").count() == 24
    assert len(page.pdf()) > 10_000
