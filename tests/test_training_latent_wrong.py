"""What trainings of latent diffusion say of wrong input, and the configurations that are shipped."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Refused
from diffusers import UNet2DConditionModel
from tiny_latent import save_coarse
from tiny_latent_training import NETWORK, TUNED, base_fields, fields, write

from segdatagen.config_files import read_config
from segdatagen.labels import load_label_set
from segdatagen.training.run import kind_type


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_captions(store: Path) -> None:
    for path in store.glob("*.parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index("caption")
        pq.write_table(table.set_column(place, table.schema.field(place), pa.nulls(len(table), pa.string())), path)


def change_unet(folder: Path, **changes: Any) -> None:
    """Put another one there, which nobody trained."""
    UNet2DConditionModel.from_config(dict(UNet2DConditionModel.load_config(folder)) | changes).save_pretrained(folder)


@pytest.fixture
def wrong(tmp_path: Path, latent_store: Path, latent_base: Path, latent_vae: Path) -> dict[str, str]:
    """Copies of stores and weights, each with one thing wrong."""
    names = (
        "captionless",
        "other",
        "inpainter",
        "attentive",
        "painter",
        "rotated",
        "velocity",
        "noise_alone",
        "other_vae",
        "coarse",
        "text2mask",
    )
    made = {name: tmp_path / name for name in names}
    for name in ("captionless", "other"):
        shutil.copytree(latent_store, made[name])
    for name in ("inpainter", "attentive", "painter", "rotated", "velocity", "noise_alone", "text2mask"):
        shutil.copytree(latent_base, made[name])
    shutil.copytree(latent_vae, made["other_vae"])
    save_coarse(made["coarse"])
    without_captions(made["captionless"])
    labels = made["other"] / "labels.yaml"
    labels.write_text(labels.read_text().replace("name: car,", "name: automobile,"))
    change_unet(made["inpainter"] / "unet", in_channels=9)
    change_unet(made["attentive"] / "unet", down_block_types=["CrossAttnDownBlock2D"] * 2)
    edit_json(made["velocity"] / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    edit_json(made["noise_alone"] / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    edit_json(made["painter"] / "training.json", classes=["sea", "sky"], label_set="coast")
    colours = [label.colour for label in load_label_set("scenes").classes]
    edit_json(made["rotated"] / "training.json", colours=[*colours[1:], colours[0]])
    edit_json(made["text2mask"] / "training.json", kind="text2mask")
    edit_json(made["other_vae"] / "config.json", _class_name="VQModel")
    made["coarse/vae"] = made["coarse"] / "vae"
    return {name: str(path) for name, path in made.items()} | {"base": str(latent_base), "store": str(latent_store)}


COARSE = {"base": "coarse", "size": [40, 32]}
LORA_AND_TEXT = {"lora": {"rank": 2}, "train_text_encoders": True}
OF_IMAGE = {"prior": {"name": "canny", "of": "image"}}
Changes = dict[str, Any]


@pytest.mark.parametrize(
    ("row", "kind", "changes"),
    [
        ("`train base` on sources without captions", "base", {"sources": "captionless"}),
        ("`train controlnet` on sources without captions", "controlnet", {"sources": "captionless"}),
        ("`train base` with `prompts: [template]`", "base", {"prompts": ["template"]}),
        ("`train vae` with options of `base`", "vae", {"lora": {"rank": 2}, "prompts": ["simple"]}),
        ("`train vae` with fewer sources than a batch", "vae", {"batch_size": 8}),
        ("`train base` with fewer sources than a batch", "base", {"batch_size": 8}),
        ("`train base` with neither `network` nor `init_weights`", "base", {"network": None}),
        ("`train base` with a VAE that is none", "base", {"network": NETWORK | {"vae": "other_vae"}}),
        ("`train text2mask` with a base that was made to inpaint", "text2mask", {"base": "inpainter"}),
        ("`train text2mask` with a VAE as the base", "text2mask", {"base": "other_vae"}),
        ("`train text2mask` on from one of other classes", "text2mask", {"init_weights": "painter"}),
        ("`train text2mask` on from one of other colours", "text2mask", {"init_weights": "rotated"}),
        ("`train text2mask` on from what is no Text2Mask", "text2mask", {"init_weights": "base"}),
        ("`train base` on from a Text2Mask", "base", {"init_weights": "text2mask", "network": None}),
        ("`train controlnet` beside a Text2Mask", "controlnet", {"base": "text2mask"}),
        ("`train vae` on from one of other sizes", "vae", {"init_weights": "coarse/vae"}),
        ("`train vae` on from a base", "vae", {"init_weights": "base"}),
        ("`train text2mask` with LoRA of a rank beyond its layers", "text2mask", {"lora": {"rank": 100000}}),
        (
            "`train text2mask` with LoRA and text encoders",
            "text2mask",
            LORA_AND_TEXT,
        ),
        ("`train controlnet` with a base of `v_prediction`", "controlnet", {"base": "velocity"}),
        ("`train controlnet` with a base of zero terminal SNR", "controlnet", {"base": "noise_alone"}),
        ("`train base` into the store of its sources", "base", {"out": "store"}),
        ("`train t2i_adapter` with a base of another architecture", "t2i_adapter", {"base": "attentive"}),
        ("`train t2i_adapter` with a prior of masks alone", "t2i_adapter", {"prior": {"name": "colour_map"}}),
        (
            "`train t2i_adapter` with a prior of the image alone",
            "t2i_adapter",
            OF_IMAGE,
        ),
        ("`train t2i_adapter` with `w1: [1, 0]`", "t2i_adapter", {"w1": [1, 0]}),
        ("`train vae` with a validation store of other labels", "vae", {"validation": "other"}),
        ("`train controlnet` with a validation store of other labels", "controlnet", {"validation": "other"}),
        ("`train text2mask` with its sources as validation", "text2mask", {"validation": "captionless"}),
        ("`train t2i_adapter` of a size that it does not divide", "t2i_adapter", COARSE | {"size": [48, 32]}),
        (
            "`train controlnet` of a size that a latent does not divide",
            "controlnet",
            COARSE,
        ),
        ("`train vae` with an encoder that is new and frozen", "vae", {"freeze_encoder": True}),
    ],
)
def test_wrong_training(
    refused_here: Refused,
    wrong: dict[str, str],
    latent_vae: Path,
    tmp_path: Path,
    row: str,
    kind: str,
    changes: dict[str, Any],
) -> None:
    plain = {
        "base": base_fields(Path(wrong["store"]), tmp_path / "out", latent_vae),
        "vae": fields(Path(wrong["store"]), tmp_path / "out", block_channels=[8, 16], norm_groups=4),
    }
    found = plain.get(kind, fields(Path(wrong["store"]), tmp_path / "out", base=wrong["base"], **TUNED.get(kind, {})))
    if kind == "vae":
        found = {name: value for name, value in found.items() if name not in ("sampler", "sample_rows")}

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(one) for name, one in value.items()}
        return wrong.get(value, value) if isinstance(value, str) else value

    config = write(tmp_path, "train", found | placed(changes))
    refused_here("train", kind, config, "--local", row=row)


def test_gpus_that_the_cluster_has_not_are_not_waited_for(
    refused_on_ray: Refused, latent_store: Path, latent_base: Path, tmp_path: Path
) -> None:
    """Before the caches, whose tasks would wait for ever."""
    found = fields(latent_store, tmp_path / "out", base=str(latent_base), cache=str(tmp_path / "cache"), use_gpu=True)
    row = "`train controlnet` with `use_gpu: true` on a cluster without a GPU"
    refused_on_ray("train", "controlnet", write(tmp_path, "train", found), row=row)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "jobs").glob("*/*.yaml")), ids=str)
def test_shipped_configurations_of_trainings_can_be_read(path: Path) -> None:
    told = path.read_text()
    found = re.search(rf"segdatagen train (\w+) \S*{path.parent.name}/{path.name}", told)
    if found is None:
        is_other = re.search(r"^(methods|real):", told, re.MULTILINE)  # a job, or an experiment
        assert is_other or "steps:" not in told
        return
    options = read_config(kind_type(found[1]).options_type, str(path))
    assert options.batch_size % (options.num_workers * options.accumulate) == 0
