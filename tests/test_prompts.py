"""Prompts: the kinds of SGA's Table 5, and budgets against a brute force over all prefixes and all sets of classes."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segdatagen.config_files import read_config
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.labels import load_label_set
from segdatagen.prompts import (
    LOOSE_ENDS,
    PromptOptions,
    PromptWriter,
    TokenBudget,
    append_classes,
    class_sentence,
    fit_prompt,
)

VOC = load_label_set("voc")
ID = {label.prompt: label.id for label in VOC.classes}
ROOM = "A room with a table and a laptop on it"
SHOWN = {ID["dining table"]: 900, ID["chair"]: 50, ID["sofa"]: 400}


def words_and_ends(text: str) -> int:
    return len(text.split()) + 2


def letters_and_ends(text: str) -> int:
    return len(text) + 2


def pieces(text: str) -> int:
    """Words, their punctuation apart, and long words in several pieces, roughly as in BPE."""
    return 2 + sum(-(-len(part) // 4) for part in text.replace(",", " , ").replace(";", " ; ").split())


WIDE = TokenBudget([words_and_ends])


def write(options: PromptOptions, caption: str | None = ROOM, shown: dict[int, int] = SHOWN, seed: int = 0) -> str:
    return PromptWriter(options, VOC, WIDE).write(caption, shown, seed).text


# Kinds: the rows of Table 5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("caption", ROOM),
        ("simple", "A photo of chair, dining table, sofa"),
        ("appended", f"{ROOM}; chair, dining table, sofa"),
    ],
)
def test_kinds_are_those_of_the_table_in_label_order(kind: Any, expected: str) -> None:
    assert write(PromptOptions(kind=kind)) == expected


def test_background_ignored_and_absent_classes_are_never_named() -> None:
    shown = {0: 5000, 255: 7, **SHOWN}
    assert write(PromptOptions(), shown=shown) == f"{ROOM}; chair, dining table, sofa"
    assert class_sentence(shown, VOC) == "A photo of chair, dining table, sofa"
    assert class_sentence([0], VOC) == ""


@pytest.mark.parametrize("caption", [None, "", "  \n ", "A photo of chair, dining table, sofa"])
@pytest.mark.parametrize("kind", ["appended", "caption", "simple"])
def test_without_a_caption_every_kind_is_the_simple_prompt(kind: Any, caption: str | None) -> None:
    assert write(PromptOptions(kind=kind), caption) == "A photo of chair, dining table, sofa"


def test_a_caption_becomes_one_line_without_a_loose_end() -> None:
    assert write(PromptOptions(), "A  room.\nWith a table. ") == "A room. With a table; chair, dining table, sofa"


def test_a_mask_without_classes_leaves_the_caption() -> None:
    assert write(PromptOptions(), shown={0: 9}) == ROOM
    nothing = PromptWriter(PromptOptions(), VOC, WIDE).write(None, {0: 9}, 0)
    assert (nothing.text, nothing.notes) == ("", "the prompt is empty")


# Templates, phrases and variations

STREETS = {"weather": ["in the rain", "in fog", "in sunshine"], "time": ["at night", "at noon"]}


def options(**fields: Any) -> PromptOptions:
    return PromptOptions.model_validate(fields)


def test_a_template_places_caption_classes_and_variations() -> None:
    template = "{{photo}} {weather}: {caption} ({classes})"
    found = {
        write(options(kind="template", template=template, variations=STREETS), "A road", {ID["car"]: 1}, seed)
        for seed in range(60)
    }
    assert found == {f"{{photo}} {w}: A road (car), {t}" for w in STREETS["weather"] for t in STREETS["time"]}


@pytest.mark.parametrize(
    ("template", "caption", "expected"),
    [
        ("{caption}; {classes}, detailed", "", "chair, detailed"),
        ("photo, {caption}, {classes}", "", "photo, chair"),
        ("photo of {classes}. {caption}", "", "photo of chair."),
        ("{caption}, raw", "", "A photo of chair, raw"),
        ("{caption}, raw", "a,, b", "a,, b, raw"),
    ],
)
def test_an_empty_field_leaves_no_gap(template: str, caption: str, expected: str) -> None:
    assert write(options(kind="template", template=template), caption, {ID["chair"]: 3}) == expected


def test_a_template_without_a_caption_shortens_none() -> None:
    writer = PromptWriter(options(kind="template", template="photo of {classes}"), VOC, WIDE)
    found = writer.write("word " * 100, {ID["chair"]: 3}, 0)
    assert (found.text, found.notes) == ("photo of chair", None)


def test_variations_stand_between_caption_and_classes() -> None:
    found = {write(options(variations={"weather": ["in fog", ""]}), "A road", {ID["car"]: 1}, s) for s in range(40)}
    assert found == {"A road, in fog; car", "A road; car"}


def test_every_phrase_of_a_class_is_drawn_and_the_same_for_the_same_seed() -> None:
    given_phrases = options(phrases={"Aeroplane": ["jet", "propeller plane"], "car": "old car"})
    writer = PromptWriter(given_phrases, VOC, WIDE)
    shown = {ID["aeroplane"]: 4, ID["car"]: 2}
    found = [writer.write("A field", shown, seed).text for seed in range(40)]
    assert set(found) == {"A field; jet, old car", "A field; propeller plane, old car"}
    assert found == [PromptWriter(given_phrases, VOC, WIDE).write("A field", shown, seed).text for seed in range(40)]


def test_what_is_drawn_depends_on_the_seed_and_its_own_name_alone() -> None:
    alone = options(kind="template", template="{time}", variations={"time": STREETS["time"]})
    among = options(kind="template", template="{time}{weather}", variations=STREETS, phrases={"car": ["a", "b"]})
    for seed in range(50):
        assert write(among, "other", {ID["car"]: 1}, seed).startswith(write(alone, "one", {}, seed))


def test_classes_that_share_a_phrase_are_named_once_with_all_their_pixels() -> None:
    vehicles = options(kind="simple", phrases={"car": "vehicle", "bus": "vehicle"})
    writer = PromptWriter(vehicles, VOC, TokenBudget([letters_and_ends], 20))
    found = writer.write(None, {ID["bus"]: 6, ID["car"]: 6, ID["cat"]: 10}, 0)
    assert (found.text, found.dropped) == ("A photo of vehicle", ("cat",))


# Budgets


def brute_force(
    caption: str,
    classes: dict[str, int],
    budget: TokenBudget,
    compose: Callable[[str, Sequence[str]], str] = append_classes,
) -> tuple[str, set[str]]:
    """Of all sets of classes that keep the larger ones, the largest that fits; then of all prefixes, the longest."""
    names = list(classes)
    order = sorted(names, key=lambda name: (-classes[name], names.index(name)))
    kept = next(
        [name for name in names if name in order[:count]]
        for count in range(len(order), -1, -1)
        if budget.fits(compose("", [name for name in names if name in order[:count]]))
    )
    words = caption.split()
    prefixes = [" ".join(words[:count]).rstrip(LOOSE_ENDS) for count in range(len(words) + 1)]
    fitting = [compose(text, kept) for text in prefixes if budget.fits(compose(text, kept))]
    return fitting[-1], set(names) - set(kept)


TEXTS = st.lists(st.sampled_from(["a", "dog,", "on", "boulevard", "1920s", "red", ";", "and", "."]), max_size=14)
CLASSES = st.dictionaries(
    st.sampled_from(["car", "traffic light", "road", "extraterrestrial", "tv"]), st.integers(1, 4), max_size=5
)
COUNTERS = st.lists(st.sampled_from([words_and_ends, letters_and_ends, pieces]), min_size=1, max_size=2)


@given(TEXTS, CLASSES, COUNTERS, st.integers(2, 40))
def test_a_fitted_prompt_is_that_of_brute_force(
    words: list[str], classes: dict[str, int], counters: list[Callable[[str], int]], limit: int
) -> None:
    budget, caption = TokenBudget(counters, limit), " ".join(words)
    found = fit_prompt(caption, classes, budget)
    expected, dropped = brute_force(caption, classes, budget)
    assert (found.text, set(found.dropped)) == (expected, dropped)
    assert budget.fits(found.text)
    whole = append_classes(caption.rstrip(LOOSE_ENDS), [name for name in classes if name not in dropped])
    assert found.caption_is_shortened == (found.text != whole)
    assert [classes[name] for name in found.dropped] == sorted(classes[name] for name in found.dropped)
    assert (found.notes is None) == (bool(found.text) and not dropped and not found.caption_is_shortened)


@given(st.permutations(["in fog", "at night"]), st.integers(3, 60), TEXTS)
def test_variations_and_templates_are_never_cut(extras: list[str], limit: int, words: list[str]) -> None:
    fixed = f"Photo of {{caption}} and {{classes}} {extras[0]}"
    given_options = options(kind="template", template=fixed, variations={"x": [extras[1]]})
    budget = TokenBudget([words_and_ends], limit)
    least = words_and_ends(f"Photo of and {extras[0]}, {extras[1]}")
    if least > limit:
        with pytest.raises(UsageError, match="shorten it"):
            PromptWriter(given_options, VOC, budget)
        return
    found = PromptWriter(given_options, VOC, budget).write(" ".join(words), SHOWN, 0)
    assert budget.fits(found.text)
    assert found.text.startswith("Photo of")
    assert found.text.endswith(f"{extras[0]}, {extras[1]}")


def test_notes_say_what_had_no_room() -> None:
    writer = PromptWriter(PromptOptions(), VOC, TokenBudget([letters_and_ends], 28))
    assert writer.write(ROOM, SHOWN, 0).notes == f"caption shortened to 0 of {len(ROOM.split())} words"
    assert writer.write(ROOM, {ID["sofa"]: 4}, 0).text == "A room with a table; sofa"
    assert writer.write(ROOM, {ID["sofa"]: 4}, 0).notes == "caption shortened to 5 of 10 words"
    both = PromptWriter(PromptOptions(), VOC, TokenBudget([letters_and_ends], 21)).write(ROOM, SHOWN, 0)
    assert (both.text, both.notes) == ("dining table, sofa", "caption shortened to 0 of 10 words; no room for chair")


def test_of_classes_with_equal_pixels_the_last_goes_first() -> None:
    found = fit_prompt("", {"car": 5, "bus": 5, "cat": 9}, TokenBudget([letters_and_ends], 10))
    assert (found.text, found.dropped) == ("car, cat", ("bus",))


def test_what_prints_nothing_is_no_word() -> None:
    found = fit_prompt("a \u200b \x07 b", {"car": 1}, TokenBudget([words_and_ends]))
    assert (found.text, found.caption_words) == ("a b; car", (2, 2))


def test_a_prompt_that_nothing_can_shorten_is_an_error() -> None:
    with pytest.raises(SegdatagenError, match="takes 6 tokens, more than 5"):
        fit_prompt("a", {}, TokenBudget([words_and_ends], 5), lambda caption, classes: "of four words only")


# Wrong input


A_LINE = "must be text on one line without spaces at its ends"
A_NAME = "lower-case letters, digits and underscores, the first a letter"


def refusal(tmp_path: Path, text: str) -> str:
    (tmp_path / "prompt.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        PromptWriter(read_config(PromptOptions, str(tmp_path / "prompt.yaml")), VOC, WIDE)
    return str(caught.value).removeprefix(f"{tmp_path / 'prompt.yaml'}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{kind: template, template: 'a {clases}', variations: {weather: [fog]}}",
            "template: unknown field {clases}; allowed are {caption}, {classes}, {weather}",
        ),
        ("{kind: template, template: 'a {}'}", "template: unknown field {}; allowed are {caption}, {classes}"),
        (
            "{kind: template, template: '{caption!r:>9}'}",
            "template: unknown field {caption!r:>9}; allowed are {caption}, {classes}",
        ),
        (
            "{kind: template, template: '{caption.__class__}'}",
            "template: unknown field {caption.__class__}; allowed are {caption}, {classes}",
        ),
        (
            "{kind: template, template: 'a {caption'}",
            "template: expected '}' before end of string (allowed are {caption}, {classes}; "
            "a brace itself is written twice)",
        ),
        ("{kind: template}", "template: belongs to kind template, and to no other"),
        ("{template: '{caption}'}", "template: belongs to kind template, and to no other"),
        ("{kind: append}", "kind: must be 'appended', 'simple', 'caption' or 'template', not 'append'"),
        ("{variations: {classes: [a]}}", "variations: classes is a field of templates already; give another name"),
        (
            "{variations: {weather: []}}",
            "variations.weather: give a list of at least one text; an empty text adds nothing",
        ),
        ("{variations: {weather: fog}}", "variations.weather: must be a list, not 'fog'"),
        ("{phrases: {car: []}}", "phrases.car: give a text, or a list of texts, none of them empty"),
        ("{phrases: {car: ['']}}", "phrases.car: give a text, or a list of texts, none of them empty"),
        ("{phrases: {car: ' a'}}", f"phrases.car.0: {A_LINE}, not ' a'"),
        ("{phrases: {car: [a, 7]}}", "phrases.car.1: must be text, not 7"),
        ("{variations: {weather: [a, 'b '], time: ['']}}", f"variations.weather.1: {A_LINE}, not 'b '"),
        ("{variations: {Weather: [a]}}", f"variations: a name must be {A_NAME}, not 'Weather'"),
        ("{prefix: ''}", "prefix: must not be empty, not ''"),
        ("{phrases: {aeroplan: jet}}", "label set voc has no class 'aeroplan'; did you mean one of: aeroplane?"),
        ("{phrases: {background: sky}}", "phrases: background is background in voc, which no prompt names"),
        ("{phrases: {car: a, Car: b}}", "phrases: two names mean the same class of voc: car, Car"),
        ("{phrases: [car]}", "phrases: must be a mapping, not ['car']"),
        ("{colour: red}", "colour: unknown key; allowed are kind, prefix, template, negative, phrases, variations"),
    ],
)
def test_wrong_options_cost_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text) == expected


def test_texts_that_are_never_shortened_must_fit(tmp_path: Path) -> None:
    long = "bad " * 90
    assert "negative: 'bad" in (found := refusal(tmp_path, f"{{negative: {long}}}"))
    assert found.endswith("takes 92 tokens, and a text encoder sees 77: shorten it")
    found = refusal(tmp_path, f"{{variations: {{a: [x, {long}], b: [y]}}}}")
    assert found.startswith("prompt: 'bad")
    assert "takes 93 tokens" in found


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PromptOptions().kind = "simple"  # type: ignore[misc]


def test_of_a_scene_with_every_class_those_with_most_pixels_stay() -> None:
    ade = load_label_set("ade20k")
    writer = PromptWriter(PromptOptions(), ade, TokenBudget([pieces]))
    full = writer.write("A house", {label.id: label.id for label in ade.classes}, 0)
    assert full.dropped[0] == ade.classes[0].prompt
    assert len(full.dropped) + full.text.count(",") + 1 == ade.num_classes
    for first, second in itertools.pairwise(ade.classes):
        assert writer.write("A house", {first.id: 1, second.id: 1}, 0).notes is None
