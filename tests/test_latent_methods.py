"""Methods of latent diffusion from job files: on real Ray with small networks, and what does not go together."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZE, JobFactory, Refused, make_scenes_store
from kept_events import Events
from safetensors.torch import load_file, save_file
from tiny_captioner import save_blip2
from tiny_clip import make_clip
from tiny_latent import make_adapter, save_coarse, save_models

from segdatagen.cli import main
from segdatagen.colours import encode
from segdatagen.driver import RunOptions
from segdatagen.images import decode_image, decode_mask
from segdatagen.job import Job, load_job
from segdatagen.labels import load_label_set
from segdatagen.method_context import method_contexts
from segdatagen.method_options import Methods
from segdatagen.methods import build_chain, content_recipes, stages_of
from segdatagen.regenerate import regenerate
from segdatagen.run import run_job
from segdatagen.run_folder import open_run
from segdatagen.samples import read_ledger
from segdatagen.sources import open_store
from segdatagen.tables import read_part

COLOUR_MAP = {"name": "colour_map", "of": "mask"}
CANNY = {"name": "canny"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, one that was made to inpaint, a ControlNet and a T2I-Adapter."""
    return save_models(tmp_path_factory.mktemp("latent"))


def options_of(models: Path, method: str, **more: Any) -> dict[str, Any]:
    """What a job file says of a method."""
    controls = {
        "imgsyn": [{"kind": "controlnet", "weights": str(models / "controlnet"), "prior": COLOUR_MAP}],
        "guided": [{"kind": "t2i_adapter", "weights": str(models / "adapter"), "prior": CANNY}],
        "inpaint": [],
    }[method]
    sampler = {"scheduler": "euler", "steps": 2, "guidance": 3.0}
    return {"base": str(models / "base"), "controls": controls, "sampler": sampler} | more


def plan_of(*methods: str) -> list[dict[str, Any]]:
    return [{"method": name, "strategy": "uniform", "per_source": 2} for name in methods]


def rows_of(job: Job) -> list[dict[str, Any]]:
    folder = open_run(job.uri).folder
    rows = [row for part in read_ledger(folder).parts for row in read_part(folder, part.name).to_pylist()]
    return sorted(rows, key=lambda row: row["sample_id"])


def test_every_latent_method_runs_beside_the_mask_ddpm(
    ray_session: None, make_job: JobFactory, models: Path, scenes_weights: Path, scenes_store: Path
) -> None:
    """One job file, four methods; what is stored says what each row was told, and one row can be made again."""
    latent = {name: options_of(models, name) for name in ("imgsyn", "guided", "inpaint")}
    mask_ddpm = {"weights": str(scenes_weights), "steps": 2}
    plan = plan_of("imgsyn", "guided", "inpaint", "mask_ddpm")
    output = {"root": str(models / "runs"), "image_format": "png"}
    job = load_job(str(make_job(methods={**latent, "mask_ddpm": mask_ddpm}, plan=plan, output=output)))
    outcome = run_job(job, RunOptions(), Events())
    assert outcome.counts == {"ok": 48, "rejected": 0, "failed": 0}
    rows = rows_of(job)
    assert {row["method"] for row in rows} == {"imgsyn", "guided", "inpaint", "mask_ddpm"}
    sources = {row["source_id"]: row for row in open_store(str(scenes_store)).index.to_pylist()}
    names = dict(zip(load_label_set("scenes").ids.tolist(), load_label_set("scenes").names, strict=True))
    for row in rows:
        image, mask = decode_image(row["image"]), decode_mask(row["mask"])
        assert image.shape[:2] == mask.shape == (SIZE, SIZE)
        assert row["source_id"] in sources
        if row["method"] == "mask_ddpm":
            assert (row["prompt"], row["caption_from"]) == (None, None)
            continue
        assert row["caption_from"] == "classes"
        assert all(names[id_] in row["prompt"] for id_ in row["class_ids"])
    assert len({row["image_hash"] for row in rows}) == 48
    chosen = next(row for row in rows if row["method"] == "guided")
    again = regenerate(open_run(job.uri), chosen["sample_id"], str(models / "again"))
    assert again.identical


def test_a_captioner_and_several_controls(make_job: JobFactory, models: Path, tmp_path: Path) -> None:
    """Without Ray: captions of the data set, a template, an adapter and a ControlNet with priors of their own."""
    store = make_scenes_store(tmp_path / "store", num_scenes=2)
    options = options_of(
        models,
        "guided",
        controls=[
            {"kind": "t2i_adapter", "weights": str(models / "adapter"), "prior": CANNY, "scale": 0.8},
            {"kind": "controlnet", "weights": str(models / "controlnet"), "prior": COLOUR_MAP, "end": 0.5},
        ],
        caption={"kind": "data_set"},
        prompt={"negative": "blurry", "variations": {"weather": ["in rain", "in sunshine"]}},
    )
    job = load_job(str(make_job(sources=str(store), methods={"guided": options}, plan=plan_of("guided"))))
    context = method_contexts(job, open_store(str(store)).label_set)["guided"]
    chain = build_chain("guided", context)
    assert [stage.name for stage in chain.stages] == ["load", "caption", "prior", "prior", "prompt", "mask2img"]
    index = open_store(str(store)).index.to_pylist()
    plan = [
        {
            "sample_id": 10 * number + variant,
            "round": 0,
            "method": "guided",
            "source_id": row["source_id"],
            "source_file": row["source_file"],
            "source_row": row["source_row"],
            "variant": variant,
            "seed": 100 * number + variant,
        }
        for number, row in enumerate(index)
        for variant in (1, 2)
    ]
    import pyarrow as pa

    found = chain.run(pa.Table.from_pylist(plan), 1).to_pylist()
    assert [row["status"] for row in found] == ["ok"] * 4, found[0]["reason"]
    assert {row["caption_from"] for row in found} == {"data set"}
    assert {row["negative_prompt"] for row in found} == {"blurry"}
    assert all(("in rain" in row["prompt"]) != ("in sunshine" in row["prompt"]) for row in found)


def test_imgsyn_sees_the_colour_map_of_the_mask(make_job: JobFactory, models: Path, scenes_store: Path) -> None:
    job = load_job(str(make_job(methods={"imgsyn": options_of(models, "imgsyn")}, plan=plan_of("imgsyn"))))
    label_set = open_store(str(scenes_store)).label_set
    chain = build_chain("imgsyn", method_contexts(job, label_set)["imgsyn"])
    load, _, prior = chain.stages[:3]
    row = open_store(str(scenes_store)).index.to_pylist()[0]
    loaded = load({"source_file": np.array([row["source_file"]]), "source_row": np.array([row["source_row"]])})
    assert "source_image" not in loaded, "an image that nobody looks at is not read"
    drawn = prior({"mask": loaded["mask"], "source_id": np.array(["a"]), "source_image": np.array([None])})["prior"][0]
    np.testing.assert_array_equal(decode_image(drawn), encode(decode_mask(loaded["mask"][0]), label_set))


def test_content_is_every_option_with_weights_by_their_bytes(
    make_job: JobFactory, models: Path, scenes_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe from everywhere, another one for every option; `run.json` holds absolute paths."""
    store = open_store(str(scenes_store))

    def recipe(**more: Any) -> str:
        options = options_of(models, "guided", **more)
        job = load_job(str(make_job(methods={"guided": options}, plan=plan_of("guided"))))
        return json.dumps(content_recipes(job, store)["guided"], sort_keys=True)

    plain = recipe()
    assert str(models) not in plain
    for change in (
        {"prompt": {"kind": "simple"}},
        {"sampler": {"steps": 3}},
        {"numerics": {"channels_last": True}},
        {"caption": {"kind": "data_set"}},
        {"base": str(models / "inpainter")},
    ):
        assert recipe(**change) != plain
    monkeypatch.chdir(models)
    options = options_of(Path(), "guided")
    job = load_job(str(make_job(methods={"guided": options}, plan=plan_of("guided"))))
    assert json.dumps(content_recipes(job, store)["guided"], sort_keys=True) == plain
    stored = job.from_anywhere().methods.guided
    assert stored is not None
    assert (stored.base, stored.controls[0].weights) == (str(models / "base"), str(models / "adapter"))
    assert Methods.model_validate(job.from_anywhere().methods.model_dump(mode="json")) == job.from_anywhere().methods


def test_compiled_code_is_kept_in_the_run(
    make_job: JobFactory, models: Path, scenes_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an actor is built with, but for the networks."""
    found = []
    monkeypatch.setattr("segdatagen.stages.latent.LatentStage", lambda options, best_of: found.append(options))
    options = options_of(models, "guided", numerics={"compile": True})
    job = load_job(str(make_job(methods={"guided": options}, plan=plan_of("guided"))))
    context = method_contexts(job, open_store(str(scenes_store)).label_set)["guided"]
    stages_of("guided", context)[-1].build()
    assert found[0].compiled_code == f"{job.uri}/work/compiled"
    assert found[0].numerics.compile


# What does not go together


@pytest.mark.parametrize(
    ("row", "method", "changes"),
    [
        ("`imgsyn` without a control", "imgsyn", {"controls": []}),
        ("`imgsyn` with the prior `canny`", "imgsyn", {"prior": CANNY}),
        ("`guided` without a control", "guided", {"controls": []}),
        ("`inpaint` with a T2I-Adapter", "inpaint", {"adapter": True}),
        ("`inpaint` with `classes: [tram]`", "inpaint", {"classes": ["tram"]}),
        ("`sampler: {scheduler: heun}`", "guided", {"sampler": {"scheduler": "heun"}}),
        ("a base that is not there", "guided", {"base": "{nowhere}"}),
        ("a T2I-Adapter as the base", "guided", {"base": "{adapter}"}),
        ("a base that was made to inpaint, for `guided`", "guided", {"base": "{inpainter}"}),
        ("a ControlNet as T2I-Adapter", "guided", {"weights": "{controlnet}"}),
        ("`prior: {name: line_art}` without weights", "guided", {"prior": {"name": "line_art"}}),
        ("`prior: {name: oil}`", "guided", {"prior": {"name": "oil"}}),
        ("a prompt template with an unknown field", "guided", {"prompt": {"kind": "template", "template": "a {mood}"}}),
        ("`caption: {kind: blip2}` without weights", "guided", {"caption": {"kind": "blip2"}}),
        (
            "a negative prompt that no text encoder sees whole",
            "guided",
            {"prompt": {"negative": "ugly " * 99 + "ugly"}},
        ),
        ("a T2I-Adapter as VAE", "guided", {"numerics": {"vae": "{adapter}"}}),
    ],
)
def test_what_does_not_go_together_costs_a_line(
    refused_here: Refused, make_job: JobFactory, models: Path, row: str, method: str, changes: dict[str, Any]
) -> None:
    options = options_of(models, method)
    changes = json.loads(re.sub(r'"{(\w+)}"', rf'"{models}/\1"', json.dumps(changes)))
    for name in ("prior", "weights"):
        if name in changes:
            options["controls"][0][name] = changes.pop(name)
    if changes.pop("adapter", False):
        options["controls"] = options_of(models, "guided")["controls"]
    refused_here("plan", make_job(methods={method: options | changes}, plan=plan_of(method)), row=row)


@pytest.mark.parametrize(
    ("row", "method", "changes"),
    [
        ("a control with `scale: 0`", "imgsyn", {"scale": 0}),
        ("a T2I-Adapter with `end: 0.01`", "guided", {"end": 0.01}),
        ("a ControlNet between two steps", "imgsyn", {"start": 0.1, "end": 0.2}),
        ("a guided control with `sampler: {guidance: 1}`", "imgsyn", {"guided": True, "sampler": {"guidance": 1}}),
        ("a prior with `w1: 0, w2: 0`", "guided", {"prior": {**CANNY, "w1": 0, "w2": 0}}),
    ],
)
def test_a_control_that_never_works_is_refused(
    refused_here: Refused, make_job: JobFactory, models: Path, row: str, method: str, changes: dict[str, Any]
) -> None:
    """Its images would be stored with masks that nothing made them follow."""
    options = options_of(models, method)
    options["controls"][0] |= {name: value for name, value in changes.items() if name != "sampler"}
    options["sampler"] = changes.get("sampler", options["sampler"])
    refused_here("plan", make_job(methods={method: options}, plan=plan_of(method)), row=row)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("`sampler: {preset: seggen}`", {"sampler": {"preset": "seggen"}}),
        ("`step_cache: {every: 0}`", {"sampler": {"step_cache": {"every": 0}}}),
        (
            "`step_cache` with `compile: true`",
            {"sampler": {"step_cache": {"every": 2}}, "numerics": {"compile": True}},
        ),
        ("`float8_weights` with `compile: true`", {"numerics": {"float8_weights": True, "compile": True}}),
        ("`attention: fast`", {"numerics": {"attention": "fast"}}),
        ("`attention: cudnn` on a CPU", {"numerics": {"attention": "cudnn"}}),
        ("`attention: flash` on a GPU with float32", {"numerics": {"attention": "flash"}}),
    ],
)
def test_options_that_do_not_go_together(
    refused_here: Refused, make_job: JobFactory, models: Path, row: str, changes: dict[str, Any]
) -> None:
    options = options_of(models, "guided", **changes)
    execution = {"gpus_per_actor": int("on a GPU" in row)}
    refused_here("plan", make_job(methods={"guided": options}, plan=plan_of("guided"), execution=execution), row=row)


def test_networks_that_are_not_whole(refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "base", tmp_path / "cut")
    path = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    options = options_of(models, "imgsyn")
    job = make_job(methods={"imgsyn": options | {"base": str(tmp_path / "cut")}}, plan=plan_of("imgsyn"))
    refused_here("plan", job, row="a base that is cut off")
    shutil.rmtree(tmp_path / "cut" / "scheduler")
    refused_here("plan", job, row="a base without a scheduler")
    config = tmp_path / "cut" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": [64, 64]}))
    shutil.copytree(models / "base" / "scheduler", tmp_path / "cut" / "scheduler")
    refused_here("plan", job, row="a base whose blocks see text of several widths")
    shutil.copytree(models / "controlnet", tmp_path / "controlnet")
    path = tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    save_file(tensors, path)
    options["controls"][0]["weights"] = str(tmp_path / "controlnet")
    job = make_job(methods={"imgsyn": options}, plan=plan_of("imgsyn"))
    refused_here("plan", job, row="a ControlNet that lacks tensors")


def test_folders_whose_configs_are_not_whole(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    base, adapter = (shutil.copytree(models / name, tmp_path / name) for name in ("base", "adapter"))
    options = options_of(models, "guided", base=str(base))
    job = make_job(methods={"guided": options}, plan=plan_of("guided"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    refused_here("plan", job, row="a base without a text encoder")
    of_sd15 = {name: part for name, part in index.items() if name not in ("text_encoder_2", "tokenizer_2", "vae")}
    (base / "model_index.json").write_text(json.dumps(of_sd15))
    refused_here("plan", job, row="a base of SD 1.5 without a VAE")
    config = json.loads((adapter / "config.json").read_text())
    (adapter / "config.json").write_text(json.dumps(config | {"channels": ["a"]}))
    options = options_of(models, "guided")
    options["controls"][0]["weights"] = str(adapter)
    job = make_job(methods={"guided": options}, plan=plan_of("guided"))
    refused_here("plan", job, row="a T2I-Adapter whose channels are no numbers")


def test_captioners_that_cannot_be_loaded(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    """Before a run: an actor would find it after minutes."""
    folder = make_clip(tmp_path / "captioner")
    caption = {"kind": "model", "weights": str(folder)}
    job = make_job(methods={"guided": options_of(models, "guided", caption=caption)}, plan=plan_of("guided"))
    refused_here("plan", job, row="a CLIP model as captioner")
    shutil.rmtree(folder)
    path = save_blip2(folder) / "model.safetensors"
    tensors = load_file(path)
    del tensors["query_tokens"]
    save_file(tensors, path, metadata={"format": "pt"})
    refused_here("plan", job, row="a captioner that lacks a tensor")


def test_an_adapter_that_takes_more_pixels_at_once(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    save_coarse(tmp_path / "base", levels=4)
    make_adapter(downscale_factor=16).save_pretrained(tmp_path / "adapter")
    control = {"kind": "t2i_adapter", "weights": str(tmp_path / "adapter"), "prior": CANNY}
    options = options_of(models, "guided", base=str(tmp_path / "base"), controls=[control])

    def job(width: int, base: Path) -> Path:
        changes = {"methods": {"guided": options | {"base": str(base)}}, "plan": plan_of("guided")}
        return make_job(geometry={"size": [width, 32]}, **changes)

    refused_here("plan", job(40, tmp_path / "base"), row="a size that the T2I-Adapter does not divide")
    refused_here("plan", job(32, models / "base"), row="a T2I-Adapter of a base with other latents")
    assert main(["plan", str(job(48, tmp_path / "base")), "--dry-run"]) == 0


def test_a_t2i_adapter_of_another_family(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    make_adapter(adapter_type="full_adapter").save_pretrained(tmp_path / "adapter")
    control = {"kind": "t2i_adapter", "weights": str(tmp_path / "adapter"), "prior": CANNY}
    job = make_job(methods={"guided": options_of(models, "guided", controls=[control])}, plan=plan_of("guided"))
    refused_here("plan", job, row="a T2I-Adapter of SD 1.5 for a base of SDXL")


def test_compiling_needs_a_compiler(
    refused_here: Refused, make_job: JobFactory, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    job = make_job(methods={"guided": options_of(models, "guided", numerics={"compile": True})}, plan=plan_of("guided"))
    refused_here("plan", job, row="`compile: true` without a C++ compiler")


def test_sources_without_images_are_refused_where_one_is_looked_at(
    refused_here: Refused, make_job: JobFactory, models: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = make_scenes_store(tmp_path / "store")
    path = store / "part-00000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("image")
    without = table.set_column(place, table.schema.field("image"), pa.nulls(table.num_rows, pa.large_binary()))
    pq.write_table(without, path, row_group_size=8)
    for method in ("guided", "inpaint"):
        job = make_job(sources=str(store), methods={method: options_of(models, method)}, plan=plan_of(method))
        refused_here("plan", job, row="sources without images, for a method that looks at them")
