"""A sample made again is the stored one; what changed since is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import JobFactory, make_scenes_store, make_weights
from test_faults import damage, rows_of, run
from tiny_segmenter import make_segmenter

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.images import decode_image, decode_mask, encode_mask
from segdatagen.job import load_job
from segdatagen.regenerate import regenerate
from segdatagen.run_folder import open_run
from segdatagen.samples import read_ledger
from segdatagen.tables import put_table, read_part


def test_identical_to_the_stored_one(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    job = load_job(str(make_job(execution={"microbatch": 3})))
    run(job)
    wanted = rows_of(job)[5]
    found = regenerate(open_run(job.uri), int(str(wanted["sample_id"])), str(tmp_path / "again"))
    assert found.identical
    assert (found.mask_identical, found.largest_difference) == (True, 0)
    image, mask = (Path(name).read_bytes() for name in found.files)
    assert decode_image(image).shape[:2] == decode_mask(mask).shape


def test_a_run_of_relative_paths_is_usable_from_any_folder(
    ray_session: None, make_job: JobFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scenes_store(tmp_path / "sources")
    make_weights(tmp_path / "weights")
    make_segmenter(tmp_path / "segmenter")
    methods = {"mask_ddpm": {"weights": "weights", "steps": 2}}
    filters = {"ignore_noisy": {"segmenter": "segmenter"}}
    make_job(sources="sources", methods=methods, filters=filters, output={"root": "runs"})
    monkeypatch.chdir(tmp_path)
    job = load_job("job.yaml")
    run(job)
    wanted = rows_of(job)[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = regenerate(open_run("../runs/tiny/v1"), int(str(wanted["sample_id"])), "again")
    assert found.identical
    assert (elsewhere / "again").is_dir()


def test_what_was_made_on_a_gpu_is_made_again_where_there_is_none(
    ray_session: None, make_job: JobFactory, tmp_path: Path
) -> None:
    job = load_job(str(make_job()))
    run(job)
    path = Path(job.uri, "run.json")
    info = json.loads(path.read_text())
    info["job"]["execution"]["gpus_per_actor"] = 1.0
    path.write_text(json.dumps(info))
    wanted = int(str(rows_of(job)[0]["sample_id"]))
    assert regenerate(open_run(job.uri), wanted, str(tmp_path / "again")).identical


def test_difference_is_measured(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    job = load_job(str(make_job(output={"root": str(tmp_path / "runs"), "image_format": "png"})))
    run(job)
    opened = open_run(job.uri)
    part = read_ledger(opened.folder).parts[0].name
    table = read_part(opened.folder, part)
    first, second = table.slice(0, 1), table.slice(1, 1)
    swapped = first.set_column(table.column_names.index("image"), "image", second["image"])
    swapped = swapped.set_column(table.column_names.index("image_hash"), "image_hash", second["image_hash"])
    put_table(opened.folder, part, swapped.cast(table.schema))
    found = regenerate(opened, first["sample_id"][0].as_py(), str(tmp_path / "again"))
    apart = np.abs(
        decode_image(first["image"][0].as_py()).astype(int) - decode_image(second["image"][0].as_py()).astype(int)
    )
    assert (found.identical, found.mask_identical) == (False, True)
    assert found.largest_difference == apart.max() > 0
    assert found.mean_difference == pytest.approx(apart.mean())


def test_unknown_and_failed_samples_are_refused(ray_session: None, make_job: JobFactory, tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "damaged")
    damage(store, {0: b"not a mask"})
    job = load_job(str(make_job(sources=str(store), execution={"max_failed_fraction": 0.9})))
    run(job)
    opened = open_run(job.uri)
    failed = next(row for row in rows_of(job) if row["status"] == "failed")
    with pytest.raises(UsageError, match="has no sample 1"):
        regenerate(opened, 1, str(tmp_path / "again"))
    with pytest.raises(UsageError, match=r"failed .*unreadable source.*nothing to compare"):
        regenerate(opened, int(str(failed["sample_id"])), str(tmp_path / "again"))
    good = next(row for row in rows_of(job) if row["status"] == "ok")
    whole = open_source_masks(store)
    damage(store, dict.fromkeys(range(len(whole)), encode_mask(np.full((32, 32), 200, np.uint8))))
    with pytest.raises(SegdatagenError, match=r"cannot be made again: load: .*200"):
        regenerate(opened, int(str(good["sample_id"])), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def open_source_masks(store: Path) -> list[bytes]:
    from segdatagen.sources import open_store

    opened = open_store(str(store))
    masks: list[bytes] = read_part(opened.folder, opened.info.parts[0].name, ["mask"])["mask"].to_pylist()
    return masks
