"""What the kinds `captioner` and `clip` say of wrong input."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Refused, make_scenes_store
from tiny_squares import Configure, configurer, put_store, square_rows

from segdatagen.storage import Folder
from segdatagen.training.run import require_own


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 squares. Only to be read."""
    return put_store(tmp_path_factory.mktemp("squares") / "data", square_rows(24))


@pytest.fixture
def configure(tmp_path: Path, squares: Path) -> Configure:
    return configurer(tmp_path, squares)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("`train captioner` on sources without captions", "captioner"),
        ("`train clip` on sources without captions", "clip"),
    ],
)
def test_no_captions(row: str, kind: str, refused_here: Refused, configure: Configure, tmp_path: Path) -> None:
    rows = square_rows(6)
    rows[2]["caption"] = rows[4]["caption"] = None
    path = configure(kind, "out", put_store(tmp_path / "data", rows))
    refused_here("train", kind, path, "--local", row=row)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("`train captioner` on fewer sources than a batch", "captioner"),
        ("`train clip` on fewer sources than a batch", "clip"),
    ],
)
def test_too_few_sources(row: str, kind: str, refused_here: Refused, configure: Configure, tmp_path: Path) -> None:
    path = configure(kind, "out", put_store(tmp_path / "data", square_rows(3)))
    refused_here("train", kind, path, "--local", row=row)


@pytest.mark.parametrize(
    ("row", "kind", "changes"),
    [
        ("`train captioner` with captions that are too long", "captioner", {"max_caption_tokens": 4}),
        ("`freeze_vision` without `init_weights`", "captioner", {"freeze_vision": True}),
        ("`network` beside `init_weights`", "captioner", {"init_weights": "blip2"}),
        ("a patch that does not divide the size", "captioner", {"network": {"patch": 5}}),
        ("a template of `train clip` without a class", "clip", {"template": "a photo"}),
        ("`train clip` with a batch of one", "clip", {"batch_size": 1}),
        ("`train clip` on regions that are all too small", "clip", {"min_pixels": 900}),
        (
            "`init_weights` of `train clip` that are no CLIP",
            "clip",
            {"init_weights": "builtin:scenes-segmenter", "network": None},
        ),
        (
            "`init_weights` of `train captioner` that are no BLIP-2",
            "captioner",
            {"init_weights": "builtin:scenes-segmenter", "network": None},
        ),
    ],
)
def test_wrong_options(
    row: str, kind: str, changes: dict[str, Any], refused_here: Refused, configure: Configure
) -> None:
    refused_here("train", kind, configure(kind, "out", **changes), "--local", row=row)


def test_validation_that_cannot_judge(refused_here: Refused, configure: Configure, tmp_path: Path) -> None:
    few = put_store(tmp_path / "few", square_rows(6))
    scenes = make_scenes_store(tmp_path / "scenes", 2)
    refused_here(
        "train",
        "clip",
        configure("clip", "a", validation=str(few)),
        "--local",
        row="a validation store too small to rank",
    )
    for kind, row in (
        ("clip", "`train clip` with its sources as validation"),
        ("captioner", "`train captioner` with its sources as validation"),
    ):
        again = configure(kind, f"again_{kind}", few, validation=str(few))
        refused_here("train", kind, again, "--local", row=row)
    refused_here(
        "train",
        "captioner",
        configure("captioner", "b", validation=str(scenes)),
        "--local",
        row="a validation store of other labels",
    )


def test_a_folder_that_holds_something_else_is_left_alone(
    refused_here: Refused, configure: Configure, tmp_path: Path
) -> None:
    path = configure("clip", "out")
    precious = tmp_path / "out" / "weights" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    refused_here("train", "clip", path, "--local", row="`train` into a folder that holds something else")
    make_scenes_store(tmp_path / "val", 2)
    refused_here("train", "clip", configure("clip", "val"), "--local", row="`train` into another source store")


def test_a_training_that_ended_before_its_first_checkpoint_begins_anew(configure: Configure, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("loss.csv", "loss.png", "lease.json", "samples/step-00000001.png.begun", "tensorboard/events"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"")
    require_own(Folder(str(out)))
    require_own(Folder(str(tmp_path / "new")))
