"""What `training.json` says of weights, and what jobs ask of it: a colour has to mean the class that was learned."""

import copy
import shutil
from pathlib import Path

import pytest
from conftest import JobFactory, Refused
from test_latent_methods import options_of as latent_options
from test_latent_methods import plan_of
from test_masksyn import options_of as masksyn_options
from tiny_latent import save_models

from segdatagen.cli import main
from segdatagen.errors import UsageError
from segdatagen.labels import load_label_set
from segdatagen.training_record import RECORD_NAME, TrainingRecord, read_record, require_colours_of

SCENES = load_label_set("scenes")
COLOURS = tuple(label.colour for label in SCENES.classes)
ROTATED = (*COLOURS[1:], COLOURS[0])
Colours = tuple[tuple[int, int, int], ...]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("latent"))


def trained_on(folder: Path, colours: Colours | None, name: str = "scenes", outlines: bool | None = None) -> str:
    classes = load_label_set(name).names
    record = TrainingRecord(
        kind="controlnet", label_set=name, classes=classes, colours=colours, outlines=outlines, size=(64, 64)
    )
    folder.mkdir(exist_ok=True)
    (folder / RECORD_NAME).write_text(record.model_dump_json())
    return str(folder)


def test_weights_of_the_same_colours_are_taken_and_others_are_named(tmp_path: Path) -> None:
    require_colours_of(trained_on(tmp_path / "same", COLOURS), SCENES)
    require_colours_of(trained_on(tmp_path / "older", None), SCENES)
    require_colours_of(str(tmp_path), SCENES)
    with pytest.raises(UsageError, match=r"with sky in the colour \[\d+, \d+, \d+\], and the sources have it in "):
        require_colours_of(trained_on(tmp_path / "rotated", ROTATED), SCENES)
    with pytest.raises(UsageError, match="was trained on the classes of camvid "):
        require_colours_of(trained_on(tmp_path / "other", None, "camvid"), SCENES)


@pytest.mark.parametrize("name", ["base", "text2mask", "controlnet", "t2i-adapter", "vae", "captioner", "clip"])
def test_records_that_are_shipped_are_read(name: str) -> None:
    record = read_record(f"builtin:scenes-{name}")
    assert record is not None
    assert record.classes == SCENES.names


def test_a_job_refuses_weights_of_other_colours(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    for name in ("controlnet", "base"):
        shutil.copytree(models / name, tmp_path / f"rotated_{name}")
        trained_on(tmp_path / f"rotated_{name}", ROTATED)
    options = latent_options(models, "imgsyn")
    options["controls"][0]["weights"] = str(tmp_path / "rotated_controlnet")
    job = make_job(methods={"imgsyn": options}, plan=plan_of("imgsyn"))
    refused_here("plan", job, row="a ControlNet of the same classes in other colours")
    masksyn = masksyn_options(models, models / "base")
    masksyn["text2mask"]["weights"] = str(tmp_path / "rotated_base")
    job = make_job(methods={"masksyn": masksyn}, plan=plan_of("masksyn"))
    refused_here("plan", job, row="a Text2Mask of the same classes in other colours")


def test_a_job_refuses_a_controlnet_that_saw_other_colour_maps(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    """Scenes have segments. MaskSyn's masks have none, whatever their ControlNet has seen."""
    shutil.copytree(models / "controlnet", tmp_path / "plain")
    trained_on(tmp_path / "plain", COLOURS, outlines=False)
    options = latent_options(models, "imgsyn")
    options["controls"][0]["weights"] = str(tmp_path / "plain")
    job = make_job(methods={"imgsyn": options}, plan=plan_of("imgsyn"))
    refused_here("plan", job, row="panoptic sources for a ControlNet that saw no outlines")
    told = copy.deepcopy(options)
    told["controls"][0]["prior"] |= {"outlines": False}
    assert main(["plan", str(make_job(methods={"imgsyn": told}, plan=plan_of("imgsyn"))), "--dry-run"]) == 0
    masksyn = masksyn_options(models, models / "base")
    masksyn["controls"] = options["controls"]
    assert main(["plan", str(make_job(methods={"masksyn": masksyn}, plan=plan_of("masksyn"))), "--dry-run"]) == 0
