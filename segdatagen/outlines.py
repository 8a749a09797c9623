"""Colour maps of panoptic pictures: class colours, and every segment outlined in an edge colour of its own.

SegGen, appendix A.2: the outline lets a model tell the instances of a class apart. The paper says "a special edge
color"; here each segment of a picture has another one, far from all class colours, so that two that touch do not flow
together. This module does not know where segments come from.
"""

import functools

import numpy as np

from segdatagen.bands import edges, fill_from_nearest
from segdatagen.colours import ColourMap, encode, id_table, ignore_colour_of, packed
from segdatagen.errors import UsageError
from segdatagen.images import Mask
from segdatagen.labels import LabelSet

MAX_EDGE_COLOURS = 1024
"""Past it edge colours come again. Pictures of COCO have up to about a hundred segments."""
GRID_STEP = 17
"""Edge colours lie on a grid of 16 x 16 x 16 over the RGB cube."""
TABLE_STEP = 64
"""Edge colours that a decoder knows are a multiple of it, so that pictures share the table of nearest colours."""


def edge_colours(label_set: LabelSet, count: int) -> np.ndarray:
    """Edge colours uint8 [count, 3], the first for what belongs to no segment, the others for segments 1, 2 and so on.

    Each is the grid colour furthest from every class, from the ignore colour and from the edge colours before it: of
    the shipped label sets the first hundred keep a distance of 38 in RGB from all of them.
    """
    return _edge_colours(label_set)[np.arange(count) % MAX_EDGE_COLOURS]


def encode_panoptic(mask: Mask, segment_map: np.ndarray, label_set: LabelSet) -> ColourMap:
    """Colour map uint8 [H, W, 3] of a mask with the outlines of its segments.

    `segment_map` is uint8 or uint16 [H, W], 0 where there is no segment. An outline is one pixel wide and lies within
    its segment, where one of the eight pixels around is of another. Ignored pixels are no part of an outline. Raises
    UsageError as `encode` does.
    """
    colour_map = encode(mask, label_set)
    edge = edges(segment_map) & ~np.isin(mask, label_set.ignore_ids)
    numbers = segment_map[edge]
    colour_map[edge] = edge_colours(label_set, int(numbers.max(initial=0)) + 1)[numbers]
    return colour_map


def decode_panoptic(colour_map: ColourMap, label_set: LabelSet, num_segments: int) -> Mask:
    """The mask of an outlined colour map: the nearest colour, and on outlines the class of the nearest pixel inside.

    Exact for each pixel that lies in a square of 3 x 3 of its segment: the middle of the square is inside, and nearer
    than any other segment's inside. Slivers become what lies beside them. Raises UsageError where a map holds no class.
    """
    with_ignore = bool(label_set.ignore_ids)
    fixed = np.vstack([label_set.colours, [ignore_colour_of(label_set)]]) if with_ignore else label_set.colours
    num_edges = min(-(-(num_segments + 1) // TABLE_STEP) * TABLE_STEP, MAX_EDGE_COLOURS)
    colours = np.vstack([fixed, edge_colours(label_set, num_edges)]).astype(np.uint8)
    kinds = np.take(id_table(colours.tobytes(), tuple(range(len(colours)))), packed(colour_map))
    edge = kinds >= len(fixed)
    inside = kinds < label_set.num_classes
    if not inside.any():
        raise UsageError(
            f"the colour map holds no class of label set {label_set.name}, only outlines and ignored pixels"
        )
    ids = np.append(label_set.ids, label_set.ignore_ids[:1])
    ids = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)
    return fill_from_nearest(ids[np.where(edge, 0, kinds)], edge, inside)


@functools.lru_cache(maxsize=4)
def _edge_colours(label_set: LabelSet) -> np.ndarray:
    axis = np.arange(0, 256, GRID_STEP)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    taken = np.vstack([label_set.colours, [ignore_colour_of(label_set)]]).astype(np.int64)
    nearest = np.full(len(grid), np.iinfo(np.int64).max)
    for colour in taken:
        nearest = np.minimum(nearest, ((grid - colour) ** 2).sum(axis=1))
    found = np.empty((MAX_EDGE_COLOURS, 3), np.uint8)
    for number in range(MAX_EDGE_COLOURS):
        place = int(nearest.argmax())
        if nearest[place] == 0:
            raise UsageError(f"label set {label_set.name} leaves no colours free for outlines; change class colours")
        found[number] = grid[place]
        nearest = np.minimum(nearest, ((grid - grid[place]) ** 2).sum(axis=1))
    found.flags.writeable = False
    return found
