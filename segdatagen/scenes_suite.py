"""The small suite of `scenes`: which weights it has, and how each method draws with them, in the words of a job file.

`demo` runs these methods and `bench scenes_suite` judges them. It loads nothing, and knows no run.
"""

from dataclasses import dataclass
from typing import Any

SIZE = 64
"""Width and height that the suite was trained at."""
SMALLEST_REGION = 16
"""Pixels of a region that CLIP is shown: a person of a scene has 20 to 60."""


@dataclass(frozen=True)
class SuiteWeights:
    """Where each model lies: shipped, unless a training of one's own is to be judged."""

    base: str = "builtin:scenes-base"
    text2mask: str = "builtin:scenes-text2mask"
    controlnet: str = "builtin:scenes-controlnet"
    t2i_adapter: str = "builtin:scenes-t2i-adapter"
    captioner: str = "builtin:scenes-captioner"
    clip: str = "builtin:scenes-clip"
    mask_ddpm: str = "builtin:scenes-mask-ddpm"
    segmenter: str = "builtin:scenes-segmenter"


SHIPPED = SuiteWeights()


def suite_methods(weights: SuiteWeights = SHIPPED) -> dict[str, dict[str, Any]]:
    """All five methods, as `methods` of a job file says them."""
    caption = {"kind": "blip2", "weights": weights.captioner, "batch_size": 8}
    layout = {"kind": "controlnet", "weights": weights.controlnet, "prior": {"name": "colour_map", "of": "mask"}}
    edges = {"kind": "t2i_adapter", "weights": weights.t2i_adapter, "prior": {"name": "canny"}}
    return {
        "mask_ddpm": {"weights": weights.mask_ddpm, "sampler": "ddim", "steps": 20, "guidance": 4.0},
        "imgsyn": {
            "base": weights.base,
            "controls": [layout],
            "caption": caption,
            "prompt": {"kind": "caption"},
            "sampler": {"scheduler": "dpm++2m", "steps": 20, "guidance": 2.0},
        },
        "masksyn": {
            "base": weights.base,
            "controls": [layout],
            "caption": caption,
            "prompt": {"kind": "caption"},
            "sampler": {"scheduler": "dpm++2m", "steps": 20, "guidance": 2.0},
            "text2mask": {
                "weights": weights.text2mask,
                "sampler": {"scheduler": "euler", "steps": 40, "guidance": 3.0},
            },
            "layout": {"redraws": 4, "speckle_pixels": 4},
        },
        "guided": {
            "base": weights.base,
            "controls": [edges],
            "caption": caption,
            "prompt": {"kind": "appended"},
            "sampler": {"scheduler": "dpm++2m", "steps": 20, "guidance": 2.0},
        },
        "inpaint": {
            "base": weights.base,
            "controls": [layout],
            "classes": ["car", "truck", "person", "bicycle", "traffic sign", "traffic light"],
            "caption": caption,
            "prompt": {"kind": "caption"},
            "sampler": {"scheduler": "dpm++2m", "steps": 20, "guidance": 2.0},
        },
    }
