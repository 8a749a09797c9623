"""Data sets on disk, one reader per format, named in FORMATS.

`open_reader` turns the words of a command line into a reader and refuses options that the format has no use for.
It does not know what happens to the sources afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

from segdatagen.datasets.folder import MaskFolder, read_colormap
from segdatagen.datasets.reader import BadItem, Item, Listing, Problem, RawSource, Reader, Segment
from segdatagen.datasets.scenes.reader import open_scenes
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet, load_label_set

__all__ = ["FORMATS", "BadItem", "Item", "Listing", "Problem", "RawSource", "Reader", "Segment", "open_reader"]


@dataclass(frozen=True)
class Options:
    """What `ingest` may say beyond format, root and split."""

    labels: str | None = None
    snap_colours: float | None = None


def _camvid(root: str, split: str, options: Options) -> Reader:
    _refuse("camvid", options, snap_colours=options.snap_colours)
    return MaskFolder(root, f"{split}annot", split, load_label_set(options.labels or "camvid"))


def _colormap(root: str, split: str, options: Options) -> Reader:
    label_set = load_label_set(options.labels) if options.labels else read_colormap(root)
    return MaskFolder(root, "masks", "images", label_set, colours=True, snap_distance=options.snap_colours)


def _id_masks(root: str, split: str, options: Options) -> Reader:
    _refuse("id_masks", options, snap_colours=options.snap_colours)
    return MaskFolder(root, "masks", "images", _named_labels("id_masks", options))


def _masks_only(root: str, split: str, options: Options) -> Reader:
    """Ids with --labels, colours with `colormap.json` or with --labels and --snap-colours."""
    label_set = load_label_set(options.labels) if options.labels else read_colormap(root)
    colours = options.labels is None or options.snap_colours is not None
    return MaskFolder(root, "", None, label_set, colours=colours, snap_distance=options.snap_colours)


def _scenes(root: str, split: str, options: Options) -> Reader:
    _refuse("scenes", options, labels=options.labels, snap_colours=options.snap_colours)
    return open_scenes(root, split)


FORMATS: dict[str, Callable[[str, str, Options], Reader]] = {
    "camvid": _camvid,
    "colormap": _colormap,
    "id_masks": _id_masks,
    "masks": _masks_only,
    "scenes": _scenes,
}


def open_reader(name: str, root: str, split: str, options: Options) -> Reader:
    """The reader of a format. Raises UsageError for an unknown format or an option that it does not take."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}: choose one of {', '.join(FORMATS)}")
    if options.snap_colours is not None and not options.snap_colours >= 0:
        raise UsageError(f"--snap-colours is a distance in RGB of 0 or more, not {options.snap_colours}")
    return FORMATS[name](root, split, options)


def _refuse(name: str, options: Options, **given: object) -> None:
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"format {name} takes no --{option.replace('_', '-')}")


def _named_labels(name: str, options: Options) -> LabelSet:
    if options.labels is None:
        raise UsageError(f"format {name} needs --labels: a shipped label set or the path of a YAML file")
    return load_label_set(options.labels)
