"""The small suite of `scenes`: which weights it has, and how each method draws with them, in the words of a job file.

`demo` draws with all of them, `bench scenes_suite` judges what they draw. It loads nothing, and knows no run.
"""

from dataclasses import dataclass
from typing import Any

SIZE = 64
"""Width and height that the suite was trained at."""
GUIDANCE = 4.0
"""Towards prompt and picture: ControlNet and T2I-Adapter had few steps, and follow too little without it."""
SMALLEST_REGION = 16
"""Pixels of a region that CLIP is shown: a person of a scene has 20 to 60."""


@dataclass(frozen=True)
class SuiteWeights:
    """Where each model lies: with the package, or where a training left it."""

    base: str = "builtin:scenes-base"
    text2mask: str = "builtin:scenes-text2mask"
    controlnet: str = "builtin:scenes-controlnet"
    t2i_adapter: str = "builtin:scenes-t2i-adapter"
    captioner: str = "builtin:scenes-captioner"
    clip: str = "builtin:scenes-clip"
    mask_ddpm: str = "builtin:scenes-mask-ddpm"
    segmenter: str = "builtin:scenes-segmenter"


SHIPPED = SuiteWeights()


def trained_in(folder: str) -> SuiteWeights:
    """What `jobs/scenes_suite/all.sh` leaves in a folder. The judge stays the shipped one, so that figures compare."""
    return SuiteWeights(
        base=f"{folder}/scenes-base/weights",
        text2mask=f"{folder}/scenes-text2mask/weights",
        controlnet=f"{folder}/scenes-controlnet/weights",
        t2i_adapter=f"{folder}/scenes-t2i-adapter/weights",
        captioner=f"{folder}/scenes-captioner/weights",
        clip=f"{folder}/scenes-clip/weights",
        mask_ddpm=f"{folder}/scenes-mask-ddpm-3/weights",
    )


def suite_methods(weights: SuiteWeights = SHIPPED, image_steps: int = 20, mask_steps: int = 20) -> dict[str, Any]:
    """All five methods, as `methods` of a job file says them."""
    sampler = {"scheduler": "dpm++2m", "steps": image_steps, "guidance": GUIDANCE}
    caption = {"kind": "blip2", "weights": weights.captioner, "batch_size": 8}
    colour_map = {"name": "colour_map", "of": "mask", "outlines": False}  # as the ControlNet has seen them
    layout = {"kind": "controlnet", "weights": weights.controlnet, "guided": True, "prior": colour_map}
    edges = {"kind": "t2i_adapter", "weights": weights.t2i_adapter, "guided": True, "prior": {"name": "canny"}}
    mask2img = {
        "base": weights.base,
        "controls": [layout],
        "caption": caption,
        "prompt": {"kind": "caption"},
        "sampler": sampler,
    }
    return {
        "mask_ddpm": {"weights": weights.mask_ddpm, "sampler": "ddim", "steps": image_steps, "guidance": 4.0},
        "imgsyn": mask2img,
        "masksyn": {
            **mask2img,
            "text2mask": {
                "weights": weights.text2mask,
                "sampler": {"scheduler": "dpm++2m", "steps": mask_steps, "guidance": 2.0},
            },
            "layout": {"redraws": 4, "speckle_pixels": 4},
        },
        "guided": {**mask2img, "controls": [edges], "prompt": {"kind": "appended"}},
        "inpaint": {
            **mask2img,
            "classes": ["car", "truck", "person", "bicycle", "traffic sign", "traffic light"],
        },
    }
