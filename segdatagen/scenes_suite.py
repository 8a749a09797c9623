"""The small suite of `scenes`: which weights it has, and how each method draws with them, in the words of a job file.

`bench scenes_suite` judges what they draw. It loads nothing, and knows no run.
"""

from dataclasses import dataclass
from typing import Any

SIZE = 64
"""Width and height that the suite was trained at."""
SMALLEST_REGION = 16
"""Pixels of a region that CLIP is shown: a person of a scene has 20 to 60."""


@dataclass(frozen=True)
class SuiteWeights:
    """Where each model lies: where jobs/scenes_suite/all.sh leaves it, unless it is shipped."""

    base: str = "out/train/scenes-base/weights"
    text2mask: str = "out/train/scenes-text2mask/weights"
    controlnet: str = "out/train/scenes-controlnet/weights"
    t2i_adapter: str = "out/train/scenes-t2i-adapter/weights"
    captioner: str = "out/train/scenes-captioner/weights"
    clip: str = "out/train/scenes-clip/weights"
    mask_ddpm: str = "builtin:scenes-mask-ddpm"
    segmenter: str = "builtin:scenes-segmenter"


TRAINED = SuiteWeights()


def suite_methods(weights: SuiteWeights = TRAINED, image_steps: int = 20, mask_steps: int = 40) -> dict[str, Any]:
    """All five methods, as `methods` of a job file says them."""
    sampler = {"scheduler": "dpm++2m", "steps": image_steps, "guidance": 2.0}
    caption = {"kind": "blip2", "weights": weights.captioner, "batch_size": 8}
    layout = {"kind": "controlnet", "weights": weights.controlnet, "prior": {"name": "colour_map", "of": "mask"}}
    edges = {"kind": "t2i_adapter", "weights": weights.t2i_adapter, "prior": {"name": "canny"}}
    after_layout = {
        "base": weights.base,
        "controls": [layout],
        "caption": caption,
        "prompt": {"kind": "caption"},
        "sampler": sampler,
    }
    return {
        "mask_ddpm": {"weights": weights.mask_ddpm, "sampler": "ddim", "steps": image_steps, "guidance": 4.0},
        "imgsyn": after_layout,
        "masksyn": {
            **after_layout,
            "text2mask": {
                "weights": weights.text2mask,
                "sampler": {"scheduler": "euler", "steps": mask_steps, "guidance": 3.0},
            },
            "layout": {"redraws": 4, "speckle_pixels": 4},
        },
        "guided": {**after_layout, "controls": [edges], "prompt": {"kind": "appended"}},
        "inpaint": {
            **after_layout,
            "classes": ["car", "truck", "person", "bicycle", "traffic sign", "traffic light"],
        },
    }
