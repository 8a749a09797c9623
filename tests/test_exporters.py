"""Exports: paper 001's folder layout holds every good sample once, and nothing else is touched."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from committed import METHOD, commit, make_run, plan, sample_rows
from conftest import Refused, visible

from segdatagen.cli import main
from segdatagen.datasets import Options, open_reader
from segdatagen.datasets.scenes import make_scene
from segdatagen.decisions import put_decisions
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.exporters import EXPORTERS, Exported, export, mask_ddpm_folder, selection
from segdatagen.exporters.mask_ddpm_folder import grid
from segdatagen.images import decode_image, decode_mask, encode_image, encode_mask
from segdatagen.labels import load_label_set
from segdatagen.records import DECISION_SCHEMA, SAMPLE_SCHEMA, bytes_hash
from segdatagen.run_folder import Run, write_run
from segdatagen.samples import put_samples

FORMAT = "mask_ddpm_folder"
Sample = tuple[int, str, int]
"""Id, source and variant."""
SAMPLES: list[Sample] = [(11, "a", 0), (12, "a", 1), (13, "a", 2), (21, "b", 0), (22, "b", 2), (31, "night/c", 0)]


def rows_of(samples: Sequence[Sample], status: str = "ok", attempt: int = 1, image_format: str = "png") -> pa.Table:
    """Rows as a chain returns them: the mask follows from the source, the image is noise of the id."""
    rows = sample_rows([id_ for id_, _, _ in samples], status, attempt, 0).to_pylist()
    for row, (id_, source, variant) in zip(rows, samples, strict=True):
        row |= {"source_id": source, "variant": variant}
        if status == "ok":
            mask = np.random.default_rng(len(source)).choice([0, 2, 7, 255], (16, 24)).astype(np.uint8)
            pixels = np.random.default_rng(id_).integers(0, 256, (16, 24, 3), dtype=np.uint8)
            image = encode_image(pixels, "png" if image_format == "png" else "jpeg95")
            row |= {"mask": encode_mask(mask), "mask_hash": bytes_hash(encode_mask(mask)), "width": 24}
            row |= {"image": image, "image_hash": bytes_hash(image), "class_ids": [0, 2, 7], "class_pixels": [9, 9, 9]}
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of six samples in two parts that have no order, one of them failed first, and samples that are not good."""
    made = make_run(tmp_path / "run")
    plan(made, [*(id_ for id_, _, _ in SAMPLES), 91, 92])
    put_samples(made.folder, rows_of([SAMPLES[5], SAMPLES[2], SAMPLES[0]]))
    put_samples(made.folder, rows_of([SAMPLES[1], (91, "a", 3)], "failed"))
    put_samples(made.folder, rows_of([SAMPLES[4], SAMPLES[1], SAMPLES[3]], attempt=2))
    put_samples(made.folder, rows_of([(92, "d", 0)], "rejected"))
    return made


def exported(run: Run, out: Path, data_format: str = FORMAT) -> Exported:
    return export(run, data_format, str(out), lambda done, total: None)


def stored(run: Run, id_: int) -> dict[str, Any]:
    tables = [pa.parquet.read_table(path) for path in Path(run.folder.uri).rglob("samples/**/*.parquet")]
    (row,) = [row for table in tables for row in table.to_pylist() if (row["sample_id"], row["status"]) == (id_, "ok")]
    return row


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_layout_is_theirs_and_what_it_lacks(run: Run, tmp_path: Path) -> None:
    before = visible(tmp_path / "run")
    found = exported(run, tmp_path / "out")
    assert (found.num_images, found.num_sources, found.num_written) == (6, 3, 6)
    assert found.left_out == {"failed": 1, "rejected": 1}
    assert visible(tmp_path / "run") == before
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    theirs = {"a.png", "epoch_a/image_0.png", "epoch_a/image_1.png", "epoch_a/image_2.png", "b.png"}
    theirs |= {"epoch_b/image_0.png", "epoch_b/image_2.png", "night/c.png", "epoch_night/c/image_0.png"}
    ours = {f"{folder}/{stem}" for stem in ("a", "b", "night/c") for folder in ("masks", "metadata")}
    ours = {name + (".png" if name.startswith("masks") else ".jsonl") for name in ours}
    assert files == theirs | ours | {"labels.yaml", "colormap.json", "export.json"}


def test_images_are_those_of_the_samples(run: Run, tmp_path: Path) -> None:
    exported(run, tmp_path / "out")
    for id_, source, variant in SAMPLES:
        path = tmp_path / "out" / f"epoch_{source}" / f"image_{variant}.png"
        assert path.read_bytes() == stored(run, id_)["image"]
    sheet = decode_image((tmp_path / "out" / "a.png").read_bytes())
    assert sheet.shape == (20, 3 * 26 + 2, 3)
    for place, id_ in enumerate((11, 12, 13)):
        cell = sheet[2:18, 2 + 26 * place : 26 + 26 * place]
        assert np.array_equal(cell, decode_image(stored(run, id_)["image"]))


def test_jpeg_samples_become_png_of_the_same_pixels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put_samples(run.folder, rows_of(SAMPLES[:1], image_format="jpeg95"))
    exported(run, tmp_path / "out")
    data = (tmp_path / "out" / "epoch_a" / "image_0.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert np.array_equal(decode_image(data), decode_image(stored(run, 11)["image"]))


def test_masks_can_be_ingested_again(run: Run, tmp_path: Path) -> None:
    exported(run, tmp_path / "out")
    reader = open_reader("masks", str(tmp_path / "out" / "masks"), "train", Options("scenes", 0.0))
    found = {item.source_id: reader.read(item).mask for item in reader.list_items().items}
    assert set(found) == {"a", "b", "night/c"}
    for id_, source, _ in SAMPLES:
        assert np.array_equal(found[source], decode_mask(stored(run, id_)["mask"]))
    colours = json.loads((tmp_path / "out" / "colormap.json").read_text())
    labels = load_label_set("scenes")
    assert list(colours) == list(labels.names)
    assert [tuple(colour) for colour in colours.values()] == [label.colour for label in labels.classes]
    assert load_label_set(str(tmp_path / "out" / "labels.yaml")) == labels


def test_metadata_names_seed_identity_and_classes(run: Run, tmp_path: Path) -> None:
    exported(run, tmp_path / "out")
    lines = (tmp_path / "out" / "metadata" / "b.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["epoch_b/image_0.png", "epoch_b/image_2.png"]
    row, sample = json.loads(lines[1]), stored(run, 22)
    assert row == {
        "file_name": "epoch_b/image_2.png",
        "mask": "masks/b.png",
        **{name: sample[name] for name in ("source_id", "method", "variant", "sample_id", "round", "seed")},
        **{name: sample[name] for name in ("class_ids", "image_hash", "mask_hash")},
        "classes": ["sky", "road", "truck"],
    }
    info = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (info["complete"], info["num_images"], info["run"]) == (True, 6, run.folder.uri)


def test_segments_go_along_where_samples_have_some(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    scene = make_scene(3, 24, 16)
    segments = [asdict(one) | {"bbox": list(one.bbox)} for one in scene.segments]
    rows = rows_of([(1, "a", 0), (2, "a", 1), (3, "b", 0)]).to_pylist()
    for row in rows[:2]:
        row |= {"segment_map": encode_mask(scene.segment_map), "segments": segments}
    put_samples(run.folder, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    exported(run, tmp_path / "out")
    assert np.array_equal(decode_mask((tmp_path / "out/segments/a.png").read_bytes()), scene.segment_map)
    found = [json.loads(line) for line in (tmp_path / "out/metadata/a.jsonl").read_text().splitlines()]
    assert [(line["segment_map"], line["segments"]) for line in found] == [("segments/a.png", segments)] * 2
    assert not (tmp_path / "out/segments/b.png").exists()
    assert "segment" not in (tmp_path / "out/metadata/b.jsonl").read_text()
    before = stamps(tmp_path / "out")
    assert exported(run, tmp_path / "out").num_written == 0
    assert stamps(tmp_path / "out") == before
    (tmp_path / "out/segments/a.png").unlink()
    assert exported(run, tmp_path / "out").num_written == 2
    assert (tmp_path / "out/segments/a.png").exists()


def test_second_export_writes_nothing(run: Run, tmp_path: Path) -> None:
    exported(run, tmp_path / "out")
    before = stamps(tmp_path / "out")
    assert exported(run, tmp_path / "out").num_written == 0
    assert stamps(tmp_path / "out") == before


def test_grown_run_and_lost_files_are_made_good(run: Run, tmp_path: Path) -> None:
    exported(run, tmp_path / "out")
    before = stamps(tmp_path / "out")
    put_samples(run.folder, rows_of([(91, "a", 3)], attempt=3))
    (tmp_path / "out" / "masks" / "b.png").unlink()
    (tmp_path / "out" / "colormap.json").unlink()
    found = exported(run, tmp_path / "out")
    assert (found.num_images, found.num_written) == (7, 4 + 2)
    exported(run, tmp_path / "fresh")
    assert visible(tmp_path / "out") == visible(tmp_path / "fresh")
    untouched = {name for name, stamp in stamps(tmp_path / "out").items() if before.get(name) == stamp}
    assert {Path(name).name for name in untouched} == {"c.png", "image_0.png", "c.jsonl"}


def test_killed_export_goes_on(run: Run, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 6
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(run, FORMAT, str(tmp_path / "out"), stop)
    assert not json.loads((tmp_path / "out" / "export.json").read_text())["complete"]
    assert exported(run, tmp_path / "out").num_written == 1
    exported(run, tmp_path / "fresh")
    assert visible(tmp_path / "out") == visible(tmp_path / "fresh")


@pytest.mark.parametrize(("rows", "images"), [(1, 64), (2, 1), (4, 2)])
def test_portions_make_no_difference(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, images: int
) -> None:
    exported(run, tmp_path / "whole")
    monkeypatch.setattr(selection, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(mask_ddpm_folder, "GRID_IMAGES", images)
    exported(run, tmp_path / "out")
    portions, whole = visible(tmp_path / "out"), visible(tmp_path / "whole")
    grids = {"a.png", "b.png"} if images < 3 else set()
    assert {name for name in whole if portions[name] != whole[name]} <= grids
    assert portions.keys() == whole.keys()


def test_grid_has_rows_of_eight() -> None:
    images = [np.full((3, 5, 3), value + 1, np.uint8) for value in range(11)]
    sheet = grid(images)
    assert sheet.shape == (2 * 5 + 2, 8 * 7 + 2, 3)
    for place, image in enumerate(images):
        top, left = 2 + 5 * (place // 8), 2 + 7 * (place % 8)
        assert np.array_equal(sheet[top : top + 3, left : left + 5], image)
    assert int((sheet > 0).sum()) == 11 * 3 * 5 * 3


def refusal(run: Run, out: Path, data_format: str = FORMAT) -> str:
    """What an export says that wrote nothing."""
    before = visible(out) if out.exists() else None
    with pytest.raises(UsageError) as caught:
        exported(run, out, data_format)
    assert (visible(out) if out.exists() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_inside_the_run_or_around_it_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for place in ("run", "run/data", "run/export", "link/export"):
        assert "which no export changes: choose another --out" in refusal(run, tmp_path / place)
    assert "holds" in refusal(run, tmp_path)


def test_folder_that_holds_other_things_is_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("mine")
    assert "holds a.png, which this export would not write" in refusal(run, out)
    (out / "a.png").unlink()
    for text in ("mine", "[]", '{"fingerprints": 3}', "{}"):
        (out / "export.json").write_text(text)
        assert "not of an export" in refusal(run, out)
    (out / "export.json").unlink()
    exported(run, out)
    (out / "epoch_a" / "image_9.png").write_text("mine")
    assert "holds epoch_a/image_9.png, which this export would not write (was its sample excluded" in refusal(run, out)


def test_export_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    exported(run, tmp_path / "out")
    for job, recipe in (({"name": "other"}, {"seed": 0}), ({"name": "committed"}, {"seed": 1})):
        uri = str(tmp_path / f"other-{recipe['seed']}")
        other = write_run(uri, job, {METHOD: recipe}, load_label_set("scenes"))
        put_samples(other.folder, rows_of(SAMPLES))
        assert f"holds the export of another run, {run.folder.uri}" in refusal(other, tmp_path / "out")
    moved = make_run(tmp_path / "moved")
    put_samples(moved.folder, rows_of(SAMPLES))
    assert exported(moved, tmp_path / "out").num_written == 0


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([(1, "../out", 0)], "source '../out' cannot be the name of a file"),
        ([(1, "/a", 0)], "cannot be the name of a file"),
        ([(1, ".a", 0)], "cannot be the name of a file"),
        ([(1, "a", 0), (2, "masks/a", 0)], "two sources would both become masks/a.png"),
    ],
)
def test_samples_that_the_layout_cannot_hold_are_refused(tmp_path: Path, samples: list[Sample], sentence: str) -> None:
    run = make_run(tmp_path / "run")
    put_samples(run.folder, rows_of(samples))
    assert sentence in refusal(run, tmp_path / "out")


def test_samples_of_several_methods_are_refused_whatever_their_variants(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put_samples(run.folder, rows_of([(1, "a", 0), (2, "a", 2)]))
    other = rows_of([(3, "a", 1)]).to_pylist()[0] | {"method": "imgsyn"}
    put_samples(run.folder, pa.Table.from_pylist([other], schema=SAMPLE_SCHEMA))
    assert "source a has samples of several methods: this layout holds those of one" in refusal(run, tmp_path / "out")


def test_an_accepted_sample_without_an_image_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lacking = rows_of([(1, "a", 0)]).to_pylist()[0] | {"image": None, "image_hash": None, "status": "rejected"}
    put_samples(run.folder, pa.Table.from_pylist([lacking | {"reason": "blurred"}], schema=SAMPLE_SCHEMA))
    decided = pa.table({"sample_id": [1], "status": ["ok"], "reason": [None]}, schema=DECISION_SCHEMA)
    put_decisions(run.folder, "mine", decided, {})
    with pytest.raises(SegdatagenError, match="a decision accepts sample 1, which was rejected before it had an image"):
        exported(run, tmp_path / "out")


def test_several_masks_of_a_source_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    put_samples(run.folder, rows_of([(1, "a", 0)]))
    other = rows_of([(2, "abc", 1)]).to_pylist()[0] | {"source_id": "a"}
    put_samples(run.folder, pa.Table.from_pylist([other], schema=SAMPLE_SCHEMA))
    sentence = "the samples of source a have several masks, as of masksyn or after ignore_noisy: this layout holds one "
    assert f"{sentence}for all of them" in refusal(run, tmp_path / "out")


def test_run_without_good_samples_has_nothing_to_export(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "has no good sample yet" in refusal(run, tmp_path / "out")
    commit(run, [1], "failed")
    assert "has no good sample yet" in refusal(run, tmp_path / "out")


def test_damaged_sample_is_named(run: Run, tmp_path: Path) -> None:
    name = put_samples(run.folder, rows_of([(51, "e", 0)]))
    path = tmp_path / "run" / name
    data, image = path.read_bytes(), stored(run, 51)["image"]
    path.write_bytes(data.replace(image, image[:-1] + bytes([image[-1] ^ 1])))
    with pytest.raises(SegdatagenError, match=f"{name}: the image of sample 51 is damaged"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out" / "metadata" / "e.jsonl").exists()
    path.write_bytes(data[:-9])
    with pytest.raises(SegdatagenError, match="make its samples again"):
        exported(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_command_exports(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["export", run.folder.uri, "--format", FORMAT, "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert json.loads(out)["num_images"] == 6
    assert main(words) == 0
    text = capfd.readouterr().out
    assert "6 images for 3 masks, 0 written now; left out: 1 failed, 1 rejected" in text
    assert "the run is not whole" not in text
    put_samples(run.folder, rows_of([(77, "z", 0)]))
    assert main(words) == 0
    assert "the run is not whole: 1 samples are in no plan" in capfd.readouterr().out


def test_wrong_words_cost_a_line(refused_here: Refused, run: Run, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    assert f"choose one of {', '.join(EXPORTERS)}" in refused_here("export", run.folder.uri, "--format", "coco", *out)
    assert "not a run folder" in refused_here("export", tmp_path, "--format", FORMAT, *out)
    inside = refused_here("export", run.folder.uri, "--format", FORMAT, "--out", f"{run.folder.uri}/data")
    assert "choose another --out" in inside
