"""Masks as paper 001 keeps them: RGB in the colours of a colour book, beside the `colormap.json` that names them.

    python jobs/folder_mask_ddpm/make_masks.py out/folder/masks 12 64x64

Draws the layouts of the procedural `scenes`, without their images. It does not know what will be made of them.
"""

import json
import sys

import numpy as np

from segdatagen.datasets.scenes import make_scene, scene_seed
from segdatagen.images import encode_image
from segdatagen.labels import load_label_set
from segdatagen.storage import Folder


def colour_of(channel: int) -> list[int]:
    """Colour of a class in the authors' colour book."""
    return [(123 * channel + 7) % 256, (456 * channel + 8) % 256, (789 * channel + 9) % 256]


def main(out: str, count: int, width: int, height: int) -> None:
    """Write `scene_000.png` and so on, and `colormap.json`."""
    names = load_label_set("scenes").names
    colours = {name: colour_of(channel) for channel, name in enumerate(names)}
    palette = np.array(list(colours.values()), np.uint8)
    folder = Folder(out)
    for number in range(count):
        mask = make_scene(scene_seed("test", number), width, height).mask
        folder.put(f"scene_{number:03d}.png", encode_image(palette[mask], "png"))
    folder.put("colormap.json", json.dumps(colours, indent=1).encode())
    print(f"{out}: {count} masks of {width} x {height} in {len(names)} colours")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3].split("x")))
