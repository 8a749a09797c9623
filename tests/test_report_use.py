"""A report in use: keys, light and dark, a telephone, texts that try to break it, many samples, another address."""

import json
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pytest
from committed import commit, make_run, plan, sample_rows
from conftest import OpenPage
from local_server import serving
from playwright.sync_api import Page
from reported import HOSTILE, made_samples, make_reported_run, report
from test_report_files import with_column

from segdatagen.labels import LabelClass, LabelSet
from segdatagen.run_folder import put_attempt, read_attempts, write_run
from segdatagen.samples import put_samples

SAMPLES = made_samples()
CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
MANY = 5000
MOST_ELEMENTS = 1500
"""In the document while the contact sheet is shown, whatever the number of samples."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 48 samples, as a URI."""
    run = make_reported_run(tmp_path_factory.mktemp("used") / "run", SAMPLES)
    return Path(report(run).index).as_uri()


def focused(page: Page) -> int:
    """Place of the focused cell among all samples of the sheet, from 1 on."""
    place = page.evaluate("document.activeElement.closest('.cell')?.getAttribute('aria-posinset')")
    return int(place or 0)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_the_keys_lead_through_sheet_and_pages(open_page: OpenPage, index: str) -> None:
    page = open_page(f"{index}#/samples", height=600)
    page.wait_for_selector(".cell")
    columns = len({round(cell.bounding_box()["x"]) for cell in page.query_selector_all(".cell")})
    press(page, "ArrowRight")
    assert focused(page) == 1
    press(page, "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft")
    assert focused(page) == 1 + 2 + columns - 1
    press(page, "End")
    assert focused(page) == 48
    assert page.evaluate("document.activeElement.getBoundingClientRect().bottom <= innerHeight")
    press(page, "ArrowRight")
    assert focused(page) == 48
    press(page, "Home", "ArrowRight", "3")
    assert page.get_attribute("#samples", "data-mode") == "overlay"
    press(page, "2")
    assert page.get_attribute("#samples", "data-mode") == "mask"
    assert focused(page) == 2
    wanted = re.search(r"sample/(\d+)", page.evaluate("document.activeElement.href")).group(1)
    press(page, "Enter")
    page.wait_for_selector("#sample:not([hidden])")
    assert page.inner_text("#sample h1") == f"Sample {wanted}"
    assert page.get_attribute("#sample", "data-mode") == "mask"
    assert page.inner_text("[data-fact=position]") == "2 of 48"
    press(page, "ArrowRight")
    page.wait_for_function("document.querySelector('[data-fact=position]').textContent === '3 of 48'")
    press(page, "ArrowLeft", "ArrowLeft", "1")
    page.wait_for_function("document.querySelector('[data-fact=position]').textContent === '1 of 48'")
    assert page.get_attribute("#previous", "href") is None
    press(page, "Escape")
    page.wait_for_selector("#samples:not([hidden])")
    assert focused(page) == 1, "back where the last page was"
    press(page, "/")
    page.wait_for_function("document.activeElement.name === 'find'")
    page.keyboard.type("12?/")
    assert page.input_value("[name=find]") == "12?/", "keys are letters while one types"
    page.fill("[name=find]", "")
    press(page, "Escape")
    assert focused(page) == 1
    press(page, "?")
    assert page.is_visible("#keys")
    press(page, "Escape")
    assert not page.is_visible("#keys")
    press(page, "Escape")
    page.wait_for_selector("#overview:not([hidden])")


def test_the_history_of_the_browser_works(open_page: OpenPage, index: str) -> None:
    page = open_page(index)
    page.click("nav >> text=Samples")
    page.select_option("[name=method]", "inpaint")
    page.click(".cell a")
    page.wait_for_selector("#sample:not([hidden])")
    assert page.inner_text("[data-fact=position]") == "1 of 12"
    page.go_back()
    page.wait_for_selector("#samples:not([hidden])")
    assert page.input_value("[name=method]") == "inpaint"
    page.go_back()
    page.wait_for_selector("#overview:not([hidden])")


def test_the_overview_leads_to_samples(open_page: OpenPage, index: str) -> None:
    page = open_page(index)
    rows = page.locator("#reasons tbody tr")
    groups = {"failed": "load: unreadable source: broken at byte #", "rejected": "clip: score # is below #"}
    for status, text in groups.items():
        page.locator("nav a").first.click()
        row = rows.filter(has_text=text)
        expected = sum(one.status == status and one.reason.startswith(text[:4]) for one in SAMPLES)
        assert row.locator("td").first.inner_text() == str(expected)
        row.locator("a").click()
        page.wait_for_selector("#samples:not([hidden])")
        assert page.inner_text("#shown") == f"{expected} of 48 samples"
        assert page.input_value("[name=reason]") == text
    page.locator("nav a").first.click()
    page.click("svg.chart a[aria-label^='bicycle:']")
    page.wait_for_selector("#samples:not([hidden])")
    assert page.input_value("[name=class]") == "bicycle"
    stages = dict(zip(("load", "mask2img"), ("11.1%", "88.9%"), strict=True))
    page.locator("nav a").first.click()
    for stage, share in stages.items():
        assert page.locator(".stages tr", has_text=stage).locator("td").nth(3).inner_text() == share
    assert page.locator(".stages tr", has_text="mask2img").locator("td").nth(5).inner_text() == "512 MiB"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_light_and_in_dark(open_page: OpenPage, index: str, theme: str) -> None:
    page = open_page(index, color_scheme=theme)
    one = next(s for s in SAMPLES if s.status == "rejected")
    for view in ("#/overview", "#/samples?mode=overlay", f"#/sample/{one.sample_id}"):
        page.goto(f"{index}{view}")
        for summary in page.query_selector_all("summary"):
            if summary.is_visible():
                summary.click()
        found = page.evaluate(CONTRAST)
        assert found["seen"] > 20
        assert not found["faint"], view


def test_the_theme_follows_the_system_until_it_is_chosen(open_page: OpenPage, index: str) -> None:
    page = open_page(index, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert (dark, light) == ("rgb(16, 19, 23)", "rgb(246, 247, 249)")
    page.click("#theme")
    assert page.evaluate(ground) == dark
    page.reload()
    assert page.evaluate(ground) == dark, "the choice is kept"
    page.keyboard.press("t")
    assert page.evaluate(ground) == light


def test_a_telephone_needs_no_scrolling_to_the_side(open_page: OpenPage, index: str) -> None:
    page = open_page(index, width=360, height=740, has_touch=True)
    one = next(s for s in SAMPLES if s.size == (400, 300) and s.status == "ok")
    for view in ("#/overview", "#/samples?mode=overlay", f"#/sample/{one.sample_id}"):
        page.goto(f"{index}{view}")
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
    page.goto(f"{index}#/samples")
    page.locator(".cell a").nth(1).tap()
    page.wait_for_selector("#made img")


@pytest.mark.parametrize("width", [1280, 1024, 390])
def test_figures_stay_within_their_cards(open_page: OpenPage, tmp_path: Path, width: int) -> None:
    run = make_reported_run(tmp_path / "run", SAMPLES[:12])
    (attempt,) = read_attempts(run.folder)
    put_attempt(run.folder, attempt.model_copy(update={"started": "2026-11-01T10:00:00+00:00"}))
    page = open_page(Path(report(run).index).as_uri(), width=width)
    figures = page.query_selector_all(".tile strong")
    assert len(figures) == 7, "images per second is one more"
    assert [one.inner_text() for one in figures if one.evaluate("e => e.scrollWidth > e.clientWidth")] == []


def test_hostile_texts_are_only_texts(open_page: OpenPage, tmp_path: Path) -> None:
    classes = [
        LabelClass(id=number, name=name, prompt="x", colour=(number, 0, 99), kind="stuff")
        for number, name in enumerate(["plain", HOSTILE.replace("\u2028", ""), "__proto__", "constructor", "100%&+=#"])
    ]
    labels = LabelSet(name="<i>", version="</title>", classes=tuple(classes))
    job = {"name": HOSTILE, "version": "v'1"}
    run = write_run(str(tmp_path / "run"), job, {"mask_ddpm": {HOSTILE: HOSTILE}}, labels)
    names = [one.name for one in classes]
    plan(run, [1, 2])
    commit(run, [1], "ok")
    rows = sample_rows([2], "rejected", 1, 0)
    for name in ("reason", "source_id", "caption", "prompt"):
        rows = with_column(rows, name, pa.array([HOSTILE]))
    put_samples(run.folder, rows)
    page = open_page(Path(report(run).index).as_uri())
    assert page.inner_text("#overview h1").split() == f"{HOSTILE} v'1".split()
    page.click("#reasons a")
    page.wait_for_selector("#samples:not([hidden])")
    assert page.inner_text("#shown") == "1 of 2 samples"
    assert HOSTILE.split("\u2028")[0].strip() in page.inner_text(".cell .why")
    page.click(".cell a")
    page.wait_for_selector("#sample:not([hidden])")
    assert HOSTILE.split("\u2028")[0].strip() in page.inner_text("#facts")
    for name in names:
        page.goto(page.url.partition("#")[0])
        page.click(f"svg.chart a[aria-label^={json.dumps(name + ':', ensure_ascii=False)}]")
        page.wait_for_selector("#samples:not([hidden])")
        assert page.inner_text("#shown") == ("1 of 2 samples" if name == names[1] else "0 of 2 samples")
    assert page.evaluate("window.broken") is None


@pytest.mark.slow
def test_thousands_of_samples_do_not_fill_the_document(open_page: OpenPage, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, range(MANY))
    for start in range(0, MANY, 250):
        commit(run, range(start, start + 250))
    result = report(run, max_samples=MANY)
    page = open_page(f"{Path(result.index).as_uri()}#/samples")
    elements = "document.querySelectorAll('*').length"
    page.wait_for_selector(".cell img")
    assert page.inner_text("#shown") == f"{MANY:,} of {MANY:,} samples"
    assert page.evaluate(elements) < MOST_ELEMENTS
    for part in (0.3, 0.6, 1.0):
        page.evaluate(f"window.scrollTo(0, {part} * document.documentElement.scrollHeight)")
        place = "[...document.querySelectorAll('.cell')].at(-1).getAttribute('aria-posinset')"
        page.wait_for_function(f"Math.abs({place} - {part * MANY}) < 200")
        page.wait_for_function("[...document.querySelectorAll('.cell')].every(c => c.querySelector('img'))")
        assert page.evaluate(elements) < MOST_ELEMENTS
    assert page.evaluate(place) == str(MANY)
    page.select_option("[name=class]", "building")
    assert page.inner_text("#shown") == f"{sum(id_ % 3 == 1 for id_ in range(MANY)):,} of {MANY:,} samples"
    ids = {re.search(r"sample/(\d+)", a.get_attribute("href")).group(1) for a in page.query_selector_all(".cell a")}
    assert {int(id_) % 3 for id_ in ids} == {1}


def test_a_report_works_by_http(open_page: OpenPage, index: str) -> None:
    folder = Path(index.removeprefix("file://")).parent
    with serving(partial(QuietHandler, directory=str(folder))) as address:
        page = open_page(f"{address}/index.html#/samples")
        page.wait_for_selector(".cell img")
        page.click(".cell.ok a")
        page.wait_for_selector("#made img")


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing of it."""

    def log_message(self, *words: object) -> None:
        """Not a word."""


def test_a_page_whose_files_are_gone_says_so(open_page: OpenPage, tmp_path: Path) -> None:
    run = make_reported_run(tmp_path / "run", SAMPLES)
    path = Path(report(run).index)
    for name in ("thumbnails", "pages"):
        for file in path.parent.glob(f"{name}-*.js"):
            file.unlink()
    page = open_page(f"{path.as_uri()}#/samples", lacks_files=True)
    page.wait_for_selector(".cell .why >> text=reload the page")
    page.click(".cell a")
    page.wait_for_selector("[role=alert] >> text=reload the page")


@pytest.mark.parametrize("status", ["nothing planned", "nothing made", "only failures"])
def test_a_run_with_nothing_to_see_has_a_page(open_page: OpenPage, tmp_path: Path, status: str) -> None:
    run = make_run(tmp_path / "run")
    if status != "nothing planned":
        plan(run, [1, 2])
    if status == "only failures":
        commit(run, [1, 2], "failed")
    page = open_page(Path(report(run).index).as_uri())
    words = {
        "nothing planned": "Nothing is planned yet",
        "nothing made": "No samples yet.",
        "only failures": "failed for a",
    }
    assert words[status] in page.inner_text("#overview")
    page.click("nav >> text=Samples")
    if status == "only failures":
        page.click(".cell.failed a")
        assert page.inner_text("#made .why") == "failed for a reason"
        assert page.is_visible("text=no picture, the job of the run names no source store")
    else:
        page.wait_for_selector("text=There are no samples yet.")
    assert not page.is_visible("#scores"), "no scores, no control for them"
