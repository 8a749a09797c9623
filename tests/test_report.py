"""What a report holds: the choice of samples, reasons, pictures, charts, and data that are those of the samples."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from committed import commit, make_run, plan
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import (
    HOSTILE,
    arguments_of,
    data_of,
    decoded,
    image_of,
    made_samples,
    make_reported_run,
    mask_of,
    report,
)
from test_decisions import decide, nobody_waits
from test_refilter import make_scored, move

from segdatagen.colours import encode
from segdatagen.exclude import exclude
from segdatagen.images import encode_image, encode_mask
from segdatagen.labels import LabelClass, LabelSet, load_label_set
from segdatagen.records import CLASS_SCORES
from segdatagen.report.charts import ClassBalance, columns_of, count_chart, share_chart
from segdatagen.report.outcomes import Outcomes, Reason, choose, group_reasons
from segdatagen.report.overview import balance_of
from segdatagen.report.pictures import MaskPainter, layers
from segdatagen.samples import STATUSES
from segdatagen.status import status_of


@st.composite
def outcomes(draw: st.DrawFn) -> Outcomes:
    """Up to 60 samples of two methods with classes and reasons of their own."""
    count = draw(st.integers(1, 60))

    def numbers(most: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, most), min_size=count, max_size=count)), np.int64)

    status, sample = numbers(2), np.arange(count)
    shows = np.array(sorted({(i, c) for i, c in zip(sample.tolist(), numbers(5).tolist(), strict=True) if status[i]}))
    reason = np.where(status == 2, -1, numbers(3))
    ids = np.array(draw(st.permutations(range(count))))
    empty = np.zeros(count, np.int32)
    texts = tuple(Reason(f"reason {n}", "failed", 1, "") for n in range(4))
    pairs = shows.reshape(-1, 2).astype(np.int64)
    places = (status.astype(np.uint8), empty, empty, empty, numbers(1), ("a", "b"))
    unscored = (pa.table({}), pa.chunked_array([], CLASS_SCORES))
    return Outcomes(ids, *places, pa.chunked_array([], pa.string()), reason, texts, pairs, *unscored, ())


@settings(max_examples=150)
@given(outcomes(), st.integers(1, 60))
def test_every_stratum_has_its_part_of_the_choice(found: Outcomes, limit: int) -> None:
    chosen = choose(found, limit)
    assert len(chosen) == min(limit, len(found.sample_ids))
    assert sorted(set(chosen.tolist())) == chosen.tolist()
    strata: dict[tuple[object, ...], set[int]] = {}
    for i in range(len(found.sample_ids)):
        base = (int(found.method[i]), int(found.status[i]))
        strata.setdefault(base, set()).add(i)
        if found.reason[i] >= 0:
            strata.setdefault((*base, "reason", int(found.reason[i])), set()).add(i)
        for channel in found.shows[found.shows[:, 0] == i, 1].tolist():
            strata.setdefault((*base, "class", channel), set()).add(i)
    for stratum, members in strata.items():
        assert len(members & set(chosen.tolist())) >= min(len(members), limit // len(strata)), stratum


def test_reasons_that_differ_in_numbers_are_one() -> None:
    texts = ["load: 7 of 12.5 mask2img", None, "load: 81 of 3 mask2img", "clip: x1", "load: 7 of 12.5 mask2img", "no"]
    status = np.array([STATUSES.index(name) for name in ("failed", "ok", "failed", "rejected", "rejected", "failed")])
    codes, groups = group_reasons(pa.chunked_array([texts], pa.string()), status.astype(np.uint8))
    assert [(one.text, one.status, one.count) for one in groups] == [
        ("load: # of # mask2img", "failed", 2),
        ("clip: x1", "rejected", 1),
        ("load: # of # mask2img", "rejected", 1),
        ("no", "failed", 1),
    ]
    assert groups[0].example == "load: 7 of 12.5 mask2img"
    assert codes.tolist() == [0, -1, 0, 1, 2, 3]


@pytest.mark.parametrize("num_classes", [12, 150, 300])
def test_masks_are_painted_as_the_label_set_says(num_classes: int) -> None:
    """Eight and sixteen bits, with a palette and without; ids that are ignored or unknown have colours of their own."""
    label_set = many_classes(num_classes)
    painter = MaskPainter(label_set)
    ids = np.append(label_set.ids, 65535).astype(np.uint16)
    mask = np.random.default_rng(0).choice(ids, (30, 40))
    (shown,) = layers(None, encode_mask(mask), painter, [None])
    assert shown.mask is not None
    assert np.array_equal(decoded(shown.mask), encode(mask, label_set, painter.ignore_colour))
    (unknown,) = layers(None, encode_mask(np.full((2, 2), 7, np.uint16)), painter, [None])
    assert unknown.mask is not None
    assert {tuple(pixel) for pixel in decoded(unknown.mask).reshape(-1, 3).tolist()} == {painter.unknown_colour}
    own = {*map(tuple, label_set.colours.tolist()), painter.ignore_colour}
    assert painter.unknown_colour not in own


def many_classes(count: int) -> LabelSet:
    """A label set with ids that need sixteen bits; 7 is none of them."""
    colours = np.random.default_rng(1).permutation(1 << 24)[:count]
    return LabelSet(
        name="many",
        version="1",
        ignore_ids=(65535,),
        classes=tuple(
            LabelClass(
                id=300 + 2 * number,
                name=f"class {number}",
                prompt="thing",
                colour=(colour & 255, colour >> 8 & 255, colour >> 16),
                kind="stuff",
            )
            for number, colour in enumerate(colours.tolist())
        ),
    )


def test_pictures_are_stored_whole_and_small() -> None:
    painter = MaskPainter(load_label_set("scenes"))
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    mask = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((100, 100), np.uint8))
    small, whole = layers(encode_image(image, "png"), encode_mask(mask), painter, [160, None])
    assert np.array_equal(decoded(str(whole.image)), image)
    assert decoded(str(small.image)).shape == decoded(str(small.mask)).shape == (120, 160, 3)
    colours = encode(mask, load_label_set("scenes"))
    assert np.array_equal(decoded(str(small.mask))[20::40, 20::40], colours[50::100, 50::100])
    tiny, same = layers(encode_image(image[:30, :40]), None, painter, [160, None])
    assert tiny == same
    assert str(tiny.image).startswith("data:image/jpeg")


def test_what_cannot_be_decoded_is_said() -> None:
    painter = MaskPainter(load_label_set("scenes"))
    good = encode_image(np.zeros((9, 9, 3), np.uint8))
    (shown,) = layers(good[: len(good) // 2], b"no mask", painter, [None])
    assert (shown.image, shown.mask) == (None, None)
    assert re.fullmatch(r"the image cannot be decoded: .*; the mask cannot be decoded: not a PNG", str(shown.problem))


BALANCE = [
    ClassBalance("often", "#102030", 80, 100, 0, "#/samples?class=often"),
    ClassBalance(HOSTILE, "#405060", 10, 50, 60, "#/samples?class=x"),
    ClassBalance("never", "#708090", 0, 0, 5, "#/samples?class=never"),
]


def test_bars_are_as_long_as_the_counts_say() -> None:
    chart = ElementTree.fromstring(str(count_chart(BALANCE, 100)))
    bars = [(r.get("class"), r.get("x"), r.get("width")) for r in chart.iter("rect") if r.get("class") in BARS]
    assert bars == [
        ("before", "0.00%", "80.00%"),
        ("added", "80.00%", "20.00%"),
        ("before", "0.00%", "10.00%"),
        ("added", "10.00%", "40.00%"),
        ("before", "0.00%", "0.00%"),
        ("added", "0.00%", "0.00%"),
    ]
    assert [line.get("x1") for line in chart.iter("line")] == ["60.00%", "5.00%"], "goals"
    assert [text.text for text in chart.iter("text")][2] == HOSTILE
    words = [link.get("aria-label") for link in chart.iter("a")]
    assert words[0] == "often: 80 real images, 20 accepted samples"
    assert words[1] == f"{HOSTILE}: 10 real images, 40 accepted samples, 60 wanted"


BARS = ("before", "added")


def test_dots_stand_at_the_shares() -> None:
    chart = ElementTree.fromstring(str(share_chart(BALANCE, 90, 150, 1.0)))
    dots = [(dot.get("class"), dot.get("cx")) for dot in chart.iter("circle")]
    shares = [(80 / 90, 100 / 150), (10 / 90, 50 / 150), (0, 0)]
    assert dots == [
        (kind, f"{100 * share:.2f}%") for pair in shares for kind, share in zip(("before", "after"), pair, strict=True)
    ]


@pytest.mark.parametrize("count", [0, 1, 40, 41, 150])
def test_many_classes_stand_in_columns(count: int) -> None:
    classes = [BALANCE[0]] * count
    columns = columns_of(classes)
    assert sum(map(len, columns)) == count
    assert len(columns) == -(-count // 40)
    assert not columns or max(map(len, columns)) - min(map(len, columns)) <= 1


def test_the_data_are_those_of_the_samples(tmp_path: Path) -> None:
    samples = made_samples()
    result = report(make_reported_run(tmp_path / "run", samples))
    data = data_of(result)
    columns, by_id = data["columns"], {str(one.sample_id): one for one in samples}
    assert sorted(columns["id"]) == sorted(by_id)
    assert (result.num_shown, result.num_samples) == (48, 48)
    folder = Path(result.index).parent
    thumbnails = [item for name in data["thumbnails"] for item in arguments_of(folder / name)]
    pages = [arguments_of(folder / name) for name in data["pages"]]
    for place, id_ in enumerate(columns["id"]):
        one = by_id[id_]
        assert data["methods"][columns["method"][place]] == one.method
        assert data["statuses"][columns["status"][place]] == one.status
        assert columns["why"][place] == one.reason
        file, item = columns["page"][place]
        page = pages[file][item]
        assert page["seed"] == str(one.sample_id - 1)
        if one.status == "failed":
            assert thumbnails[place] == [None, None]
            continue
        image, mask = page["image"] or thumbnails[place][0], page["mask"] or thumbnails[place][1]
        assert np.array_equal(decoded(image), image_of(one))
        assert np.array_equal(decoded(mask), encode(mask_of(one), load_label_set("scenes")))
        half = one.size[0] // 2 * one.size[1]
        assert sorted(page["pixels"]) == sorted([[one.channels[0], half], [one.channels[1], half]])
        assert columns["classes"][place] == sorted(one.channels)
        own, other = one.channels
        assert page["segments"] == (sorted([[own, 3, 1], [other, 1, 0]]) if one.segments else [])
        assert page["scores"] == ([] if one.score is None else [[one.channels[0], "clip", one.score]])
    (name, values) = data["scores"][0]
    assert len(data["scores"]) == 1, "a column without a figure is none"
    assert name == "score_clip"
    assert values == [by_id[id_].score for id_ in columns["id"]]


def test_reasons_are_those_that_were_decided_last(tmp_path: Path) -> None:
    run = make_scored(tmp_path / "run", {1: 0.2, 2: 0.4, 3: 0.55, 4: 0.7, 5: 0.8, 6: 0.9})
    plan(run, [7, 8], number=1)
    commit(run, [7, 8], "failed", number=1)
    move(run, adherence_min=0.6)
    decide(run, "mine", "ok", [1])
    decide(run, "theirs", "rejected", [6, 7])
    exclude(run, [2, 5], "the car floats", nobody_waits)
    data = data_of(report(run))
    columns, statuses = data["columns"], data["statuses"]
    shown = zip(columns["id"], columns["status"], columns["why"], strict=True)
    expected = {
        "1": ("ok", None),
        "2": ("rejected", "excluded: the car floats"),
        "3": ("rejected", "filter: adherence below 0.6"),
        "4": ("ok", None),
        "5": ("rejected", "excluded: the car floats"),
        "6": ("rejected", "no reason was recorded"),
        "7": ("failed", "failed for a reason"),
        "8": ("failed", "failed for a reason"),
    }
    assert {id_: (statuses[code], why) for id_, code, why in shown} == expected
    found = {text: count for text, _, count in data["reasons"]}
    assert found == {
        "filter: adherence below #" if "below" in why else why: n for why, n in status_of(run).reasons.items()
    }
    groups = [None if code < 0 else data["reasons"][code][0] for code in columns["reason"]]
    assert [group is None for group in groups] == [why is None for why in columns["why"]]


def test_what_a_goal_cannot_reach_is_what_the_last_round_could_not(tmp_path: Path) -> None:
    """A class of a goal that was dropped, or whose source was made at last, is no matter any more."""
    run = make_reported_run(tmp_path / "run", made_samples())
    status = status_of(run)
    first = status.rounds[-1].model_copy(update={"unreachable": ("bicycle",)})
    for rounds, names in (((first,), ("bicycle",)), ((first, status.rounds[-1]), ())):
        found = balance_of(status.model_copy(update={"rounds": rounds}), run.label_set)
        assert found is not None
        assert found.unreachable == names


def test_a_page_without_samples(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert data_of(report(run))["columns"]["id"] == []
    plan(run, [1, 2])
    result = report(run)
    assert (result.num_shown, result.num_samples) == (0, 0)
    commit(run, [1, 2], "failed")
    assert data_of(report(run))["reasons"] == [["failed for a reason", "failed", 2]]


def test_a_report_shows_a_choice_and_says_so(tmp_path: Path) -> None:
    result = report(make_reported_run(tmp_path / "run", made_samples()), max_samples=20)
    data = data_of(result)
    assert (result.num_shown, result.num_samples) == (20, 48)
    assert "shows 20 of 48 samples" in Path(result.index).read_text()
    shown = {data["statuses"][code] for code in data["columns"]["status"]}
    assert shown == set(STATUSES)
    bad = sum(one.status != "ok" for one in made_samples())
    assert sum(count for _, _, count in data["reasons"]) == bad, "reasons are those of all samples"
