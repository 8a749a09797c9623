"""Paper 001's own workflow, from its masks to its folders: what goes in comes out, and images beside it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, JobFactory

from segdatagen.cli import main
from segdatagen.images import decode_annotation, decode_image
from segdatagen.labels import load_label_set
from segdatagen.run_folder import open_run
from segdatagen.samples import read_ledger

SCRIPT = runpy.run_path(str(REPOSITORY / "jobs/folder_mask_ddpm/make_masks.py"))
NUM_MASKS, PER_MASK = 3, 2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_colours_are_those_of_the_authors_colour_book() -> None:
    book = load_label_set("colourbook_bdd").colours.tolist()
    assert [SCRIPT["colour_of"](channel) for channel in range(len(book))] == book


def test_masks_in_images_out(
    ray_session: None, make_job: JobFactory, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, store, out = tmp_path / "masks", tmp_path / "sources", tmp_path / "images"
    SCRIPT["main"](str(given), NUM_MASKS, 32, 32)
    assert main(["ingest", "masks", str(given), "--split", "train", "--out", str(store)]) == 0
    plan = [{"method": "mask_ddpm", "strategy": "uniform", "per_source": PER_MASK}]
    output = {"root": str(tmp_path / "runs"), "image_format": "png"}
    assert main(["run", str(make_job(sources=str(store), plan=plan, output=output))]) == 0
    run = open_run(str(tmp_path / "runs" / "tiny" / "v1"))
    assert main(["export", run.folder.uri, "--format", "mask_ddpm_folder", "--out", str(out)]) == 0
    assert f"{NUM_MASKS * PER_MASK} images for {NUM_MASKS} masks" in capfd.readouterr().out
    assert json.loads((out / "colormap.json").read_text()) == json.loads((given / "colormap.json").read_text())
    ids = set()
    for number in range(NUM_MASKS):
        name = f"scene_{number:03d}"
        made, asked = (decode_annotation((folder / f"{name}.png").read_bytes()) for folder in (out / "masks", given))
        assert np.array_equal(made, asked)
        images = [decode_image(path.read_bytes()) for path in sorted((out / f"epoch_{name}").iterdir())]
        assert [image.shape for image in images] == [(32, 32, 3)] * PER_MASK
        assert not np.array_equal(*images)
        assert decode_image((out / f"{name}.png").read_bytes()).shape == (36, 2 * 34 + 2, 3)
        lines = [json.loads(line) for line in (out / "metadata" / f"{name}.jsonl").read_text().splitlines()]
        ids |= {line["sample_id"] for line in lines}
        assert len({line["seed"] for line in lines}) == PER_MASK
    assert ids == set(read_ledger(run.folder).ids_with("ok").tolist())
