"""The colour codec of SegGen, appendix A.2: masks of class ids to RGB colour maps and back.

Encoding is a look-up by id, decoding is the nearest colour of the label set. `quality_of` says how far a generated
colour map is from being one, `unknown_colours` lists what an exact one may not hold, and `colour_book` draws the
palette. This module does not know what made a colour map, nor how one is compressed or stored.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from segdatagen.errors import UsageError
from segdatagen.images import Mask
from segdatagen.labels import MAX_ID, LabelSet

ColourMap = np.ndarray
"""uint8 H x W x 3, RGB: a colour stands for a class."""
Colour = tuple[int, int, int]
"""RGB, 0 to 255 each."""

DISTANCE_EDGES = (0.0, 1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 442.0)
"""Edges of `MaskQuality.distance_histogram`: RGB distances to the nearest class colour; black to white is 441.7."""
FAR_DISTANCE = 32.0
"""A pixel further than this from every class colour counts as far: noise of 8 per channel reaches it in 0.02 %."""
SPECKLE_PIXELS = 16
"""A connected region of fewer pixels of one class is speckle."""

_CELL = 16  # Edge of the cells of the RGB cube: of 8, 16 and 32 the fastest to build with 150 colours (0.2 s).
_STRIP = 1 << 16  # Pixels decoded at a time: their 64-bit indices stay in the cache, twice as fast as a whole image.
_UNKNOWN_CODE = np.uint32(1 << 24)  # A code above every packed colour.


def ignore_colour_of(label_set: LabelSet) -> Colour:
    """The colour of ignored pixels: black, or where a class has it the grid colour furthest from every class."""
    black = (0, 0, 0)
    return furthest_colour(label_set.colours) if black in map(tuple, label_set.colours.tolist()) else black


def furthest_colour(colours: np.ndarray) -> Colour:
    """Of a 9 x 9 x 9 grid over the RGB cube, the colour furthest from all of uint8 [N, 3]; the first of equals.

    Raises UsageError where the colours fill the whole grid.
    """
    steps = np.append(np.arange(0, 256, 32), 255)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.full(len(grid), np.iinfo(np.int64).max)
    for colour in colours.astype(np.int64):
        nearest = np.minimum(nearest, ((grid - colour) ** 2).sum(axis=1))
    if nearest.max() == 0:
        raise UsageError("the label set leaves no colour free for ignored pixels; change a class colour")
    red, green, blue = grid[nearest.argmax()].tolist()
    return red, green, blue


def encode(mask: Mask, label_set: LabelSet, ignore_colour: Colour | None = None) -> ColourMap:
    """Colour map uint8 [H, W, 3] of a mask of ids, by look-up (SegGen A.2, mask to colour).

    Ignored pixels get `ignore_colour`, by default that of `ignore_colour_of`. Raises UsageError for an id that the
    label set does not know, and for an ignore colour that is a class's.
    """
    if mask.dtype not in (np.uint8, np.uint16) or mask.ndim != 2:
        raise ValueError(f"a mask is uint8 or uint16 of two dimensions, not {mask.dtype} of shape {mask.shape}")
    codes = np.full(MAX_ID + 1, _UNKNOWN_CODE, dtype=np.uint32)
    if label_set.ignore_ids:
        ignored = ignore_colour or ignore_colour_of(label_set)
        if ignored in map(tuple, label_set.colours.tolist()):
            raise UsageError(f"ignore colour {ignored} is that of a class of label set {label_set.name}; give another")
        codes[list(label_set.ignore_ids)] = packed(np.array([[ignored]], dtype=np.uint8))
    codes[label_set.ids] = packed(label_set.colours[None])
    picked = np.take(codes, mask)
    if picked.size and picked.max() >= _UNKNOWN_CODE:
        unknown = np.unique(mask[picked >= _UNKNOWN_CODE]).tolist()
        raise UsageError(
            f"the mask holds ids {unknown[:10]} that label set {label_set.name} does not know; "
            "correct the mask or add them to classes or ignore_ids"
        )
    # Little-endian: the bytes of a code are red, green, blue, zero.
    return np.ascontiguousarray(picked.astype("<u4", copy=False).view(np.uint8).reshape(*mask.shape, 4)[..., :3])


class ColourDecoder:
    """Colour maps to masks by the nearest colour (SegGen A.2, colour to mask), exactly, by a table of the RGB cube.

    Euclidean distance in RGB; of equally near colours that of the lowest channel. With `with_ignore` the ignore colour
    is one more colour, after all classes, that decodes to the first ignore id. The table has 16 MB (32 with ids past
    255) and takes 0.2 s for 150 colours; the last two are kept, so that a second decoder of one label set is free.
    """

    def __init__(self, label_set: LabelSet, with_ignore: bool = False):
        if with_ignore and not label_set.ignore_ids:
            raise UsageError(f"label set {label_set.name} ignores no id; decode its colour maps without with_ignore")
        self.label_set = label_set
        self.colours = label_set.colours
        self.ids = label_set.ids
        if with_ignore:
            self.colours = np.vstack([self.colours, np.array([ignore_colour_of(label_set)], dtype=np.uint8)])
            self.ids = np.append(self.ids, label_set.ignore_ids[0])
        self._id_of_colour = id_table(self.colours.tobytes(), tuple(self.ids.tolist()))
        self._colour_of_id = np.zeros((int(self.ids.max()) + 1, 3), dtype=np.uint8)
        self._colour_of_id[self.ids] = self.colours

    def decode(self, colour_map: ColourMap) -> Mask:
        """Mask [H, W] of the ids whose colours are nearest: uint8, or uint16 where the label set has ids past 255."""
        pixels = _checked(colour_map).reshape(1, -1, 3)
        mask = np.empty(pixels.shape[1], dtype=self._id_of_colour.dtype)
        for start in range(0, len(mask), _STRIP):
            index = packed(pixels[:, start : start + _STRIP]).astype(np.intp)[0]
            # Indices are below 2^24 by construction; `clip` only spares numpy its check and a buffered output.
            np.take(self._id_of_colour, index, out=mask[start : start + _STRIP], mode="clip")
        return mask.reshape(colour_map.shape[:2])

    def decode_exact(self, colour_map: ColourMap, max_distance: float | None = None) -> tuple[Mask, np.ndarray]:
        """The mask, and the Euclidean RGB distance of each pixel to its class's colour, float32 [H, W].

        Raises UsageError where a pixel is further than `max_distance` from every colour; None allows any distance.
        """
        mask = self.decode(colour_map)
        difference = cv2.absdiff(_checked(colour_map), np.take(self._colour_of_id, mask, axis=0)).astype(np.int32)
        distance = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference), dtype=np.float32)
        if max_distance is not None and distance.max(initial=0) > max_distance:
            num_far = int((distance > max_distance).sum())
            row, column = np.unravel_index(distance.argmax(), distance.shape)
            raise UsageError(
                f"{num_far} pixels are further than {max_distance:g} from every colour of label set "
                f"{self.label_set.name}, the furthest at row {row}, column {column} with colour "
                f"{colour_map[row, column].tolist()}; choose the label set of these masks or allow a larger distance"
            )
        return mask, distance


@dataclass(frozen=True)
class MaskQuality:
    """How near a generated colour map is to a real one. Shares are of all pixels, 0 to 1."""

    num_pixels: int
    distance_histogram: tuple[int, ...]
    """Pixels by distance to the nearest colour, between neighbouring `DISTANCE_EDGES`, lower edge included."""
    mean_distance: float
    far_share: float
    """Pixels further than the far distance from every colour."""
    speckle_share: float
    """Pixels in 4-connected regions of one id that have fewer than the speckle size."""
    class_ids: tuple[int, ...]
    """Ids that the decoded mask holds, ascending."""
    class_pixels: tuple[int, ...]
    """Pixels of each of `class_ids`."""


def quality_of(
    colour_map: ColourMap,
    decoder: ColourDecoder,
    far_distance: float = FAR_DISTANCE,
    speckle_pixels: int = SPECKLE_PIXELS,
) -> MaskQuality:
    """Measure a colour map of at least one pixel against the colours of a decoder."""
    mask, distance = decoder.decode_exact(colour_map)
    if not mask.size:
        raise ValueError("a colour map without pixels has no quality")
    histogram, _ = np.histogram(distance, bins=DISTANCE_EDGES)
    counts = np.bincount(mask.ravel())
    found = np.flatnonzero(counts)
    region_sizes = np.bincount(_regions(mask).ravel())
    return MaskQuality(
        num_pixels=mask.size,
        distance_histogram=tuple(histogram.tolist()),
        mean_distance=float(distance.mean(dtype=np.float64)),
        far_share=float((distance > far_distance).mean()),
        speckle_share=float(region_sizes[region_sizes < speckle_pixels].sum() / mask.size),
        class_ids=tuple(found.tolist()),
        class_pixels=tuple(counts[found].tolist()),
    )


def unknown_colours(colour_map: ColourMap, label_set: LabelSet, with_ignore: bool = False) -> dict[Colour, int]:
    """Colours that are no class's (nor, with `with_ignore`, the ignore colour) with their pixels, most first."""
    known = np.zeros(1 << 24, dtype=bool)  # Zero pages until touched: a few microseconds, not 16 MB of writes.
    known[packed(label_set.colours[None])] = True
    if with_ignore:
        known[packed(np.array([[ignore_colour_of(label_set)]], dtype=np.uint8))] = True
    codes = packed(_checked(colour_map).reshape(1, -1, 3))
    unknown, counts = np.unique(codes[~known[codes]], return_counts=True)
    order = np.lexsort((unknown, -counts))
    ranked = zip(unknown[order].tolist(), counts[order].tolist(), strict=True)
    return {(code & 255, code >> 8 & 255, code >> 16): count for code, count in ranked}


def colour_book(label_set: LabelSet, rows_per_column: int = 30) -> ColourMap:
    """A picture uint8 [H, W, 3] of the palette, in channel order down the columns: swatch, id, name, thing or stuff.

    The last entry is the ignore colour, where the set ignores ids.
    """
    colours = [label.colour for label in label_set.classes]
    entries = [(str(label.id), label.name, str(label.kind)) for label in label_set.classes]
    if label_set.ignore_ids:
        colours.append(ignore_colour_of(label_set))
        entries.append((", ".join(map(str, label_set.ignore_ids)), "(ignored)", ""))
    font, title_font = ImageFont.load_default(16), ImageFont.load_default(22)
    widths = [max(int(font.getlength(text)) for text in texts) for texts in zip(*entries, strict=True)]
    swatch, line, gap, margin, top = 44, 26, 12, 20, 60
    column_width = swatch + sum(widths) + 4 * gap + margin
    num_columns = -(-len(entries) // rows_per_column)
    num_rows = -(-len(entries) // num_columns)
    title = f"{label_set.name}, version {label_set.version}: {label_set.num_classes} classes"
    width = max(num_columns * column_width, int(title_font.getlength(title)) + margin) + margin
    picture = PillowImage.new("RGB", (width, top + num_rows * line + margin), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, top / 2), title, fill="black", font=title_font, anchor="lm")
    for position, (colour, texts) in enumerate(zip(colours, entries, strict=True)):
        column, row = divmod(position, num_rows)
        left, middle = margin + column * column_width, top + row * line + line // 2
        draw.rectangle((left, middle - 10, left + swatch, middle + 10), fill=colour, outline="black")
        starts = list(
            itertools.accumulate(widths[:-1], lambda start, part: start + part + gap, initial=left + swatch + gap)
        )
        draw.text((starts[0] + widths[0], middle), texts[0], fill="dimgrey", font=font, anchor="rm")
        draw.text((starts[1], middle), texts[1], fill="black", font=font, anchor="lm")
        draw.text((starts[2], middle), texts[2], fill="dimgrey", font=font, anchor="lm")
    return np.asarray(picture)


@functools.lru_cache(maxsize=2)
def id_table(colours: bytes, ids: tuple[int, ...]) -> np.ndarray:
    """The id of the nearest colour by packed colour, read-only uint8 or uint16 [2^24]; `colours` are uint8 [C, 3]."""
    channels = _nearest_channels(np.frombuffer(colours, dtype=np.uint8).reshape(-1, 3))
    table = np.take(np.array(ids, dtype=np.uint8 if max(ids) <= 255 else np.uint16), channels.ravel())
    table.flags.writeable = False
    return table


def _nearest_channels(colours: np.ndarray) -> np.ndarray:
    """The channel of the nearest of uint8 colours [C, 3] for every colour, [blue, green, red] of 256 each.

    The cube is cut into cells. A colour whose least distance to a cell is above the smallest greatest distance of any
    colour is nearest nowhere in it, so the exact search is over the few that remain: on average 5 of 150.
    """
    axis = np.arange(256, dtype=np.int32)
    squares = [(axis - part[:, None]) ** 2 for part in colours.T[::-1].astype(np.int32)]  # blue, green, red: [C, 256]
    least = [square.reshape(len(colours), -1, _CELL).min(axis=2) for square in squares]
    greatest = [square.reshape(len(colours), -1, _CELL).max(axis=2) for square in squares]
    nearest = np.empty((256, 256, 256), dtype=np.uint8 if len(colours) <= 256 else np.uint16)
    for cell in itertools.product(range(256 // _CELL), repeat=3):
        lower, upper = (sum(part[:, at] for part, at in zip(bound, cell, strict=True)) for bound in (least, greatest))
        near = np.flatnonzero(lower <= upper.min())
        place = tuple(slice(at * _CELL, (at + 1) * _CELL) for at in cell)
        blue, green, red = (square[near, part] for square, part in zip(squares, place, strict=True))
        distance = blue[:, :, None, None] + green[:, None, :, None] + red[:, None, None, :]
        nearest[place] = near[distance.argmin(axis=0)]  # The first of equals, and `near` ascends: the lowest channel.
    return nearest


def _regions(mask: Mask) -> np.ndarray:
    """Labels int32 [H, W] of the 4-connected regions of one id, all classes in one pass.

    Pixels are set apart on a grid of twice the size and joined where neighbours have the same id, so that one binary
    component search separates regions of different ids that touch.
    """
    height, width = mask.shape
    joined = np.zeros((2 * height - 1, 2 * width - 1), dtype=np.uint8)
    joined[::2, ::2] = 1
    joined[1::2, ::2] = mask[:-1] == mask[1:]
    joined[::2, 1::2] = mask[:, :-1] == mask[:, 1:]
    _, regions = cv2.connectedComponents(joined, connectivity=4)
    return np.asarray(regions[::2, ::2])


def packed(pixels: ColourMap) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Colours as red + 256 green + 65536 blue, uint32 [H, W]: a view of four bytes a pixel, the fourth set to zero."""
    codes = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
    codes &= 0xFFFFFF
    return np.asarray(codes)


def _checked(colour_map: ColourMap) -> ColourMap:
    if colour_map.dtype != np.uint8 or colour_map.ndim != 3 or colour_map.shape[2] != 3:
        raise ValueError(f"a colour map is uint8 of shape H x W x 3, not {colour_map.dtype} of {colour_map.shape}")
    return np.ascontiguousarray(colour_map)
