"""MaskSyn on real Ray with small networks: what a row is of is the mask that came out, whatever its source was."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import JobFactory, Refused, make_scenes_store
from hypothesis import given
from hypothesis import strategies as st
from kept_events import Events
from test_captions import store_of
from test_decisions import decide
from test_faults import damage, run
from test_publish import publish_quietly, published_ids
from tiny_latent import save_coarse, save_models
from tiny_segmenter import make_segmenter
from tiny_text2mask import CAR, LAYOUTS, SIDE

from segdatagen.cli import main
from segdatagen.datasets import Options
from segdatagen.deep_verify import verify_parts
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.geometry import Geometry
from segdatagen.images import class_pixels, decode_image, decode_mask, encode_mask
from segdatagen.job import Job, load_job
from segdatagen.labels import load_label_set
from segdatagen.method_context import method_contexts
from segdatagen.methods import build_chain, content_recipes
from segdatagen.plan_rows import first_variants
from segdatagen.planner import presence_of, read_plan, read_rounds
from segdatagen.publish import publish
from segdatagen.records import PLAN_SCHEMA
from segdatagen.regenerate import regenerate
from segdatagen.run import plan_job
from segdatagen.run_folder import open_run
from segdatagen.samples import read_ledger
from segdatagen.source_hashes import LAYOUTS_NAME, hash_layouts_of, read_index
from segdatagen.sources import open_store, transformed_counts
from segdatagen.status import status_of
from segdatagen.storage import Folder
from segdatagen.tables import read_part

LABELS = load_label_set("scenes")
STREET, LAWN = LAYOUTS
COLOUR_MAP = {"name": "colour_map", "of": "mask"}
ANY_CLASSES = {"min_classes_found": 0}
ALONE = {"actors": 1, "cpus_per_actor": 0.4, "microbatch": 2, "rows_per_block": 3}
ANYTHING = {**ANY_CLASSES, "max_off_palette": 1, "max_speckle": 1, "min_distance": 0}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, one that was made to inpaint, and a ControlNet; nobody trained them."""
    return save_models(tmp_path_factory.mktemp("masksyn"))


def caption_store(folder: Path, captions: list[str]) -> Path:
    (folder / "ideas.txt").write_text("\n".join(captions))
    store_of(folder / "ideas", "captions", str(folder / "ideas.txt"), Options(labels="scenes"))
    return folder / "ideas"


def options_of(models: Path, text2mask: Path, **more: Any) -> dict[str, Any]:
    """What a job file says of masksyn: every source is asked for a street."""
    options = {
        "base": str(models / "base"),
        "controls": [{"kind": "controlnet", "weights": str(models / "controlnet"), "prior": COLOUR_MAP}],
        "sampler": {"steps": 2, "guidance": 3.0},
        "text2mask": {"weights": str(text2mask), "sampler": {"steps": 6, "guidance": 1.0}},
        "prompt": {"kind": "template", "template": STREET},
        "layout": ANY_CLASSES,
    }
    return options | more


def job_of(make_job: JobFactory, options: dict[str, Any], **changes: Any) -> Job:
    fields = {
        "geometry": {"size": [SIDE, SIDE], "fit": "resize"},
        "methods": {"masksyn": options},
        "plan": [{"method": "masksyn", "strategy": "uniform", "per_source": 2}],
    }
    return load_job(str(make_job(**fields | changes)))


def rows_of(job: Job) -> list[dict[str, Any]]:
    folder = open_run(job.uri).folder
    rows = [row for part in read_ledger(folder).parts for row in read_part(folder, part.name).to_pylist()]
    return sorted(rows, key=lambda row: row["sample_id"])


def require_row_of_its_mask(row: dict[str, Any]) -> None:
    """Size, classes and pixels of a row are those of the mask in it."""
    mask = decode_mask(row["mask"])
    ids, pixels = class_pixels(mask)
    assert row["class_ids"] == ids[ids != 255].tolist()
    assert row["class_pixels"] == pixels[ids != 255].tolist()
    assert mask.shape == (row["height"], row["width"]) == (SIDE, SIDE)
    assert decode_image(row["image"]).shape[:2] == (SIDE, SIDE)


def require_rows_of_one_chain(job: Job) -> None:
    """Rows are those of all stages in one process, byte for byte, whatever actors they have passed."""
    opened = open_run(job.uri)
    fused = build_chain("masksyn", method_contexts(job, opened.label_set)["masksyn"])
    again = fused.run(read_plan(opened.folder, read_rounds(opened.folder)), 1).drop_columns("seconds").to_pylist()
    stored = [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(job)]
    assert sorted(again, key=lambda row: row["sample_id"]) == stored


def test_a_run_is_of_the_masks_that_came_out(
    ray_session: None, make_job: JobFactory, models: Path, text2mask: Path, scenes_store: Path, tmp_path: Path
) -> None:
    """Variants share masks and not images; every command takes the run; one sample is made again, byte by byte."""
    options = options_of(models, text2mask, images_per_mask=2)
    plan = [{"method": "masksyn", "strategy": "uniform", "per_source": 3}]
    job = job_of(make_job, options, plan=plan, execution=ALONE | {"placement": "staged"})
    events = Events()
    assert run(job, events).counts == {"ok": 18, "rejected": 0, "failed": 0}
    note = f"{scenes_store} is panoptic: masksyn makes semantic masks, without segments, of it"
    assert events.notes.count(note) == 1
    rows = rows_of(job)
    for row in rows:
        require_row_of_its_mask(row)
        assert (decode_mask(row["mask"]) == LAYOUTS[STREET]).mean() > 0.95
        assert (row["prompt"], row["segments"], row["segment_map"]) == (STREET, None, None)
        assert row["layout_microbatch"] == row["microbatch"] == 2
        assert all(row[f"score_{name}"] is not None for name in ("off_palette", "speckle", "layout_distance"))
    assert len({row["image_hash"] for row in rows}) == 18
    layouts = {(row["source_id"], row["variant"] // 2): row["mask"] for row in rows}
    assert all(row["mask"] == layouts[row["source_id"], row["variant"] // 2] for row in rows)
    opened = open_run(job.uri)
    assert len(read_index(opened.folder, LAYOUTS_NAME)[0]) == 6
    require_rows_of_one_chain(job)
    assert {part.stage for part in events.parts} == {"text2mask", None}, "masks were committed before their images"
    assert run(job).already_complete
    assert verify_parts(opened, 1.0, None, lambda done, total: None)[1] == ()
    found = regenerate(opened, rows[5]["sample_id"], str(tmp_path / "again"))
    assert (found.identical, found.mask_identical) == (True, True)
    publish_quietly(opened)
    assert published_ids(Path(job.uri)) == [row["sample_id"] for row in rows]
    assert main(["report", job.uri]) == 0


def test_rounds_count_what_came_out_and_plan_what_sources_show(
    ray_session: None, make_job: JobFactory, models: Path, text2mask: Path, scenes_store: Path
) -> None:
    """Grass is asked for and never drawn: no sample counts for it. Cars are drawn each time, and all of them count."""
    store, names = open_store(str(scenes_store)), LABELS.names
    presence = presence_of(store, transformed_counts(store, Geometry(size=(SIDE, SIDE))), 1)
    real = dict(zip(names, presence.counts.tolist(), strict=True))
    quotas = {"grass": real["grass"] + 2, "car": real["car"] + 1}
    plan = [{"method": "masksyn", "strategy": "quotas", "quotas": quotas}, {"max_rounds": 2}]
    job = job_of(make_job, options_of(models, text2mask), plan=plan)
    events = Events()
    outcome = run(job, events)
    assert (outcome.goals_met, outcome.complete, len(events.rounds)) == (False, True, 2)
    rows = rows_of(job)
    assert {row["status"] for row in rows} == {"ok"}
    brute = Counter(names[LABELS.channel_table()[id_]] for row in rows for id_ in np.unique(decode_mask(row["mask"])))
    status = status_of(open_run(job.uri))
    assert {name: count for name, count in status.accepted.items() if count} == brute
    assert brute["grass"] == 0 < brute["car"] == len(rows)
    first, second = ({c.name: c for c in summary.classes} for summary in events.rounds)
    assert (first["grass"].planned, second["grass"].planned) == (2, 2)
    assert second["car"].accepted == sum(row["round"] == 0 for row in rows)
    shows = {
        id_ for n, id_ in enumerate(presence.source_ids) if names.index("grass") in presence.classes_of(np.array([n]))
    }
    assert {row["source_id"] for row in rows if row["round"] == 1} <= shows


def test_captions_alone_are_sources(
    ray_session: None, make_job: JobFactory, models: Path, text2mask: Path, tmp_path: Path
) -> None:
    """No image and no mask anywhere; limits as they are by default, the classes that a caption names are asked for."""
    store = caption_store(tmp_path, list(LAYOUTS))
    options = options_of(models, text2mask, prompt={"kind": "caption"}, layout={})
    execution = ALONE | {"placement": "streaming", "actors": 2}
    job = job_of(make_job, options, sources=str(store), execution=execution)
    events = Events()
    assert run(job, events).counts == {"ok": 4, "rejected": 0, "failed": 0}
    assert "2 of 2 sources have no readable mask: their duplicates are not found" in events.notes
    for row in rows_of(job):
        require_row_of_its_mask(row)
        assert row["caption"] == row["prompt"] == list(LAYOUTS)[int(row["source_id"][-1]) - 1]
        assert row["caption_from"] == "data set"
        assert (decode_mask(row["mask"]) == LAYOUTS[row["prompt"]]).mean() > 0.95
        assert (row["score_classes_found"], row["score_layout_distance"]) == (1.0, None)
    require_rows_of_one_chain(job)
    publish_quietly(open_run(job.uri))
    assert main(["report", job.uri]) == 0


def test_no_image_is_spent_on_a_layout_that_is_refused(
    ray_session: None, make_job: JobFactory, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An untrained Text2Mask: every row is rejected with its mask and its scores, and the run is whole."""
    plan = [{"method": "masksyn", "strategy": "uniform", "per_source": 1}, {"max_rounds": 2}]
    job = job_of(make_job, options_of(models, models / "base", images_per_mask=3), plan=plan)
    events = Events()
    outcome = run(job, events)
    assert (outcome.counts, outcome.goals_met) == ({"ok": 0, "rejected": 12, "failed": 0}, False)
    assert any("12 of them for 'text2mask: off palette above 0.1'" in note for note in events.notes)
    rows = rows_of(job)
    for row in rows:
        assert (row["reason"], row["image"], row["image_hash"]) == ("text2mask: off palette above 0.1", None, None)
        assert row["score_off_palette"] > 0.1
        assert len(row["layout_candidates"]) == 2
        assert row["class_ids"] == [id_ for id_ in np.unique(decode_mask(row["mask"])) if id_ != 255]
        assert row["microbatch"] is None
    assert sorted((row["round"], row["variant"]) for row in rows) == [(0, 0)] * 6 + [(1, 3)] * 6
    tried = {loser["seed"] for row in rows for loser in row["layout_candidates"]}
    assert len(tried) == 24, "the second round draws other layouts"
    opened = open_run(job.uri)
    assert verify_parts(opened, 1.0, None, lambda done, total: None)[1] == ()
    assert publish_quietly(opened).num_rows == 0
    assert main(["report", job.uri]) == 0
    with pytest.raises(UsageError, match=r"is rejected \(text2mask: off palette above 0.1\): it has no image"):
        regenerate(opened, rows[0]["sample_id"], str(tmp_path / "again"))
    decide(opened, "mine", "ok", [rows[0]["sample_id"]])
    with pytest.raises(SegdatagenError, match=f"a decision accepts sample {rows[0]['sample_id']}, .* before it had an"):
        publish(opened, lambda holder: None, lambda done, total: None)


def test_filters_see_the_mask_that_came_out(
    make_job: JobFactory, models: Path, text2mask: Path, scenes_store: Path, tmp_path: Path
) -> None:
    """Without Ray: adherence judges the classes that were drawn, and what becomes ignored is where a car was drawn."""
    losses = [1e-6 if id_ == CAR else 1e6 for id_ in LABELS.ids]
    segmenter = str(make_segmenter(tmp_path / "segmenter", class_losses=losses))
    filters = {"adherence": {"segmenter": segmenter, "min": 0}, "ignore_noisy": {"segmenter": segmenter}}
    options = options_of(models, text2mask, layout={**ANY_CLASSES, "min_distance": 0})
    job = job_of(make_job, options, filters=filters)
    chain = build_chain("masksyn", method_contexts(job, LABELS)["masksyn"])
    names = ["load", "caption", "layout", "prompt", "text2mask", "prior", "mask2img", "adherence", "target"]
    assert [stage.name for stage in chain.stages] == [*names, "ignore_noisy", "filter"]
    assert plan_job(job, Events(), dry_run=False).summary.num_rows == 12
    folder = open_run(job.uri).folder
    rows = chain.run(read_plan(folder, read_rounds(folder)), 1).to_pylist()
    plain = build_chain("masksyn", method_contexts(job_of(make_job, options), LABELS)["masksyn"])
    drawn = plain.run(read_plan(folder, read_rounds(folder)), 1).to_pylist()
    for row, before in zip(rows, drawn, strict=True):
        mask = decode_mask(before["mask"])
        assert {entry["class_id"] for entry in row["scores_per_class"]} == set(before["class_ids"])
        np.testing.assert_array_equal(decode_mask(row["mask"]), np.where(mask == CAR, 255, mask))
        assert row["class_ids"] == [id_ for id_ in before["class_ids"] if id_ != CAR]
        assert row["score_ignored"] == pytest.approx((mask == CAR).sum() / sum(before["class_pixels"]))
        assert row["score_ignored"] > 0


def test_a_real_mask_that_cannot_be_read_is_compared_with_nothing(tmp_path: Path) -> None:
    store = make_scenes_store(tmp_path / "store")
    unknown = encode_mask(np.full((32, 32), 200, np.uint8))
    damage(store, {1: b"no mask", 2: unknown})
    table = hash_layouts_of(Folder(str(store)), Geometry(size=(32, 32)), "part-00000.parquet", LABELS)
    assert [value is None for value in table["hash"].to_pylist()] == [False, True, True, False, False, False]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["masksyn", "guided"]), st.integers(0, 40)), max_size=30
    ),
    st.integers(1, 5),
)
def test_a_round_begins_with_a_new_layout(rows: list[tuple[str, str, int]], shared: int) -> None:
    """Behind every variant so far, at the first one that shares a mask with none of them."""
    plan = pa.table(
        {name: [row[place] for row in rows] for place, name in enumerate(("source_id", "method", "variant"))},
        schema=pa.schema([PLAN_SCHEMA.field(name) for name in ("source_id", "method", "variant")]),
    )
    found = first_variants(plan, ["a", "b", "c", "d"], {"masksyn": shared})
    assert set(found) == {method for _, method, _ in rows}
    for method, firsts in found.items():
        for source_id, first in zip("abcd", firsts.tolist(), strict=True):
            known = [variant for source, own, variant in rows if (source, own) == (source_id, method)]
            layouts = {variant // (shared if method == "masksyn" else 1) for variant in known}
            wanted = max(layouts, default=-1) + 1
            assert first == wanted * (shared if method == "masksyn" else 1)


# What is refused before anything is written


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("`masksyn` without a ControlNet", {"controls": []}),
        ("`masksyn` without the key `controls`", {"controls": None}),
        ("`masksyn` without a Text2Mask", {"text2mask": None}),
        ("a Text2Mask that is not there", {"text2mask": {"weights": "nowhere"}}),
        ("a Text2Mask that is a ControlNet", {"text2mask": {"weights": "{controlnet}"}}),
        ("a Text2Mask that was made to inpaint", {"text2mask": {"weights": "{inpainter}"}}),
        ("a Text2Mask with a VAE of another kind", {"text2mask": {"numerics": {"vae": "{controlnet}"}}}),
        ("`layout: {max_speckle: 2}`", {"layout": {"max_speckle": 2}}),
        ("`layout: {redraw: 1}`", {"layout": {"redraw": 1}}),
        ("`images_per_mask: 0`", {"images_per_mask": 0}),
        ("colours that are nearer than asked for", {"layout": {"min_colour_distance": 90}}),
    ],
)
def test_what_masksyn_refuses(
    refused_here: Refused, make_job: JobFactory, models: Path, row: str, changes: dict[str, Any]
) -> None:
    options = options_of(models, models / "base")
    for name, value in changes.items():
        if value is None:
            del options[name]
        elif name == "text2mask":
            named = {key: given for key, given in value.items() if key != "weights"}
            if "numerics" in named:
                named["numerics"] = {"vae": str(models / "controlnet")}
            weights = value.get("weights", "{base}")
            options[name] |= named | {"weights": weights.replace("{", f"{models}/").replace("}", "")}
        else:
            options[name] = value
    job = make_job(geometry={"size": [SIDE, SIDE]}, methods={"masksyn": options}, plan=[PLAN])
    refused_here("plan", job, row=row)


PLAN = {"method": "masksyn", "strategy": "uniform", "per_source": 1}


def test_content_is_every_option_with_weights_by_their_bytes(
    make_job: JobFactory, models: Path, scenes_store: Path
) -> None:
    store = open_store(str(scenes_store))

    def recipe(**more: Any) -> str:
        job = job_of(make_job, options_of(models, models / "base") | more)
        return json.dumps(content_recipes(job, store)["masksyn"], sort_keys=True)

    plain = recipe()
    assert str(models) not in plain
    for change in (
        {"text2mask": {"weights": str(models / "inpainter")}},
        {"text2mask": {"weights": str(models / "base"), "sampler": {"steps": 7}}},
        {"layout": {"redraws": 5}},
        {"images_per_mask": 2},
    ):
        assert recipe(**change) != plain


def test_sizes_that_latents_of_the_text2mask_do_not_make(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    coarse = save_coarse(tmp_path / "coarse")
    options = options_of(models, coarse)
    job = make_job(geometry={"size": [40, 24]}, methods={"masksyn": options}, plan=[PLAN])
    refused_here("plan", job, row="a Text2Mask whose latents stand for more pixels")


def test_a_list_of_captions_is_no_source_of_other_methods(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    store = caption_store(tmp_path, list(LAYOUTS))
    masksyn = options_of(models, models / "base")
    imgsyn = {name: masksyn[name] for name in ("base", "controls")}
    job = make_job(sources=str(store), methods={"masksyn": masksyn, "imgsyn": imgsyn}, plan=[PLAN])
    line = refused_here("plan", job, row="captions as sources of a method that starts from masks")
    assert "imgsyn starts from masks" in line
