"""Captioners: small real models through the real loader; answers that no neighbour changes; what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from small_memory import hold
from tiny_captioner import save_blip2, save_llava

from segdatagen.captioners import Captioner, CaptionerOptions, check_captioner, clean_answer, load_captioner
from segdatagen.config_files import read_config
from segdatagen.errors import UsageError
from segdatagen.stages.captioner import captioner_of

TOKENS = 12
SEGGEN = "Question: What are shown in the photo? Answer:"
MODELS: dict[str, tuple[Any, Callable[[Path], Path]]] = {
    "blip2-opt": ("blip2", lambda folder: save_blip2(folder, "opt")),
    "blip2-t5": ("blip2", lambda folder: save_blip2(folder, "t5")),
    "llava-chat": ("model", save_llava),
    "llava-plain": ("model", lambda folder: save_llava(folder, chat=False)),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=MODELS)
def options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CaptionerOptions:
    kind, save = MODELS[request.param]
    folder = save(tmp_path_factory.mktemp("captioner") / "weights")
    return CaptionerOptions(kind=kind, weights=str(folder), max_new_tokens=TOKENS)


@pytest.fixture
def blip2(tmp_path: Path) -> Path:
    return save_blip2(tmp_path / "blip2")


def noise(count: int) -> list[np.ndarray]:
    """Images of several sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (16 + 3 * i, 24 - 2 * i, 3), dtype=np.uint8) for i in range(count)]


def test_a_batch_gives_the_captions_of_its_images_one_by_one(options: CaptionerOptions) -> None:
    images = noise(6)
    alone = [Captioner(options.model_copy(update={"batch_size": 1})).captions([image])[0] for image in images]
    assert Captioner(options).captions(images) == alone
    assert Captioner(options).captions(images[::-1]) == alone[::-1]
    assert len(set(alone)) > 1


def test_an_image_that_comes_again_is_not_asked_about_again(blip2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answers = Captioner._answers

    def count(self: Captioner, images: list[np.ndarray], questions: list[str]) -> list[str]:
        asked.append(len(images))
        return answers(self, images, questions)

    monkeypatch.setattr(Captioner, "_answers", count)
    monkeypatch.setattr("segdatagen.captioners.REMEMBERED", 6)
    options = CaptionerOptions(kind="blip2", weights=str(blip2), max_new_tokens=4)
    captioner, images = Captioner(options), noise(8)
    first = captioner.captions(images[:6])
    assert asked == [4, 4], "always as many"
    assert captioner.captions(images[5::-1]) == first[::-1]
    assert asked == [4, 4]
    captioner.captions(images[6:])
    assert captioner.captions(images[2:6]) == first[2:]
    assert asked == [4, 4, 4]
    captioner.captions(images[:1])
    assert asked == [4, 4, 4, 4], "only so many are kept"


def test_questions_of_other_lengths_beside_it_do_not_change_an_answer(options: CaptionerOptions) -> None:
    captioner, image = Captioner(options), noise(1)[0]
    questions = ["Question: a?", "Question: what else is there to be seen? Answer:", "hm", "b"]
    together = captioner._answers([image] * len(questions), questions)
    assert together == [captioner._answers([image], [question])[0] for question in questions]
    assert len(set(together)) > 2


def test_padding_on_the_other_side_would_change_answers(blip2: Path) -> None:
    captioner = Captioner(CaptionerOptions(kind="blip2", weights=str(blip2), max_new_tokens=TOKENS))
    image, questions = noise(1)[0], ["a", "Question: what else is there to be seen? Answer:"]
    answers = captioner._answers([image] * 2, questions)
    captioner._processor.tokenizer.padding_side = "right"
    assert captioner._answers([image] * 2, questions) != answers


def test_an_answer_is_what_transformers_generates_for_one_image(blip2: Path) -> None:
    """The lines of BLIP-2's own documentation."""
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    processor = Blip2Processor.from_pretrained(blip2)
    model = Blip2ForConditionalGeneration.from_pretrained(blip2)
    image = noise(1)[0]
    inputs = processor(images=image, text=SEGGEN, return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    whole = processor.batch_decode(found, skip_special_tokens=True)[0]
    captioner = Captioner(CaptionerOptions(kind="blip2", weights=str(blip2), max_new_tokens=TOKENS))
    assert captioner.captions([image]) == [" ".join(whole.removeprefix(SEGGEN).split())]
    assert whole.startswith(SEGGEN)


def test_a_question_may_place_the_image_itself(tmp_path: Path) -> None:
    """As LLaVA 1.5 is asked where its processor has no chat template."""
    plain = CaptionerOptions(
        kind="model", weights=str(save_llava(tmp_path / "plain", chat=False)), max_new_tokens=TOKENS
    )
    chat = plain.model_copy(update={"weights": str(save_llava(tmp_path / "chat"))})
    asked = plain.model_copy(update={"question": f"USER: <image> {plain.asked} ASSISTANT:"})
    assert Captioner(asked).captions(noise(2)) == Captioner(chat).captions(noise(2))
    assert Captioner(plain).captions(noise(2)) != Captioner(chat).captions(noise(2))


def test_more_tokens_go_on_with_the_same_answer(blip2: Path) -> None:
    options = CaptionerOptions(kind="blip2", weights=str(blip2))
    short, long = (
        Captioner(options.model_copy(update={"max_new_tokens": tokens})).captions(noise(1))[0] for tokens in (1, 8)
    )
    assert long.startswith(short)
    assert len(long) > len(short)


def test_silence_is_an_empty_caption(tmp_path: Path) -> None:
    options = CaptionerOptions(kind="blip2", weights=str(save_blip2(tmp_path / "weights", silent=True)))
    assert Captioner(options).captions(noise(3)) == ["", "", ""]
    assert Captioner(options).captions([]) == []


def test_lower_precision_runs(blip2: Path) -> None:
    captioner = Captioner(CaptionerOptions(kind="blip2", weights=str(blip2), dtype="bfloat16", max_new_tokens=4))
    assert captioner._model.dtype == torch.bfloat16
    assert len(captioner.captions(noise(2))) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two  dogs\n", "two dogs"),
        (f"{SEGGEN} two dogs", "two dogs"),
        ("question: what are shown  in the photo? answer: two dogs", "two dogs"),
        (f"two dogs {SEGGEN} two dogs {SEGGEN}", "two dogs"),
        (SEGGEN, ""),
        ("", ""),
    ],
)
def test_an_answer_holds_no_question(text: str, expected: str) -> None:
    assert clean_answer(text, SEGGEN) == expected


def test_a_batch_that_does_not_fit_is_halved(blip2: Path) -> None:
    """And stays so; captions are those of the smaller batch."""
    options = CaptionerOptions(kind="blip2", weights=str(blip2), max_new_tokens=3, batch_size=4)
    captioner, small = Captioner(options), Captioner(options.model_copy(update={"batch_size": 1}))
    refused = hold(captioner._model.vision_model, 1)
    assert captioner.captions(noise(3)) == small.captions(noise(3))
    assert refused == [4, 2]
    hold(captioner._model.vision_model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        captioner.captions(noise(4)[3:])


def test_methods_that_ask_a_model_differently_share_it(blip2: Path) -> None:
    options = CaptionerOptions(kind="blip2", weights=str(blip2), max_new_tokens=3)
    first = captioner_of(options, "cpu")
    other = captioner_of(options.model_copy(update={"question": "What?", "batch_size": 2}), "cpu")
    assert other._model is first._model
    assert other is not first
    assert captioner_of(options, "cpu") is first, "with what it said"
    halves = captioner_of(options.model_copy(update={"dtype": "bfloat16"}), "cpu")
    assert halves._model is not first._model


def test_blip2_is_asked_in_the_words_of_the_paper() -> None:
    assert CaptionerOptions(kind="blip2", weights="x").asked == SEGGEN
    assert CaptionerOptions(kind="blip2", weights="x", question="What?").asked == "What?"


# Wrong input


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def auto_map(folder: Path) -> None:
    change_json(folder / "config.json", auto_map={"AutoModel": "modeling.Evil"})


def auto_map_of_a_processor(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.Evil"})


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def another_type(folder: Path) -> None:
    change_json(folder / "config.json", model_type="git")


def no_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def a_shard_less(folder: Path) -> None:
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (auto_map, "/config.json asks for code of its own (auto_map in its config), which is never run"),
        (
            auto_map_of_a_processor,
            "tokenizer_config.json asks for code of its own (auto_map in its config), which is never run",
        ),
        (no_config, "is no folder of a captioner: it holds no config.json"),
        (broken_config, "config.json cannot be read (Expecting property name"),
        (another_type, "is of type git, not blip-2: use kind model"),
        (no_processor, "holds no processor_config.json: save the model's processor beside it"),
        (a_pickle, "holds no model.safetensors: only safetensors are loaded; fetch or convert them"),
        (cut_off, "cannot be read (Error while deserializing header"),
        (a_shard_less, "holds no model-2.safetensors: only safetensors are loaded; fetch or convert them"),
        (shutil.rmtree, "there are no weights at"),
    ],
)
def test_wrong_weights_cost_one_line(blip2: Path, damage: Callable[[Path], None], expected: str) -> None:
    check_captioner(str(blip2), "blip2")
    damage(blip2)
    for refuse in (
        lambda: check_captioner(str(blip2), "blip2"),
        lambda: Captioner(CaptionerOptions(kind="blip2", weights=str(blip2))),
    ):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def lacks_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "query_tokens"}, folder / "model.safetensors", {"format": "pt"})


def no_image_token(folder: Path) -> None:
    change_json(folder / "config.json", image_token_index=None)


def another_width(folder: Path) -> None:
    change_json(folder / "config.json", image_text_hidden_size=7)
    config = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", num_query_tokens=config["num_query_tokens"] + 1)


def no_vision(folder: Path) -> None:
    change_json(folder / "config.json", model_type="bert")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "expected", "on_loading"),
    [
        (lacks_a_tensor, "lack 1 tensors of their network, query_tokens first", "lack 1 tensors, query_tokens first"),
        (another_width, "hold 1 tensors of another shape than their network's, query_tokens first", "cannot be loaded"),
        (no_image_token, "was saved by an old transformers: its processor and config lack", "lack the image token"),
        (no_vision, "it holds a bert, which is no image-text-to-text model of transformers", "cannot be loaded as"),
        (no_tokenizer, "the processor of the captioner", "the processor of the captioner"),
    ],
)
def test_what_transformers_cannot_load_is_refused_before_a_run(
    blip2: Path, damage: Callable[[Path], None], expected: str, on_loading: str
) -> None:
    """Also after the whole one has been looked at; and by whoever loads without a look before."""
    check_captioner(str(blip2))
    damage(blip2)
    for refuse, sentence in (
        (lambda: check_captioner(str(blip2)), expected),
        (lambda: load_captioner(blip2, str(blip2), torch.float32), on_loading),
    ):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kind: blip2}", "weights: missing; blip2 needs those of a model"),
        ("{kind: classes, weights: x}", "weights: classes has no model; only blip2, model have"),
        ("{kind: data_set, question: why}", "question: data_set has no model; only blip2, model have"),
        ("{kind: blip}", "kind: must be 'blip2', 'model', 'data_set' or 'classes', not 'blip'"),
        ("{kind: model, weights: x, max_new_tokens: 0}", "max_new_tokens: must be at least 1, not 0"),
        ("{kind: model, weights: x, question: ' a'}", "question: must be text on one line without spaces at its ends"),
    ],
)
def test_wrong_options_cost_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "captioner.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_config(CaptionerOptions, str(tmp_path / "captioner.yaml"))
    assert expected in str(caught.value)


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        CaptionerOptions().kind = "model"  # type: ignore[misc]


def test_checking_again_imports_neither_torch_nor_transformers(blip2: Path) -> None:
    check_captioner(str(blip2), "blip2")
    code = (
        "import sys; from segdatagen import captioners, prompts; "
        f"captioners.check_captioner({str(blip2)!r}, 'blip2'); "
        "print(*{'torch', 'transformers', 'diffusers', 'ray'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
