"""The page of a report in a browser: filters, order, pictures and the pages of samples show what the run holds."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import OpenPage
from playwright.sync_api import Page
from reported import Made, image_of, made_samples, make_reported_run, mask_of, report

from segdatagen.cli import app
from segdatagen.colours import encode
from segdatagen.images import decode_image
from segdatagen.labels import load_label_set

SCENES = load_label_set("scenes")
SAMPLES = made_samples()


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 48 samples, as a URI."""
    run = make_reported_run(tmp_path_factory.mktemp("reported") / "a run", SAMPLES)
    return Path(report(run).index).as_uri()


def shown(page: Page) -> int:
    """How many samples the page says that it shows; those that the cells were told agree."""
    count = int(re.match(r"([\d,]+) of", page.inner_text("#shown")).group(1).replace(",", ""))
    sizes = {cell.get_attribute("aria-setsize") for cell in page.query_selector_all(".cell")}
    assert sizes == ({str(count)} if count else set())
    return count


def ids_in(page: Page) -> list[str]:
    """Ids of the cells in the document, in their order."""
    links = [cell.get_attribute("href") for cell in page.query_selector_all(".cell a")]
    return [re.search(r"sample/(\d+)", link).group(1) for link in links]


def count(test: Callable[[Made], bool]) -> int:
    return sum(map(test, SAMPLES))


def cell_of(page: Page, one: Made) -> str:
    """Filter so that one sample is left; the selector of its picture."""
    page.fill("[name=find]", str(one.sample_id))
    assert shown(page) == 1
    return ".cell .frame"


def pixels_of(page: Page, selector: str) -> np.ndarray:
    page.wait_for_function(
        "s => [...document.querySelectorAll(`${s} img`)].every(i => i.complete && i.naturalWidth)", arg=selector
    )
    return decode_image(page.locator(selector).first.screenshot())


def is_near(pixel: np.ndarray, colour: object, tolerance: int = 3) -> bool:
    return bool(np.abs(pixel.astype(int) - np.asarray(colour, int)).max() <= tolerance)


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in the middle of the left and of the right half."""
    height, width = picture.shape[:2]
    return picture[height // 2, width // 4], picture[height // 2, 3 * width // 4]


def test_each_filter_shows_exactly_its_samples(open_page: OpenPage, index: str) -> None:
    page = open_page(f"{index}#/samples")
    assert shown(page) == 48
    for channel, name in enumerate(SCENES.names):
        page.select_option("[name=class]", name)
        assert shown(page) == count(lambda one, c=channel: one.status != "failed" and c in one.channels)
    page.select_option("[name=class]", "")
    page.select_option("[name=method]", "inpaint")
    assert shown(page) == count(lambda one: one.method == "inpaint")
    page.check("[name=status][value=failed]")
    assert shown(page) == count(lambda one: one.method == "inpaint" and one.status == "failed")
    page.check("[name=status][value=rejected]")
    assert shown(page) == count(lambda one: one.method == "inpaint" and one.status != "ok")
    page.click("#clear")
    assert shown(page) == 48
    page.fill("[name='score_clip.from']", "0.5")
    assert shown(page) == count(lambda one: one.score is not None and one.score >= 0.5)
    page.fill("[name='score_clip.to']", "0.75")
    assert shown(page) == count(lambda one: one.score is not None and 0.5 <= one.score <= 0.75)
    page.fill("[name=find]", "no such thing")
    assert shown(page) == 0
    assert page.is_visible("text=No sample passes this filter.")


def test_a_class_that_no_sample_shows_is_said_and_cleared(open_page: OpenPage, index: str) -> None:
    page = open_page(f"{index}#/samples?class=unicorn&sort=nothing")
    chosen = "[name=class] option:checked"
    assert shown(page) == 0
    assert page.locator(chosen).text_content() == "unicorn (0)"
    assert page.locator("[name=sort] option:checked").text_content() == "source"
    page.click("#clear")
    assert shown(page) == 48
    assert page.input_value("[name=class]") == ""
    assert page.locator(chosen).count() == 1, "a control is never blank"


def test_an_id_that_is_not_there_is_said(open_page: OpenPage, index: str) -> None:
    page = open_page(f"{index}#/sample/12345")
    assert page.inner_text("#unknown").startswith("There is no sample 12345 in this report.")
    page.fill("[name=find]", "")
    assert shown(page) == 48
    assert page.is_hidden("#unknown")


@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_no_figure_of_the_overview_stands_alone(open_page: OpenPage, index: str, width: int) -> None:
    page = open_page(index, width=width)
    tops = page.evaluate("[...document.querySelectorAll('.tile')].map((tile) => tile.getBoundingClientRect().top)")
    assert min(map(tops.count, tops)) > 1


def test_a_view_can_be_shared(open_page: OpenPage, index: str) -> None:
    page = open_page(f"{index}#/samples")
    page.select_option("[name=class]", "traffic sign")
    page.check("[name=status][value=ok]")
    page.fill("[name='score_clip.to']", "0.9")
    page.select_option("[name=sort]", "score_clip")
    page.check("[name=descending]")
    page.click("#samples [data-mode=mask]")
    again = open_page(page.url)
    for one in (page, again):
        channel = SCENES.names.index("traffic sign")
        found = [s for s in SAMPLES if s.status == "ok" and channel in s.channels and s.score and s.score <= 0.9]
        assert ids_in(one) == [str(s.sample_id) for s in sorted(found, key=lambda s: -(s.score or 0))]
        assert one.get_attribute("#samples", "data-mode") == "mask"
        assert one.input_value("[name=class]") == "traffic sign"


@pytest.mark.parametrize("name", ["id", "seconds", "score_clip"])
def test_samples_are_sorted(open_page: OpenPage, index: str, name: str) -> None:
    page = open_page(f"{index}#/samples?sort={name}&descending=yes", height=3000)
    ids = ids_in(page)
    assert len(ids) == 48
    by_id = {str(one.sample_id): one for one in SAMPLES}
    if name == "score_clip":
        scores = [by_id[id_].score for id_ in ids]
        known = [score for score in scores if score is not None]
        assert known == sorted(known, reverse=True)
        assert scores[: len(known)] == known, "what has no score comes last"
    elif name == "id":
        assert ids == sorted(by_id, reverse=True)
    else:
        seconds = [by_id[id_].seconds for id_ in ids]
        assert seconds == sorted(seconds, reverse=True)
        assert len(set(seconds)) > 1


def test_the_switch_shows_image_mask_and_overlay(open_page: OpenPage, index: str) -> None:
    page = open_page(f"{index}#/samples")
    one = next(s for s in SAMPLES if s.status == "ok" and s.channels[0] != s.channels[1] and s.size == (48, 32))
    selector = cell_of(page, one)
    colours = [SCENES.colours[channel] for channel in one.channels]
    for mode, opacity in (("image", 0.0), ("mask", 1.0), ("overlay", 0.55)):
        page.click(f"#samples [data-mode={mode}]")
        expected = [opacity * colour + (1 - opacity) * np.array(one.colour) for colour in colours]
        for pixel, colour in zip(halves(pixels_of(page, selector)), expected, strict=True):
            assert is_near(pixel, colour), mode
    page.locator("#samples .opacity input").fill("20")
    expected = [0.2 * colour + 0.8 * np.array(one.colour) for colour in colours]
    for pixel, colour in zip(halves(pixels_of(page, selector)), expected, strict=True):
        assert is_near(pixel, colour)


@pytest.mark.parametrize("size", [(48, 32), (400, 300)])
def test_a_page_shows_the_sample_whole(open_page: OpenPage, index: str, size: tuple[int, int]) -> None:
    one = next(s for s in SAMPLES if s.status == "ok" and s.size == size)
    page = open_page(f"{index}#/sample/{one.sample_id}?mode=mask")
    page.wait_for_selector("#made img.mask")
    drawn = page.evaluate(
        """() => { const mask = document.querySelector("#made img.mask");
        const canvas = document.createElement("canvas"); canvas.width = mask.naturalWidth;
        canvas.height = mask.naturalHeight; const context = canvas.getContext("2d"); context.drawImage(mask, 0, 0);
        return [canvas.width, canvas.height, [...context.getImageData(0, 0, canvas.width, canvas.height).data]]; }"""
    )
    assert tuple(drawn[:2]) == size
    colours = np.array(drawn[2], np.uint8).reshape(size[1], size[0], 4)[..., :3]
    assert np.array_equal(colours, encode(mask_of(one), SCENES))
    page.click("#sample [data-mode=image]")
    assert all(is_near(pixel, one.colour) for pixel in halves(pixels_of(page, "#made .stage")))
    names, values = (page.locator(f"#facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    facts = dict(zip(names, values, strict=True))
    assert facts["seed"] == str(one.sample_id - 1)
    assert facts["size"] == f"{size[0]} × {size[1]}"
    assert facts["microbatch"] == "4"
    figures = page.locator("#sample-classes .figures").all_inner_texts()
    plain = f"{image_of(one)[..., 0].size // 2:,} px, 50%"
    several, single = (", 3 segments (1 of them a crowd)", ", 1 segment") if one.segments else ("", "")
    scored = plain + several + ("" if one.score is None else f", clip {one.score:g}")
    assert sorted(figures) == sorted([plain + single, scored])
    assert facts.get("score clip") == (None if one.score is None else f"{one.score:g}")
    assert page.locator("#scores legend").all_text_contents() == ["score clip"]


def test_a_page_says_how_to_make_it_again(open_page: OpenPage, index: str) -> None:
    one = next(s for s in SAMPLES if s.status == "ok")
    page = open_page(f"{index}#/sample/{one.sample_id}", permissions=["clipboard-read", "clipboard-write"])
    page.click("#copy")
    page.wait_for_selector("text=Copied")
    line = page.inner_text("#command")
    assert page.evaluate("navigator.clipboard.readText()") == line
    words = shlex.split(line)
    assert words[:2] == ["segdatagen", "regenerate"]
    assert Path(words[2], "run.json").is_file(), "a folder with a space in its name"
    assert words[3] == str(one.sample_id)
    typer.main.get_command(app).commands["regenerate"].make_context("regenerate", words[2:])
    failed = next(s for s in SAMPLES if s.status == "failed")
    page.goto(f"{index}#/sample/{failed.sample_id}")
    assert page.inner_text("#command") == "segdatagen run JOB.yaml --retry-failed"
    assert page.inner_text("#made .why") == failed.reason


def test_the_pointer_reads_classes_and_a_class_stands_alone(open_page: OpenPage, index: str) -> None:
    one = next(s for s in SAMPLES if s.status == "ok")
    page = open_page(f"{index}#/sample/{one.sample_id}")
    box = page.locator("#made .stage").bounding_box()
    pixels_of(page, "#made .stage")
    for side, channel in ((0.25, one.channels[0]), (0.75, one.channels[1])):
        page.mouse.move(box["x"] + side * box["width"], box["y"] + 5)
        assert page.inner_text("#pixel").endswith(f": {SCENES.names[channel]}")
    page.mouse.move(0, 0)
    page.locator("#sample-classes button", has_text=re.compile(f"^{SCENES.names[one.channels[1]]}")).click()
    left, right = halves(pixels_of(page, "#made .stage"))
    assert is_near(right, one.colour)
    assert not is_near(left, one.colour)
    page.click("#sample-classes button[aria-pressed=true]")
    assert all(is_near(pixel, one.colour) for pixel in halves(pixels_of(page, "#made .stage")))
