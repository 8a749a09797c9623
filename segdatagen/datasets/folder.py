"""Data sets that are a folder of masks, with or without a folder of images of the same names.

CamVid, paper 001's layout with `colormap.json`, plain id masks, and hand-painted masks alone are all this one thing:
what differs is where the folders lie and whether a mask holds ids or colours. Knows nothing of other layouts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from segdatagen.colours import ColourDecoder, unknown_colours
from segdatagen.datasets.reader import BadItem, Item, Listing, RawSource, narrow, unknown_ids
from segdatagen.errors import UsageError
from segdatagen.images import DecodeError, decode_annotation, decode_image
from segdatagen.labels import LabelSet, from_colormap
from segdatagen.storage import Folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class MaskFolder:
    """Masks in `mask_folder`, images of the same stems in `image_folder` (None: masks alone).

    `colours` says whether masks hold colours (RGB) or class ids. With `snap_distance`, a painted colour is taken as
    the nearest class colour up to that Euclidean distance in RGB, as antialiased edges need; without it every colour
    must be exactly that of a class. Where the label set ignores ids, the ignore colour of `colours` counts as one more.
    """

    root: str
    mask_folder: str
    image_folder: str | None
    label_set: LabelSet
    colours: bool = False
    snap_distance: float | None = None

    def list_items(self) -> Listing:
        """Pair masks with images by stem. Raises UsageError if there is no folder or no mask."""
        masks = self._files(self.mask_folder, (".png",))
        if self.image_folder is None:
            return Listing(tuple(Item(stem, name) for stem, name in masks.items()))
        images = self._files(self.image_folder, IMAGE_SUFFIXES)
        paired = tuple(Item(stem, name, images[stem]) for stem, name in masks.items() if stem in images)
        alone = [BadItem("mask without image", name) for stem, name in masks.items() if stem not in images]
        alone += [BadItem("image without mask", name) for stem, name in images.items() if stem not in masks]
        return Listing(paired, tuple(alone))

    def read(self, item: Item) -> RawSource:
        """Read a mask and its image, and check both. Raises BadItem."""
        folder = Folder(self.root)
        try:
            annotation = decode_annotation(folder.read(item.mask_name))
        except (DecodeError, OSError) as error:
            raise BadItem("unreadable mask", item.mask_name, str(error)) from error
        mask = self._from_colours(annotation, item) if self.colours else self._from_ids(annotation, item)
        if item.image_name is None:
            return RawSource(mask=mask)
        data, shape = _read_image(folder, item.image_name)
        if shape != mask.shape:
            sizes = f"mask {mask.shape[1]} x {mask.shape[0]}, image {shape[1]} x {shape[0]}"
            raise BadItem("size mismatch", item.mask_name, sizes)
        return RawSource(mask=mask, image=data)

    def _from_ids(self, annotation: np.ndarray, item: Item) -> np.ndarray:
        if annotation.ndim != 2:
            raise BadItem("colours where ids are expected", item.mask_name)
        mask = narrow(annotation)
        unknown = unknown_ids(mask, self.label_set)
        if unknown:
            raise BadItem("unknown id", item.mask_name, counts=unknown)
        return mask

    def _from_colours(self, annotation: np.ndarray, item: Item) -> np.ndarray:
        if annotation.ndim != 3:
            raise BadItem("ids where colours are expected", item.mask_name)
        mask, distance = ColourDecoder(self.label_set, bool(self.label_set.ignore_ids)).decode_exact(annotation)
        far = distance > (self.snap_distance or 0.0)
        if far.any():
            counts = _named(unknown_colours(annotation[far][None], self.label_set))
            detail = "" if self.snap_distance is None else f"farther than {self.snap_distance:g} from every class"
            raise BadItem("unknown colour", item.mask_name, detail, counts)
        return mask

    def _files(self, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
        """Stem -> name below the root, in order of the stem."""
        found: dict[str, str] = {}
        prefix = f"{folder}/" if folder else ""
        for entry in Folder(self.root).child(folder).entries() if folder else Folder(self.root).entries():
            path = PurePosixPath(entry.name)
            if path.suffix.lower() not in suffixes:
                continue
            stem = str(path.with_suffix(""))
            if stem in found:
                raise UsageError(f"{self.root}: {found[stem]} and {prefix}{entry.name} have the same name: rename one")
            found[stem] = prefix + entry.name
        if not found:
            where = f"{self.root}/{folder}".rstrip("/")
            raise UsageError(f"{where}: no {' or '.join(suffixes)} files here (missing or empty folder)")
        return dict(sorted(found.items()))


def read_colormap(root: str) -> LabelSet:
    """The label set of paper 001's `colormap.json`: `{"class": [r, g, b]}`, order = channel = id. Raises UsageError."""
    try:
        mapping = json.loads(Folder(root).read("colormap.json"))
    except FileNotFoundError:
        raise UsageError(f"{root}: no colormap.json here; name a label set with --labels instead") from None
    except ValueError as error:
        raise UsageError(f"{root}/colormap.json: not JSON ({error})") from error
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{root}/colormap.json: expected an object of class names and [r, g, b]")
    return from_colormap("colormap", dict(mapping))


def _read_image(folder: Folder, name: str) -> tuple[bytes, tuple[int, int]]:
    """The file as it is, and height and width of its picture. Raises BadItem where it cannot be decoded."""
    try:
        data = folder.read(name)
        height, width = decode_image(data).shape[:2]
    except (DecodeError, OSError) as error:
        raise BadItem("unreadable image", name, str(error)) from error
    return data, (height, width)


def _named(colours: Mapping[tuple[int, int, int], int]) -> dict[str, int]:
    return {f"({r}, {g}, {b})": count for (r, g, b), count in colours.items()}
