"""Label sets: what is written is read back, what is no label set is refused whole, and colours stay apart."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from segdatagen.errors import UsageError
from segdatagen.labels import (
    LabelClass,
    LabelSet,
    from_colormap,
    load_label_set,
    shipped_label_sets,
)

SHARED = Path(os.environ.get("SEGDATAGEN_SHARED", Path(__file__).parents[2] / "shared"))

GOOD = """
name: tiny
version: "1"
ignore_ids: [255]
background_ids: [0]
classes:
  - {id: 0, name: ground, prompt: ground, aliases: [floor], colour: [0, 0, 0], kind: stuff}
  - {id: 7, name: traffic sign, prompt: traffic sign, aliases: [], colour: [255, 0, 0], kind: thing}
  - {id: 300, name: car, prompt: red car, aliases: [auto, vehicle], colour: [0, 0, 255], kind: thing}
"""


def shared_file(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs {path}: set SEGDATAGEN_SHARED to the folder of shared inputs")
    return path


def label_sets() -> st.SearchStrategy[LabelSet]:
    word = st.text(min_size=1, max_size=8).map(str.strip).filter(lambda text: text and len(text.splitlines()) == 1)

    @st.composite
    def draw_set(draw: st.DrawFn) -> LabelSet:
        num_classes = draw(st.integers(1, 6))
        ids = draw(st.lists(st.integers(0, 65535), min_size=num_classes + 1, max_size=num_classes + 1, unique=True))
        colours = st.tuples(*[st.integers(0, 255)] * 3)
        words = draw(st.lists(word, min_size=2 * num_classes, max_size=2 * num_classes, unique_by=str.casefold))
        palette = draw(st.lists(colours, min_size=num_classes, max_size=num_classes, unique=True))
        classes = tuple(
            LabelClass(
                id=ids[i],
                name=words[2 * i],
                prompt=draw(word),
                aliases=(words[2 * i + 1],),
                colour=palette[i],
                kind=draw(st.sampled_from(["thing", "stuff"])),
            )
            for i in range(num_classes)
        )
        return LabelSet(
            name=draw(word), version=draw(word), classes=classes, ignore_ids=(ids[-1],), background_ids=(ids[0],)
        )

    return draw_set()


def test_channel_is_the_position_and_not_the_id() -> None:
    labels = LabelSet.from_yaml(GOOD)
    assert labels.num_classes == 3
    assert labels.names == ("ground", "traffic sign", "car")
    assert labels.ids.dtype == np.int64
    assert labels.ids.tolist() == [0, 7, 300]
    assert labels.colours.dtype == np.uint8
    assert labels.colours.tolist() == [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    assert [labels.channel_of(name) for name in labels.names] == [0, 1, 2]


def test_channel_table_tells_classes_from_ignored_and_unknown_ids() -> None:
    table = LabelSet.from_yaml(GOOD).channel_table()
    assert table.dtype == np.int16
    assert table.shape == (65536,)
    assert {id_: int(table[id_]) for id_ in (0, 7, 300, 255)} == {0: 0, 7: 1, 300: 2, 255: -1}
    assert (table == -2).sum() == 65536 - 4


def test_a_class_is_found_by_name_and_alias_in_any_case() -> None:
    labels = LabelSet.from_yaml(GOOD)
    assert labels.channel_of("Floor") == 0
    assert labels.channel_of("Traffic Sign") == 1
    assert labels.channel_of("VEHICLE") == 2


def test_an_unknown_class_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"tiny has no class 'traffic sing'.*one of: traffic sign\?"):
        LabelSet.from_yaml(GOOD).channel_of("traffic sing")


@given(label_sets())
@settings(max_examples=60)
def test_yaml_round_trip_keeps_set_and_fingerprint(labels: LabelSet) -> None:
    again = LabelSet.from_yaml(labels.to_yaml())
    assert again == labels
    assert again.fingerprint() == labels.fingerprint()


def test_fingerprint_ignores_layout_and_comments_but_no_content() -> None:
    labels = LabelSet.from_yaml(GOOD)
    fingerprint = labels.fingerprint()
    assert len(fingerprint) == 16
    assert LabelSet.from_yaml("# a comment\n" + GOOD.replace(", aliases: []", "")).fingerprint() == fingerprint
    edits = [
        ("red car", "blue car"),
        ("[255, 0, 0]", "[254, 0, 0]"),
        ("[auto, vehicle]", "[vehicle, auto]"),
        ("kind: stuff", "kind: thing"),
        ('version: "1"', 'version: "2"'),
        ("background_ids: [0]", "background_ids: []"),
        ("ignore_ids: [255]", "ignore_ids: []"),
    ]
    others = {LabelSet.from_yaml(GOOD.replace(old, new)).fingerprint() for old, new in edits}
    assert len(others - {fingerprint}) == len(edits)


def test_order_of_classes_is_content() -> None:
    labels = LabelSet.from_yaml(GOOD)
    turned = labels.model_copy(update={"classes": labels.classes[::-1]})
    assert turned.fingerprint() != labels.fingerprint()


@pytest.mark.parametrize(
    ("row", "old", "new"),
    [
        ("an id that stands twice", "id: 7", "id: 0"),
        ("`id: 65536`", "id: 7", "id: 65536"),
        ("`id: -1`", "id: 7", "id: -1"),
        ("`id: 7.0`", "id: 7", "id: 7.0"),
        ("`id: true`", "id: 7", "id: true"),
        ("a class without id", "id: 7, ", ""),
        ("a name that is another's, in capitals", "name: car", "name: GROUND"),
        ("an alias of two classes", "[auto, vehicle]", "[floor]"),
        ("an alias that is the name of its class", "[auto, vehicle]", "[Car]"),
        ("`name: no`", "name: car", "name: no"),
        ("`prompt: ' red'`", "red car", "' red'"),
        ("a colour that stands twice", "[255, 0, 0]", "[0, 0, 0]"),
        ("`colour: [256, 0, 0]`", "[255, 0, 0]", "[256, 0, 0]"),
        ("`colour: [1, 2]`", "[255, 0, 0]", "[1, 2]"),
        ("`kind: staff`", "kind: stuff", "kind: staff"),
        ("`color: 3` in a class", "kind: stuff", "kind: stuff, color: 3"),
        ("an ignore id that is a class", "ignore_ids: [255]", "ignore_ids: [7]"),
        ("a background id that is no class", "background_ids: [0]", "background_ids: [1]"),
        ("`version: 1`", 'version: "1"', "version: 1"),
        ("`nam: tiny`", "name: tiny", "nam: tiny"),
    ],
)
def test_each_problem_is_named_with_its_class_and_what_is_allowed(
    refused_here: Refused, tmp_path: Path, row: str, old: str, new: str
) -> None:
    assert GOOD.count(old) == 1
    path = tmp_path / "labels.yaml"
    path.write_text(GOOD.replace(old, new))
    refused_here("labels", "validate", path, row=row)
    with pytest.raises(UsageError, match=r"^label set: "):
        LabelSet.from_yaml(path.read_text())


def refusal_of(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        LabelSet.from_yaml(text)
    return str(caught.value)


def test_all_problems_are_reported_at_once() -> None:
    text = GOOD.replace("id: 7", "id: 255").replace("[0, 0, 255]", "[255, 0, 0]").replace("kind: stuff", "kind: staff")
    refusal = refusal_of(text.replace('version: "1"', "version: 1"))
    for word in ("kind is 'staff'", "version is 1", "colour [255, 0, 0]", "ignore_ids: 255"):
        assert refusal.count(word) == 1, word


def test_a_class_that_cannot_be_read_is_not_taken_for_a_missing_background() -> None:
    assert "background_ids" in GOOD
    assert "background_ids" not in refusal_of(GOOD.replace("kind: stuff", "kind: staff"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: tiny\nclasses: [1, 2\nversion: 3\n", "broken YAML at line 3"),
        ("name: tiny\nname: other\n", "broken YAML at line 2, column 1: key 'name' stands twice"),
        ("name: \x00", "broken YAML: unacceptable character"),
        ("", "expected a mapping with the keys name, version"),
        ("- 3", "expected a mapping"),
        ("name: a\nversion: b\nclasses: []", "classes is []; allowed is a list of at least one class"),
        ("name: a\nversion: b\nclasses: {a: 1}", "classes is {'a': 1}; allowed is a list of at least one class"),
        ("name: a\nversion: b\nclasses: [3]", "class number 1: 3 is no class; allowed is a mapping with the keys id"),
        ("1: 2\nname: a\nversion: b\nclasses: []", "1 is an unknown key"),
    ],
)
def test_what_is_no_label_set_at_all_is_one_sentence(text: str, problem: str) -> None:
    refusal = refusal_of(text)
    assert f": {problem}" in refusal or f"; {problem}" in refusal
    assert "\n" not in refusal


def test_built_directly_a_contradiction_is_refused_too() -> None:
    labels = LabelSet.from_yaml(GOOD)
    with pytest.raises(ValidationError, match="ignore_ids: 7 is the id"):
        LabelSet(name="a", version="1", classes=labels.classes, ignore_ids=(7,))


def test_a_label_set_is_frozen_and_hashable() -> None:
    labels = LabelSet.from_yaml(GOOD)
    with pytest.raises(ValidationError):
        labels.name = "other"  # type: ignore[misc]
    assert hash(labels) == hash(LabelSet.from_yaml(GOOD))


def test_load_reads_a_path_and_names_it_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_label_set(str(path)) == LabelSet.from_yaml(GOOD)
    path.write_text(GOOD.replace("id: 7", "id: 0"))
    with pytest.raises(UsageError, match=r"mine\.yaml: class 'traffic sign': id 0"):
        load_label_set(str(path))
    path.write_bytes(b"name: \xff")
    with pytest.raises(UsageError, match=r"mine\.yaml cannot be read as UTF-8"):
        load_label_set(str(path))


def test_load_of_an_unknown_name_lists_the_shipped_sets() -> None:
    with pytest.raises(UsageError, match=r"'camvd' is neither .*camvid, .*voc"):
        load_label_set("camvd")


@pytest.mark.parametrize("name", shipped_label_sets())
def test_shipped_sets_are_good_and_named_for_their_file(name: str) -> None:
    labels = load_label_set(name)
    assert labels.name == name
    assert LabelSet.from_yaml(labels.to_yaml()) == labels


@pytest.mark.parametrize("name", ["camvid", "voc"])
def test_shipped_sets_hold_the_published_facts(name: str) -> None:
    facts = json.loads(shared_file(f"data/labels/{name}.json").read_text())
    labels = load_label_set(name)
    assert labels.ids.tolist() == [row["id"] for row in facts["classes"]]
    assert list(labels.names) == [row["name"] for row in facts["classes"]]
    assert labels.colours.tolist() == [row["color"] for row in facts["classes"]]
    assert labels.ignore_ids == (facts["ignore_id"],)


def published(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(shared_file(f"data/labels/{name}.json").read_text())["classes"]
    return rows


def colours_that_differ(labels: LabelSet, rows: list[dict[str, Any]]) -> list[str]:
    assert len(rows) == labels.num_classes
    pairs = zip(labels.classes, rows, strict=True)
    return [label.name for label, row in pairs if list(label.colour) != row["color"]]


PEOPLE = {"man", "woman", "boy", "girl", "child"}
"""What captions call persons, and the published synonyms do not."""


def test_ade20k_is_as_published_from_1_to_150_with_0_ignored() -> None:
    labels, rows = load_label_set("ade20k"), published("ade20k")
    assert labels.ids.tolist() == list(range(1, 151)) == [row["id"] for row in rows]
    assert labels.ignore_ids == (0,)
    assert [label.kind == "stuff" for label in labels.classes] == [row["stuff"] for row in rows]
    assert colours_that_differ(labels, rows) == ["skyscraper"]
    for label, row in zip(labels.classes, rows, strict=True):
        # The facts have names and synonyms cut into words.
        names = [name for name in (label.name, *label.aliases) if name not in PEOPLE]
        words, found = " ".join(names).split(), [row["name"], *row["aliases"]]
        assert set(words) <= set(found)
        assert words[0] == found[0]


def test_coco_panoptic_keeps_the_gaps_between_the_published_ids() -> None:
    labels, rows = load_label_set("coco_panoptic"), published("coco_panoptic")
    assert labels.num_classes == 133
    assert labels.ids.tolist() == [row["id"] for row in rows]
    assert list(labels.names) == [row["name"] for row in rows]
    assert [label.kind == "thing" for label in labels.classes] == [row["isthing"] for row in rows]
    assert colours_that_differ(labels, rows) == []
    assert (labels.ignore_ids, int(labels.ids.max())) == ((0,), 200)
    assert labels.channel_table()[[11, 12, 13]].tolist() == [10, -2, 11]


def test_both_cityscapes_sets_are_the_same_classes_under_two_ids() -> None:
    rows = published("cityscapes")
    by_label, by_train = load_label_set("cityscapes_label_ids"), load_label_set("cityscapes_train_ids")
    evaluated = sorted((row for row in rows if 0 <= row["train_id"] < 255), key=lambda row: row["train_id"])
    for labels, key in ((by_label, "id"), (by_train, "train_id")):
        assert labels.ids.tolist() == [row[key] for row in evaluated]
        assert list(labels.names) == [row["name"] for row in evaluated]
        assert colours_that_differ(labels, evaluated) == []
    assert by_train.ignore_ids == (255,)
    assert set(by_label.ids.tolist()) | set(by_label.ignore_ids) == set(range(34))
    # An id of a file of one kind and the train id of the same class have one channel; what is void has none.
    known = [row for row in rows if row["id"] >= 0]
    ids, train_ids = [row["id"] for row in known], [row["train_id"] for row in known]
    assert by_label.channel_table()[ids].tolist() == by_train.channel_table()[train_ids].tolist()


def test_bdd100k_has_the_train_ids_of_cityscapes_and_its_own_panoptic_ids() -> None:
    labels, rows = load_label_set("bdd100k"), published("bdd100k")
    assert {label.id: label.name for label in labels.classes} == {
        row["train_id"]: row["name"] for row in rows if row["train_id"] != 255
    }
    assert labels.classes == load_label_set("cityscapes_train_ids").classes
    panoptic = load_label_set("bdd100k_panoptic")
    assert [(label.id, label.name) for label in panoptic.classes] == [(row["id"], row["name"]) for row in rows[1:]]
    assert (panoptic.ignore_ids, rows[0]["name"]) == ((0,), "unlabeled")
    assert colours_that_differ(panoptic, rows[1:]) == ["ego vehicle", "parking sign", "polegroup"]


def test_only_the_background_never_counts_for_balance() -> None:
    backgrounds = {name: load_label_set(name).background_ids for name in shipped_label_sets()}
    with_background = {"bdd100k_instances", "colourbook_bdd", "voc"}
    assert backgrounds == {name: (0,) if name in with_background else () for name in backgrounds}


def test_colourbook_colours_follow_the_formula() -> None:
    labels = load_label_set("colourbook_bdd")
    formula = [[(123 * i + 7) % 256, (456 * i + 8) % 256, (789 * i + 9) % 256] for i in range(19)]
    assert labels.colours.tolist() == formula
    assert labels.ids.tolist() == list(range(19))
    assert (labels.ignore_ids, labels.background_ids) == ((), (0,))


def test_colourbook_is_the_colormap_of_the_published_pairs() -> None:
    mapping = json.loads(shared_file("data/samples/colourbook_bdd/colormap.json").read_text())
    ours, read = load_label_set("colourbook_bdd"), from_colormap("colormap", mapping)
    assert ours.names == read.names
    assert np.array_equal(ours.ids, read.ids)
    assert np.array_equal(ours.colours, read.colours)
    assert ours.background_ids == read.background_ids


def test_from_colormap_takes_the_order_for_channel_and_id() -> None:
    labels = from_colormap("mine", {"traffic_light": [1, 2, 3], "Background": [0, 0, 0]})
    assert labels.names == ("traffic_light", "Background")
    assert labels.classes[0].prompt == "traffic light"
    assert labels.ids.tolist() == [0, 1]
    assert labels.colours.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert labels.background_ids == (1,)


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ({}, "classes is"),
        ({"a": [1, 2]}, "class 'a': colour is"),
        ({"a": [1, 2, 300]}, "class 'a': colour is"),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, "class 'b': colour"),
        ({"a": 3}, "class 'a': colour is 3"),
    ],
)
def test_from_colormap_refuses_what_is_no_colour_map(mapping: dict[str, list[int]], problem: str) -> None:
    with pytest.raises(UsageError, match=f"^colour map mine: {problem}"):
        from_colormap("mine", mapping)
