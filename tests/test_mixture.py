"""Synthetic samples in place of real images: as often as p_aug says, the same ones again after a stop, or one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from committed import METHOD, plan
from conftest import Refused, make_scenes_store
from published_samples import SIZE, make_published, pixels_of, publish_here, rows_of
from safetensors.torch import load_file
from torch import Tensor

from segdatagen.cli import main
from segdatagen.errors import UsageError
from segdatagen.geometry import Geometry
from segdatagen.labels import load_label_set
from segdatagen.records import SAMPLE_SCHEMA
from segdatagen.run_folder import open_run, write_run
from segdatagen.samples import put_samples
from segdatagen.segmenters import SegmenterWeights
from segdatagen.sources import open_store, read_arrays
from segdatagen.training.data import Batch, Order, Share, TrainingArrays, batch_of_step
from segdatagen.training.kind import TrainingProgress, TrainingResult
from segdatagen.training.mixture import Mixture, SyntheticOptions, read_mixture
from segdatagen.training.run import train
from segdatagen.weights import TENSORS_NAME, read_weights

CPU = torch.device("cpu")
GEOMETRY = Geometry(size=(SIZE, SIZE))
Configure = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five published samples."""
    return make_published(tmp_path_factory.mktemp("mixture") / "run", [[11, 12, 13], [14, 15]])


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes_store(tmp_path_factory.mktemp("mixture") / "validation", 2, split="val")


@pytest.fixture(scope="module")
def arrays(scenes_store: Path) -> TrainingArrays:
    return TrainingArrays(*read_arrays(str(scenes_store), GEOMETRY))


@pytest.fixture
def configure(tmp_path: Path, scenes_store: Path, validation: Path) -> Configure:
    """`configure("out", synthetic={...})`: a configuration file of a training that takes half a second."""

    def make(name: str, **changes: Any) -> Path:
        fields: dict[str, Any] = {
            "sources": str(scenes_store),
            "validation": str(validation),
            "out": str(tmp_path / name),
            "size": [SIZE, SIZE],
            "steps": 12,
            "batch_size": 4,
            "hidden": [8, 8, 8, 8],
            "depths": [1, 1, 1, 1],
            "heads": [1, 1, 1, 1],
            "decoder_hidden": 8,
            "checkpoint_every": 5,
            "ema_start": 4,
            "torch_threads": 1,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        return path

    return make


def train_here(config: Path, progress: Callable[[TrainingProgress], None] = lambda found: None) -> TrainingResult:
    return train("segmenter", str(config), True, None, progress)


def weights_of(result: TrainingResult) -> dict[str, Tensor]:
    assert result.weights is not None
    return dict(load_file(Path(result.weights) / TENSORS_NAME))


def assert_same_weights(found: TrainingResult, expected: TrainingResult) -> None:
    tensors, others = weights_of(found), weights_of(expected)
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []


def mixture_of(run: Path, p_aug: float) -> Mixture:
    return read_mixture(SyntheticOptions(runs=(str(run),), p_aug=p_aug), GEOMETRY, load_label_set("scenes"))


def batch_at(arrays: TrainingArrays, step: int, rank: int = 0, num_workers: int = 1) -> Batch:
    return batch_of_step(arrays, Order(3, 8, True), step, Share(rank, num_workers), CPU)


def sample_of(image: np.ndarray, channels: np.ndarray) -> int | None:
    """Which published sample a row is, mirrored or not, with its mask; None for a real one."""
    for sample_id in (11, 12, 13, 14, 15):
        wanted, mask = pixels_of(sample_id)
        for side in (slice(None), slice(None, None, -1)):
            if np.array_equal(image, wanted[:, side]):
                assert np.array_equal(channels, np.where(mask == 255, -1, mask.astype(np.int64))[:, side])
                return sample_id
    return None


def samples_of(batch: Batch) -> list[int | None]:
    return [sample_of(i, c) for i, c in zip(batch.images.numpy(), batch.channels.numpy(), strict=True)]


def test_the_source_of_each_sample_can_stand_in_its_place(
    arrays: TrainingArrays, scenes_store: Path, tmp_path: Path
) -> None:
    """Real images drawn as often as the plan repeats their masks: the same rows are replaced, by the same draw."""
    store = open_store(str(scenes_store))
    ids = store.index["source_id"].to_pylist()
    chosen = {25: ids[2], 21: ids[0], 22: ids[2], 23: ids[3], 24: ids[2]}
    recipes: dict[str, dict[str, Any]] = {METHOD: {"sources": store.info.fingerprint}}
    job = {"name": "published", "sources": str(scenes_store)}
    made = write_run(str(tmp_path / "run"), job, recipes, load_label_set("scenes"))
    plan(made, list(chosen))
    rows = [row | {"source_id": chosen[row["sample_id"]]} for row in rows_of(list(chosen)).to_pylist()]
    put_samples(made.folder, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    publish_here(made)
    options = {"runs": [made.folder.uri], "p_aug": 0.5}
    labels = load_label_set("scenes")
    found = read_mixture(SyntheticOptions.model_validate(options | {"images": "sources"}), GEOMETRY, labels)
    places = [ids.index(chosen[sample_id]) for sample_id in sorted(chosen)]
    assert np.array_equal(found.images, arrays.images[places])
    assert np.array_equal(found.channels, arrays.channels[places])
    assert "5 sources of the samples of" in found.in_words()
    samples = read_mixture(SyntheticOptions.model_validate(options), GEOMETRY, labels)
    assert samples.fingerprint() != found.fingerprint()
    batch = batch_at(arrays, 4)
    replaced, also = (
        mixture.mixed(batch_at(arrays, 4)).images.ne(batch.images).flatten(1).any(1) for mixture in (samples, found)
    )
    assert replaced.any()
    assert not (also & ~replaced).any(), "the same rows, but for those that got their own image"


@pytest.mark.parametrize("words", ["names no sources", "holds other sources than"])
def test_sources_that_are_not_there_any_more_are_said(tmp_path: Path, scenes_store: Path, words: str) -> None:
    job = {"name": "published"} | ({} if words == "names no sources" else {"sources": str(scenes_store)})
    made = write_run(str(tmp_path / "run"), job, {METHOD: {"sources": "0" * 32}}, load_label_set("scenes"))
    plan(made, [1])
    put_samples(made.folder, rows_of([1]))
    publish_here(made)
    options = SyntheticOptions.model_validate({"runs": [made.folder.uri], "images": "sources"})
    with pytest.raises(UsageError, match=words):
        read_mixture(options, GEOMETRY, load_label_set("scenes"))


def test_rows_are_replaced_as_often_as_asked_by_every_sample_alike(arrays: TrainingArrays, run: Path) -> None:
    mixture, seen = mixture_of(run, 0.3), []
    for step in range(100):
        batch = batch_at(arrays, step)
        mixed = mixture.mixed(batch)
        found = samples_of(mixed)
        kept = [row for row, sample_id in enumerate(found) if sample_id is None]
        assert torch.equal(mixed.images[kept], batch.images[kept])
        assert torch.equal(mixed.channels[kept], batch.channels[kept])
        seen += found
    synthetic = [sample_id for sample_id in seen if sample_id is not None]
    assert len(synthetic) == pytest.approx(0.3 * 800, abs=4 * np.sqrt(800 * 0.3 * 0.7))
    for sample_id in (11, 12, 13, 14, 15):
        assert synthetic.count(sample_id) == pytest.approx(len(synthetic) / 5, abs=4 * np.sqrt(len(synthetic) * 0.16))


def test_nothing_or_everything_is_replaced_and_mirrored_with_the_row(arrays: TrainingArrays, run: Path) -> None:
    for step in range(10):
        batch = batch_at(arrays, step)
        untouched = mixture_of(run, 0.0).mixed(batch)
        assert torch.equal(untouched.images, batch.images)
        assert torch.equal(untouched.channels, batch.channels)
        mixed = mixture_of(run, 1.0).mixed(batch_at(arrays, step))
        found = samples_of(mixed)
        assert None not in found
        for row, sample_id in enumerate(found):
            side = slice(None, None, -1 if batch.flipped[row] else 1)
            assert np.array_equal(mixed.images[row].numpy(), pixels_of(sample_id or 0)[0][:, side])


def test_shares_of_workers_make_up_the_mixed_batch(arrays: TrainingArrays, run: Path) -> None:
    mixture = mixture_of(run, 0.5)
    before = mixture.fingerprint()
    whole = mixture.mixed(batch_at(arrays, 7))
    shares = [mixture.mixed(batch_at(arrays, 7, rank, 4)) for rank in range(4)]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.equal(torch.cat([share.channels for share in shares]), whole.channels)
    assert None in samples_of(whole)
    assert set(samples_of(whole)) != {None}
    assert mixture.fingerprint() == before  # the samples in memory are not what is mirrored


def test_never_replaced_is_the_training_without(configure: Configure, run: Path) -> None:
    without = train_here(configure("without"))
    assert_same_weights(train_here(configure("never", synthetic={"runs": [str(run)], "p_aug": 0})), without)
    always = train_here(configure("always", synthetic={"runs": [str(run)], "p_aug": 1}))
    assert not torch.equal(*(weights_of(result)["decode_head.classifier.weight"] for result in (without, always)))
    assert always.weights is not None
    record = read_weights(Path(always.weights), SegmenterWeights).training
    assert (record["images"], record["synthetic_images"], record["p_aug"]) == (6, 5, "1.0")
    assert f"| synthetic | p_aug 1: 5 samples of `{run}`, `" in Path(always.weights, "README.md").read_text()


def test_always_replaced_never_sees_a_real_image(configure: Configure, run: Path, tmp_path: Path) -> None:
    """Other real images, the same samples: the same weights."""
    synthetic = {"runs": [str(run)], "p_aug": 1.0}
    other = make_scenes_store(tmp_path / "other", 5, split="pretrain")
    found = train_here(configure("found", synthetic=synthetic, steps=4))
    assert_same_weights(train_here(configure("others", synthetic=synthetic, steps=4, sources=str(other))), found)


def test_stopped_training_sees_the_same_samples_again(configure: Configure, run: Path) -> None:
    synthetic = {"runs": [str(run)], "p_aug": 0.5}
    whole = train_here(configure("whole", synthetic=synthetic))

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 10:
            raise KeyboardInterrupt

    path = configure("stopped", synthetic=synthetic)
    with pytest.raises(KeyboardInterrupt):
        train_here(path, stop)
    steps: list[int] = []
    assert_same_weights(train_here(path, lambda found: steps.append(found.step)), whole)
    assert steps == [10, 12]


def test_other_samples_are_another_training(configure: Configure, run: Path, tmp_path: Path) -> None:
    mine = make_published(tmp_path / "mine", [[11, 12, 13, 14, 15]])
    path = configure("out", synthetic={"runs": [str(run)], "p_aug": 0.5})
    train_here(path)
    train_here(configure("out", synthetic={"runs": [str(mine)], "p_aug": 0.5}))  # the same ones, packed otherwise
    opened = open_run(str(mine))
    put_samples(opened.folder, rows_of([16]))
    publish_here(opened)
    for synthetic, words in (
        ({"runs": [str(mine)], "p_aug": 0.5}, r"\(its synthetic data was another\)"),
        ({"runs": [str(run)], "p_aug": 0.25}, r"\(its p_aug was another\)"),
        (None, r"\(its p_aug was another; its synthetic data was another\)"),
    ):
        with pytest.raises(UsageError, match=words):
            train_here(configure("out", synthetic=synthetic))
    train_here(configure("real"))
    with pytest.raises(UsageError, match=r"\(it had no p_aug; it had no synthetic data\)"):
        train_here(configure("real", synthetic={"runs": [str(run)], "p_aug": 0.5}))


def test_wrong_synthetic_data(refused_here: Refused, configure: Configure, run: Path, tmp_path: Path) -> None:
    unpublished = make_published(tmp_path / "unpublished", [[1]])
    for file in (unpublished / "published").iterdir():
        file.unlink()
    make_published(tmp_path / "other", [[1]], labels=load_label_set("camvid"))
    make_published(tmp_path / "small", [[1]], size=16)
    for name, row in (
        ("unpublished", "`train segmenter` with a run that is not published"),
        ("nothing", "`train segmenter` with a run that is not there"),
        ("other", "`train segmenter` with samples of other labels"),
        ("small", "`train segmenter` with samples of another size"),
    ):
        path = configure("train", synthetic={"runs": [str(tmp_path / name)]})
        refused_here("train", "segmenter", path, "--local", row=row)
    for synthetic, row in (
        ({"runs": [str(run)], "p_aug": -0.1}, "`train segmenter` with `p_aug: -0.1`"),
        ({"runs": [str(run), str(run)]}, "`train segmenter` with a run that stands twice"),
    ):
        path = configure("train", synthetic=synthetic)
        refused_here("train", "segmenter", path, "--local", row=row)
    assert main(["train", "segmenter", str(configure("train", steps=1)), "--local"]) == 0
