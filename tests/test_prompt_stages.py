"""Captions and prompts as stages: once per source, the same whatever rows stand beside a row, and never cut."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_captioner import save_blip2
from tiny_latent import make_tokenizer

from segdatagen.captioners import Captioner, CaptionerOptions
from segdatagen.errors import UsageError
from segdatagen.images import Image, encode_image
from segdatagen.labels import load_label_set
from segdatagen.methods import guard
from segdatagen.prompts import CLIP_TOKENS, PromptOptions, TokenBudget, fit_prompt
from segdatagen.stages.captioner import CaptionerStage
from segdatagen.stages.prompt import PromptStage, budget_of, counter_of
from segdatagen.stages.stage import Batch, objects

LABELS = load_label_set("voc")
CAR, DOG, SHEEP = 7, 12, 17


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_blip2(tmp_path_factory.mktemp("stages") / "blip2"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of SDXL, with tokenizers alone."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("tokenizer", "tokenizer_2"):
        make_tokenizer().save_pretrained(folder / name)
    return folder


def model_options(weights: str) -> CaptionerOptions:
    return CaptionerOptions(kind="blip2", weights=weights, max_new_tokens=6)


def pictures(count: int) -> list[Image]:
    return list(np.random.default_rng(3).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


def batch_of(sources: list[str], images: dict[str, bytes | None], captions: Any = None) -> Batch:
    return {
        "source_id": objects(sources),
        "source_image": objects([images[source] for source in sources]),
        "class_ids": objects([[0, CAR, DOG]] * len(sources)),
        "caption": objects(captions or [None] * len(sources)),
    }


def columns(stage: CaptionerStage | PromptStage, batch: Batch) -> dict[str, list[Any]]:
    """What a stage makes of the columns that it reads, and of no others."""
    found = stage({name: batch[name] for name in stage.reads})
    assert set(found) == set(stage.writes)
    return {name: values.tolist() for name, values in found.items()}


# Captions


def test_every_source_is_captioned_once_and_as_it_is_alone(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = pictures(3)
    images = {name: encode_image(image, "png") for name, image in zip("abc", (first, second, third), strict=True)}
    seen: list[int] = []
    captions = Captioner.captions

    def counted(self: Captioner, images: list[Image]) -> list[str]:
        seen.append(len(images))
        return captions(self, images)

    monkeypatch.setattr(Captioner, "captions", counted)
    found = columns(CaptionerStage(model_options(weights), LABELS), batch_of(list("abacbb"), images))
    assert seen == [3]
    expected = dict(zip("abc", captions(Captioner(model_options(weights)), [first, second, third]), strict=True))
    assert found["caption"] == [expected[name] for name in "abacbb"]
    assert len(set(expected.values())) == 3
    assert set(found["caption_from"]) == {"model"}
    assert found["reason"] == [None] * 6


def test_an_empty_caption_and_no_image_give_the_sentence_of_the_classes(tmp_path: Path, weights: str) -> None:
    silent = str(save_blip2(tmp_path / "silent", silent=True))
    images = {"a": encode_image(pictures(1)[0]), "b": None}
    for path, expected in ((silent, ["classes", "classes"]), (weights, ["model", "classes"])):
        found = columns(CaptionerStage(model_options(path), LABELS), batch_of(["a", "b"], images))
        assert found["caption_from"] == expected
        sentences = [c for c, origin in zip(found["caption"], expected, strict=True) if origin == "classes"]
        assert set(sentences) == {"A photo of car, dog"}
        assert found["reason"] == [None, None]


def test_an_unreadable_image_costs_the_rows_of_its_source(weights: str) -> None:
    images = {"a": encode_image(pictures(1)[0]), "b": b"no picture"}
    batch = batch_of(["b", "a", "b"], images) | {"status": objects(["ok"] * 3), "reason": objects([None] * 3)}
    guard(CaptionerStage(model_options(weights), LABELS), batch)
    assert batch["status"].tolist() == ["failed", "ok", "failed"]
    assert batch["reason"][0] == "caption: unreadable source: not a readable image (of no known kind)"
    assert batch["caption"][1]
    assert batch["caption_from"][1] == "model"


def test_captions_of_the_data_set_need_neither_image_nor_model() -> None:
    stage = CaptionerStage(CaptionerOptions(kind="data_set"), LABELS)
    assert stage.reads == ("caption", "class_ids")
    batch = batch_of(["a", "b", "c"], {"a": None, "b": None, "c": None}, ["A dog. ", None, "  "])
    found = columns(stage, batch)
    assert found["caption"] == ["A dog.", "A photo of car, dog", "A photo of car, dog"]
    assert found["caption_from"] == ["data set", "classes", "classes"]


def test_captions_of_classes_are_their_names_in_label_order() -> None:
    stage = CaptionerStage(CaptionerOptions(), LABELS)
    assert stage.reads == ("class_ids",)
    found = columns(stage, {"class_ids": objects([[SHEEP, CAR], [0], [np.int32(DOG)]])})
    assert found["caption"] == ["A photo of car, sheep", "", "A photo of dog"]
    assert set(found["caption_from"]) == {"classes"}


# Prompts


def rows(captions: list[str | None], class_ids: list[list[int]], seeds: list[int]) -> Batch:
    return {
        "caption": objects(captions),
        "class_ids": objects(class_ids),
        "class_pixels": objects([[10 * i + 10 for i in range(len(ids))] for ids in class_ids]),
        "seed": np.array(seeds, np.int64),
    }


CHOSEN = PromptOptions(negative="blurry", phrases={"dog": ("puppy", "hound")}, variations={"light": ("", "at night")})


def test_a_row_has_the_same_prompt_whatever_stands_beside_it(pipeline: Path) -> None:
    stage = PromptStage(CHOSEN, LABELS, budget_of(str(pipeline)))
    batch = rows(["a park", None, "a road " * 30], [[0, DOG], [CAR, DOG], [CAR]], [1, 2, 3])
    whole = columns(stage, batch)
    for order in ([0], [2, 0], [1, 2, 0]):
        part = columns(stage, {name: values[order] for name, values in batch.items()})
        assert part == {name: [values[row] for row in order] for name, values in whole.items()}
    assert whole["negative_prompt"] == ["blurry"] * 3
    assert [note is None for note in whole["prompt_notes"]] == [True, True, False]
    assert whole["prompt"][1] in {
        f"A photo of car, {dog}{light}" for dog in ("puppy", "hound") for light in ("", ", at night")
    }


def test_rows_that_guard_and_arrow_leave_as_arrays_are_read(pipeline: Path) -> None:
    stage = PromptStage(PromptOptions(), LABELS, budget_of(str(pipeline)))
    batch = rows(["a park"], [[CAR, DOG]], [1])
    arrays = batch | {name: objects([np.array(batch[name][0], np.int32)]) for name in ("class_ids", "class_pixels")}
    assert columns(stage, arrays) == columns(stage, batch)


def test_no_text_encoder_cuts_a_prompt_that_was_fitted(pipeline: Path) -> None:
    """What the encoder's own call to the tokenizer keeps is the whole prompt, to the last class."""
    tokenizers = [make_tokenizer(), make_tokenizer()]
    stage = PromptStage(PromptOptions(), LABELS, budget_of(str(pipeline)))
    captions = ["a dog on a lawn, " * n for n in range(8)]
    found = columns(stage, rows([*captions], [[CAR, DOG, SHEEP]] * 8, [0] * 8))
    assert found["prompt"][0] == "A photo of car, dog, sheep"
    for prompt in found["prompt"]:
        for tokenizer in tokenizers:
            kept = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
            whole = tokenizer(prompt, truncation=False).input_ids
            assert kept == whole
        assert prompt.endswith("car, dog, sheep")
    assert found["prompt_notes"][0] is None
    assert found["prompt_notes"][-1].startswith("caption shortened to ")


ENGLISH = st.lists(st.sampled_from(["a", "café", "dog's", "über,", "火車", "x.y", "-", "(", "🚗", "b;"]), max_size=25)
CLIP = make_tokenizer()


@settings(max_examples=40)
@given(ENGLISH, st.integers(20, CLIP_TOKENS))
def test_of_a_caption_the_longest_part_that_clip_sees_is_kept(words: list[str], limit: int) -> None:
    counter = counter_of(CLIP)
    found = fit_prompt(" ".join(words), {"car": 1}, TokenBudget([counter, counter], limit))
    fitting = [
        text
        for count in range(len(words) + 1)
        if counter(text := "; ".join(filter(None, [" ".join(words[:count]).rstrip(" ,;:."), "car"]))) <= limit
    ]
    assert found.text == fitting[-1]


def test_a_prompt_stage_refuses_what_does_not_fit_in_one_line(pipeline: Path) -> None:
    budget = budget_of(str(pipeline))
    with pytest.raises(UsageError, match=r"^negative: 'bad bad bad.*: shorten it$"):
        PromptStage(PromptOptions(negative="bad " * 30 + "bad"), LABELS, budget)
    with pytest.raises(UsageError, match="label set voc has no class 'carr'; did you mean one of: car"):
        PromptStage(PromptOptions(phrases={"carr": ("x",)}), LABELS, budget)


def test_the_budget_is_that_of_the_tokenizers_that_are_there(pipeline: Path, tmp_path: Path) -> None:
    assert (len(budget_of(str(pipeline)).tokenizers), budget_of(str(pipeline)).limit) == (2, CLIP_TOKENS)
    shutil.copytree(pipeline / "tokenizer", tmp_path / "tokenizer")
    assert len(budget_of(str(tmp_path)).tokenizers) == 1
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 40}))
    assert budget_of(str(tmp_path)).limit == 40


def test_a_pipeline_without_tokenizers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no folder tokenizer: give a pipeline as diffusers saves it"):
        budget_of(str(tmp_path))
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UsageError, match=r"/tokenizer holds none of tokenizer\.json, vocab\.json: fetch the tokenizer"):
        budget_of(str(tmp_path))
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("[]")
    with pytest.raises(UsageError, match=r"the tokenizer .*/tokenizer cannot be loaded: ") as caught:
        budget_of(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="there are no weights at"):
        budget_of(str(tmp_path / "nowhere"))
