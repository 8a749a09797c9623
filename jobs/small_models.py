"""Small random models of the production classes, in the layout of the published ones.

`python jobs/small_models.py FOLDER` writes them for the tiny jobs beside this file, which show that a job runs; what
they draw is noise. They are those of the tests: SDXL's form with 0.3 M parameters, a ControlNet, a T2I-Adapter,
BLIP-2, CLIP and the line art network.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of processors while it is imported
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny_captioner import save_blip2
from tiny_clip import make_clip
from tiny_latent import make_adapter, make_controlnet, make_pipeline, save_pipeline

from segdatagen.network_tensors import quiet_diffusers
from segdatagen.priors.line_art import LineArt
from segdatagen.transformers_tensors import quiet


def make_small_models(folder: Path) -> None:
    """Write them all below `folder`: the same weights every time."""
    save_pipeline(folder / "base")
    save_pipeline(folder / "text2mask")
    save_blip2(folder / "captioner")
    make_clip(folder / "clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make_controlnet(make_pipeline().unet).save_pretrained(folder / "controlnet")
        make_adapter().save_pretrained(folder / "t2i_adapter")
        save_file(LineArt().state_dict(), folder / "line_art.safetensors")


if __name__ == "__main__":
    with quiet(), quiet_diffusers():
        make_small_models(Path(sys.argv[1]))
