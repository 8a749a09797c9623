"""Images and masks as a browser shows them: masks in the colours of their classes, both small and whole, as data URIs.

A picture that cannot be decoded becomes a sentence. It does not know samples, pages or files of a report.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image as PillowImage

from segdatagen.colours import ignore_colour_of
from segdatagen.images import PNG_SIGNATURE, DecodeError, Image, Mask, decode_image, decode_mask
from segdatagen.labels import IGNORE_CHANNEL, UNKNOWN_CHANNEL, LabelSet
from segdatagen.outlines import edge_colours

THUMBNAIL_SIDE = 160
"""Longer side of a small picture, in pixels. What is smaller is shown as it was stored."""
SOURCE_SIDE = 512
"""Longer side of a source's picture: it is there to compare with, at the size of its samples."""
WEBP_QUALITY = 80
MAX_PALETTE = 256


@dataclass(frozen=True)
class Layers:
    """An image and its painted mask as data URIs; None where there is none. `problem` says what cannot be decoded."""

    image: str | None = None
    mask: str | None = None
    problem: str | None = None


class MaskPainter:
    """Masks of ids as PNG in the colours of a label set.

    Ignored ids have the ignore colour, ids that the label set does not know that of outlines: neither is a class's.
    """

    def __init__(self, label_set: LabelSet) -> None:
        self.ignore_colour = ignore_colour_of(label_set)
        self.unknown_colour: tuple[int, ...] = tuple(map(int, edge_colours(label_set, 1)[0]))
        channels = label_set.channel_table().astype(np.int32)
        channels[channels == IGNORE_CHANNEL] = label_set.num_classes
        channels[channels == UNKNOWN_CHANNEL] = label_set.num_classes + 1
        self._colours = np.vstack([label_set.colours, [self.ignore_colour, self.unknown_colour]]).astype(np.uint8)
        self._indices = channels.astype(np.uint8 if len(self._colours) <= MAX_PALETTE else np.uint16)

    def paint(self, mask: Mask) -> bytes:
        """A PNG of the mask in colours, with a palette where the label set leaves room for one."""
        indices = self._indices[mask]
        if len(self._colours) <= MAX_PALETTE:
            picture = PillowImage.fromarray(indices)
            picture.putpalette(self._colours.tobytes())
        else:
            picture = PillowImage.fromarray(self._colours[indices])
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


def layers(image: bytes | None, mask: bytes | None, painter: MaskPainter, sides: Sequence[int | None]) -> list[Layers]:
    """A stored image and a stored mask for a browser, once for each of `sides`, decoded once.

    A side is the longest that a picture may have, in pixels; None leaves it as large as it is.
    """
    problems: list[str] = []
    shown: list[list[str | None]] = []
    for name, data, show in (("image", image, _show_image), ("mask", mask, _show_mask)):
        uris: list[str | None] = [None] * len(sides)
        try:
            if data is not None:
                uris = [*show(data, painter, sides)]
        except DecodeError as error:
            problems.append(f"the {name} cannot be decoded: {error}")
        shown.append(uris)
    problem = "; ".join(problems) or None
    return [Layers(picture, painted, problem) for picture, painted in zip(*shown, strict=True)]


def _show_image(data: bytes, painter: MaskPainter, sides: Sequence[int | None]) -> list[str]:
    pixels = decode_image(data)  # also where the stored bytes are shown: a browser shows half of what is damaged
    uris = []
    for side in sides:
        size = _reduced(pixels, side)
        if size is None:
            uris.append(data_uri(data))
            continue
        bgr = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
        succeeded, encoded = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
        if not succeeded:
            raise ValueError(f"cannot encode {bgr.dtype} of shape {bgr.shape} as WebP")
        uris.append(data_uri(encoded.tobytes()))
    return uris


def _show_mask(data: bytes, painter: MaskPainter, sides: Sequence[int | None]) -> list[str]:
    mask = decode_mask(data)
    sizes = [_reduced(mask, side) for side in sides]
    whole = [mask if size is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for size in sizes]
    return [data_uri(painter.paint(pixels)) for pixels in whole]


def _reduced(pixels: Image | Mask, side: int | None) -> tuple[int, int] | None:
    """Width and height that fit into `side`; None where the pixels do as they are."""
    height, width = pixels.shape[:2]
    if side is None or max(height, width) <= side:
        return None
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def data_uri(data: bytes) -> str:
    """Bytes of a PNG, JPEG or WebP as a URI that needs no request."""
    kind = "png" if data.startswith(PNG_SIGNATURE) else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
