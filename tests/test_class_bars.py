"""The picture of class counts: whole XML, bars as long as the numbers say, names escaped, small."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdatagen.class_bars import LEFT, MIDDLE, MIN_BAR, ClassBar, class_bars, tick_step
from segdatagen.svg import Svg, escaped, shortened

SPACE = "{http://www.w3.org/2000/svg}"


def boxes(root: ElementTree.Element, kind: str) -> list[list[float]]:
    """x, y, width, height of every box of a kind, below the legend."""
    path = "".join(e.attrib["d"] for e in root.iter(f"{SPACE}path") if e.attrib["class"] == kind)
    found = [[float(n) for n in box] for box in re.findall(r"M(\S+) (\S+)h(\S+?)v(\S+?)h-\S+?z", path)]
    return [box for box in found if box[1] > 70]


def texts(root: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in root.iter(f"{SPACE}text")]


def test_bars_are_as_long_as_the_numbers_and_follow_each_other() -> None:
    rng = np.random.default_rng(0)
    bars = [ClassBar(f"class {i}", *(int(n) for n in rng.integers(0, 5000, 4))) for i in range(30)]
    root = ElementTree.fromstring(class_bars(bars, "title", "figures"))
    ordered = sorted(bars, key=lambda bar: -bar.real)
    most = max(int(text.replace(",", "")) for text in texts(root) if re.fullmatch(r"[\d,]+", text))
    unit = MIDDLE / most
    assert most >= max(max(sum(bar.parts), bar.wanted) for bar in bars)
    for place, kind in enumerate(("real", "accepted", "planned")):
        expected = [
            [LEFT + unit * sum(b.parts[:place]), max(MIN_BAR, unit * b.parts[place])] for b in ordered if b.parts[place]
        ]
        drawn = [[x, width] for x, _, width, _ in boxes(root, kind)]
        assert np.allclose(drawn, expected, atol=0.11)
    assert np.allclose([x for x, *_ in boxes(root, "wanted")], [LEFT + unit * b.wanted - 1 for b in ordered], atol=0.11)
    rows = [y for _, y, *_ in boxes(root, "real")]
    assert rows == sorted(rows)


def test_numbers_stand_beside_the_bars() -> None:
    bars = [ClassBar("car", 167, 0, 91), ClassBar("bicycle", 15, 5, 40, wanted=60), ClassBar("tram", 0, 0, 0)]
    found = texts(ElementTree.fromstring(class_bars(bars, "title", "figures")))
    for text in ("title", "figures", "car", "167 \u2192 258", "20 \u2192 60", "tram", "0"):
        assert text in found


@given(st.text())
def test_any_name_becomes_text(name: str) -> None:
    root = ElementTree.fromstring(class_bars([ClassBar(name, 3, 0, 1)], name, name))
    assert len(list(root.iter(f"{SPACE}text"))) == 2 + 5 + 2 + 5
    assert not list(root.iter("script"))


def test_markup_in_a_name_is_shown_and_not_run() -> None:
    picture = class_bars([ClassBar("<script>x</script>", 3, 0, 1)], "a & b", "1 < 2")
    assert "<script>" not in picture
    assert "<script>x</script>" in texts(ElementTree.fromstring(picture))
    assert escaped("a\x00b<") == "a\ufffdb&lt;"


def test_150_classes_with_long_names_take_less_than_50_kb() -> None:
    counts = np.geomspace(64_000, 190, 150).astype(int)
    bars = [ClassBar("<&>" * 20, int(n), 12_345, 21_035, 21_035) for n in counts]
    assert len(class_bars(bars, "round 0", "figures").encode()) < 50_000


def test_light_and_dark_have_the_same_kinds() -> None:
    picture = class_bars([ClassBar("car", 1, 2, 3, 4)], "title", "figures")
    light, dark = re.search(r"<style>(.*)@media\(prefers-color-scheme:dark\)\{(.*)\}</style>", picture).groups()
    kinds = set(re.findall(r'class="(\w+)"', picture)) - {"name", "title"}
    for kind in kinds - {"planned"}:
        assert f".{kind}{{" in light
        assert f".{kind}{{" in dark


def test_no_classes_make_a_picture_all_the_same() -> None:
    ElementTree.fromstring(class_bars([], "title", "figures"))


def test_ticks_are_the_least_round_numbers_of_which_six_are_enough() -> None:
    for most in [*range(1, 3000), 10**9, 6 * 10**8, 6 * 10**8 + 1]:
        round_numbers = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
        assert tick_step(most) == next(step for step in round_numbers if 6 * step >= most)


@pytest.mark.parametrize(
    ("text", "short"), [("a" * 9, "a" * 9), ("a" * 10, "a" * 8 + "\u2026"), ("道" * 9, "道道道\u2026"), ("", "")]
)
def test_long_names_are_cut(text: str, short: str) -> None:
    assert shortened(text, 9) == short


def test_boxes_without_an_area_are_left_out() -> None:
    picture = Svg(10, 10, "t", "")
    picture.boxes("real", [(0, 0, 0, 5), (0, 0, 5, 0)])
    assert "path" not in picture.render()
