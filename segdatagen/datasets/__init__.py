"""Data sets on disk, one reader per format, named in FORMATS.

`open_reader` turns the words of a command line into a reader and refuses options that the format has no use for.
It does not know what happens to the sources afterwards.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from segdatagen.datasets.ade20k import open_ade20k
from segdatagen.datasets.bdd100k import open_bdd100k, open_bdd100k_instances, open_bdd100k_panoptic
from segdatagen.datasets.captions import CaptionedReader, open_captions
from segdatagen.datasets.cityscapes import open_cityscapes_label_ids, open_cityscapes_train_ids
from segdatagen.datasets.coco_panoptic import open_coco_panoptic
from segdatagen.datasets.folder import MaskFolder, read_colormap
from segdatagen.datasets.options import Options
from segdatagen.datasets.partition import PartReader, parse_partition
from segdatagen.datasets.reader import BadItem, Item, Listing, Problem, RawSource, Reader, Segment
from segdatagen.datasets.scenes.reader import open_scenes
from segdatagen.datasets.tables import open_hf_dataset, open_parquet
from segdatagen.datasets.voc import open_voc, open_voc_aug
from segdatagen.errors import UsageError

__all__ = [
    "FORMATS",
    "BadItem",
    "Item",
    "Listing",
    "Options",
    "Problem",
    "RawSource",
    "Reader",
    "Segment",
    "open_reader",
]

OF_EVERY_FORMAT = ("partition", "captions")
"""Options that every format takes: they do not concern how it is read."""


@dataclass(frozen=True)
class Format:
    """How a data set is opened from root and split, and the options that it takes beyond those of every format."""

    open: Callable[[str, str, Options], Reader]
    takes: tuple[str, ...] = ()


def _camvid(root: str, split: str, options: Options) -> Reader:
    return MaskFolder(root, f"{split}annot", options.image_folder_or(split), options.own_label_set("camvid"))


def _colormap(root: str, split: str, options: Options) -> Reader:
    label_set = options.named_label_set("colormap") if options.labels else read_colormap(root)
    images = options.image_folder_or("images")
    return MaskFolder(root, "masks", images, label_set, colours=True, snap_distance=options.snap_colours)


def _id_masks(root: str, split: str, options: Options) -> Reader:
    return MaskFolder(root, "masks", options.image_folder_or("images"), options.named_label_set("id_masks"))


def _masks_only(root: str, split: str, options: Options) -> Reader:
    """Ids or exact colours of --labels, near colours with --snap-colours, without --labels those of `colormap.json`."""
    label_set = options.named_label_set("masks") if options.labels else read_colormap(root)
    colours = True if options.labels is None or options.snap_colours is not None else None
    return MaskFolder(root, "", None, label_set, colours=colours, snap_distance=options.snap_colours)


def _scenes(root: str, split: str, options: Options) -> Reader:
    return open_scenes(root, split)


FORMATS: dict[str, Format] = {
    "ade20k": Format(open_ade20k, ("labels", "images")),
    "bdd100k": Format(open_bdd100k, ("labels", "images")),
    "bdd100k_instances": Format(open_bdd100k_instances, ("labels", "images")),
    "bdd100k_panoptic": Format(open_bdd100k_panoptic, ("labels", "images")),
    "camvid": Format(_camvid, ("labels", "images")),
    "captions": Format(open_captions, ("labels",)),
    "cityscapes_label_ids": Format(open_cityscapes_label_ids, ("labels", "images")),
    "cityscapes_train_ids": Format(open_cityscapes_train_ids, ("labels", "images")),
    "coco_panoptic": Format(open_coco_panoptic, ("labels", "images")),
    "colormap": Format(_colormap, ("labels", "images", "snap_colours")),
    "hf_dataset": Format(open_hf_dataset, ("labels", "columns")),
    "id_masks": Format(_id_masks, ("labels", "images")),
    "masks": Format(_masks_only, ("labels", "snap_colours")),
    "parquet": Format(open_parquet, ("labels", "columns")),
    "scenes": Format(_scenes),
    "voc": Format(open_voc, ("labels", "images")),
    "voc_aug": Format(open_voc_aug, ("labels", "images")),
}


def open_reader(name: str, root: str, split: str, options: Options) -> Reader:
    """The reader of a format. Raises UsageError for an unknown format or an option that it does not take."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}: choose one of {', '.join(FORMATS)}")
    if not re.fullmatch(r"[^\W.][^/\\\x00-\x1f]*", split):
        raise UsageError(f"--split {split!r}: give the name of a split, for example train")
    options.require_only(name, (*FORMATS[name].takes, *OF_EVERY_FORMAT))
    if options.snap_colours is not None and not options.snap_colours >= 0:
        raise UsageError(f"--snap-colours is a distance in RGB of 0 or more, not {options.snap_colours}")
    partition = parse_partition(options.partition) if options.partition else None
    reader = FORMATS[name].open(root, split, options)
    if options.captions:
        return CaptionedReader(reader, options.captions, partition)
    return PartReader(reader, partition) if partition is not None else reader
