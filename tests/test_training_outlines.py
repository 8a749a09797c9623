"""A ControlNet learns from the colour maps that runs will show it: of panoptic sources with outlined segments."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_latent_training import CPU, fields, train_here, write
from torch import Tensor

from segdatagen.colours import encode
from segdatagen.images import decode_image
from segdatagen.labels import load_label_set
from segdatagen.load_source import LoadSource
from segdatagen.priors import PriorOptions
from segdatagen.segments import PANOPTIC
from segdatagen.sources import ROW_GROUP_SIZE, open_store, read_arrays
from segdatagen.stages.prior import PriorStage, PriorStageOptions
from segdatagen.stages.stage import objects
from segdatagen.training.controlnet import ControlNetTraining, ControlNetTrainingOptions
from segdatagen.training.data import Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.latents import fill, here
from segdatagen.training.loop import build_network
from segdatagen.training_record import read_record

LABELS = load_label_set("scenes")


@pytest.fixture(scope="module")
def panoptic_store(latent_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes of `latent_store`, of which the last has no segments."""
    folder = tmp_path_factory.mktemp("panoptic") / "store"
    shutil.copytree(latent_store, folder)
    (part,) = open_store(str(folder)).info.parts
    table = pq.read_table(folder / part.name)
    for name in PANOPTIC:
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        values = [*table[name].to_pylist()[:-1], None]
        table = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(table, folder / part.name, row_group_size=ROW_GROUP_SIZE)
    return folder


def of_a_run(store: Path, options: ControlNetTrainingOptions, outlines: bool) -> list[np.ndarray]:
    """What `imgsyn` shows a ControlNet of each source."""
    opened = open_store(str(store))
    rows = opened.index.num_rows
    batch = {
        "source_id": opened.index["source_id"].to_numpy(zero_copy_only=False),
        "source_file": objects(["part-00000.parquet"] * rows),
        "source_row": np.arange(rows),
    }
    batch |= LoadSource(opened, options.geometry)(batch)
    prior = PriorOptions(name="colour_map", of="mask", outlines=outlines)
    stage = PriorStage(PriorStageOptions(prior=prior, label_set=LABELS))
    return [decode_image(picture) for picture in stage(batch)["prior"]]


def kind_of(store: Path, base: Path, folder: Path, **more: object) -> ControlNetTraining:
    found = fields(store, folder, base=str(base), cache=str(folder / "cache"), **more)
    options = ControlNetTrainingOptions.model_validate(found)
    kind = ControlNetTraining(options, TrainingArrays(*read_arrays(options.sources, options.geometry)))
    fill(kind.caches(), "cpu", here)
    return kind


@pytest.mark.parametrize("outlines", [True, False])
def test_it_sees_what_a_run_shows_it(panoptic_store: Path, latent_base: Path, tmp_path: Path, outlines: bool) -> None:
    kind = kind_of(panoptic_store, latent_base, tmp_path, outlines=outlines)
    expected = of_a_run(panoptic_store, kind.options, outlines)
    plain = [encode(LABELS.ids[channels].astype(np.uint8), LABELS) for channels in kind.data.channels]
    assert [bool((one != other).any()) for one, other in zip(expected, plain, strict=True)] == [
        *[outlines] * (len(plain) - 1),
        False,
    ]
    rows = np.arange(len(plain))
    np.testing.assert_array_equal(np.stack(list(kind.shown(rows))), np.stack(expected))
    batch = batch_of_step(kind.data, Order(0, 4, True), 0, Share(), CPU)
    assert 0 < batch.flipped.sum() < 4
    seen: list[Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, *_: object, controlnet_cond: Tensor, **__: object) -> tuple[None, None]:
            seen.append(controlnet_cond)
            return None, None

    kind.steering(Watching(), kind.noisy(build_network(kind, CPU), batch), batch)
    for row, (source, flipped) in enumerate(zip(batch.sources, batch.flipped, strict=True)):
        wanted = expected[source][:, ::-1] if flipped else expected[source]
        assert np.array_equal(np.rint(seen[0][row].permute(1, 2, 0).numpy() * 255), wanted)


def test_it_trains_and_its_card_says_so(panoptic_store: Path, latent_base: Path, tmp_path: Path) -> None:
    found = fields(panoptic_store, tmp_path / "out", base=str(latent_base), cache=str(tmp_path / "cache"), steps=2)
    result = train_here("controlnet", write(tmp_path, "controlnet", found))
    assert "with outlined segments" in Path(str(result.weights), "README.md").read_text()
    record = read_record(str(result.weights))
    assert record is not None
    assert record.outlines is True
