"""Data sets that are a folder of masks, with or without a folder of images of the same names.

CamVid, ADE20K, Cityscapes, BDD100K, paper 001's layout with `colormap.json`, plain id masks and hand-painted masks
alone are all this one thing: what differs is where the folders lie, how file names end, and whether a mask holds ids
or colours. Knows nothing of other layouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from segdatagen.colours import ColourDecoder, unknown_colours
from segdatagen.config_files import load_json
from segdatagen.datasets.reader import BadItem, Item, Listing, RawSource, first_names, narrow, unknown_ids
from segdatagen.errors import UsageError
from segdatagen.images import DecodeError, decode_annotation, decode_image, orientation, palette_colours
from segdatagen.labels import LabelSet, from_colormap
from segdatagen.storage import Entry, Folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
WITHOUT_IMAGES = "say with --images FOLDER where they lie below the root, or take masks alone with --images none"


@dataclass(frozen=True)
class MaskFolder:
    """Masks in `mask_folder`, images of the same stems in `image_folder` (None: masks alone).

    `colours` says whether masks hold colours or class ids; None: each either ids or exactly the colours. Colours are
    RGB, or those of a palette whose numbers mean nothing. With `snap_distance`, a painted colour is taken as the
    nearest class colour up to that Euclidean distance in RGB, as antialiased edges need; without it every colour must
    be exactly that of a class. Where the label set ignores ids, the ignore colour of `colours` counts as one more.
    A stem is what stands before one of the endings; `flat` leaves folders out of it. `hints` say what an unknown id
    often means, `advice` what to do where there is no mask at all; `WITHOUT_IMAGES` says it of images.
    """

    root: str
    mask_folder: str
    image_folder: str | None
    label_set: LabelSet
    colours: bool | None = False
    snap_distance: float | None = None
    mask_endings: tuple[str, ...] = (".png",)
    image_endings: tuple[str, ...] = IMAGE_SUFFIXES
    flat: bool = False
    hints: tuple[tuple[int, str], ...] = ()
    advice: str = ""

    def list_items(self) -> Listing:
        """Pair masks with images by stem. Raises UsageError if there is no folder or no mask."""
        masks = list_files(self.root, self.mask_folder, self.mask_endings, self.flat, self.advice)
        if self.image_folder is None:
            return Listing(tuple(Item(stem, file.name, num_bytes=file.size) for stem, file in masks.items()))
        images = list_files(self.root, self.image_folder, self.image_endings, self.flat, WITHOUT_IMAGES)
        paired = tuple(
            Item(stem, file.name, images[stem].name, num_bytes=file.size + images[stem].size)
            for stem, file in masks.items()
            if stem in images
        )
        alone = [BadItem("mask without image", file.name) for stem, file in masks.items() if stem not in images]
        alone += [BadItem("image without mask", file.name) for stem, file in images.items() if stem not in masks]
        return Listing(paired, tuple(alone))

    def read(self, item: Item) -> RawSource:
        """Read a mask and its image, and check both. Raises BadItem."""
        folder = Folder(self.root)
        data = read_mask_file(folder, item.mask_name)
        annotation = annotation_of(data, item.mask_name)
        if self.colours is not False and annotation.ndim == 2:
            annotation = self._shown(annotation, data, item)
        if self.colours or (self.colours is None and annotation.ndim == 3):
            mask = self._from_colours(annotation, item)
        else:
            mask = checked_ids(annotation, self.label_set, item.mask_name, self.hints)
        image = read_image(folder, item.image_name, item.mask_name, mask.shape) if item.image_name else None
        return RawSource(mask=mask, image=image)

    def _shown(self, ids: np.ndarray, data: bytes, item: Item) -> np.ndarray:
        """The colours of a palette where they are those of classes and its ids are none, else the ids.

        Of numbers that share a colour, as where a palette ends before 255, one is of the class that they show. Raises
        BadItem where ids and colours would both do and mean different classes.
        """
        colours = palette_colours(data)
        if colours is None:
            return ids
        mask, distance = ColourDecoder(self.label_set, bool(self.label_set.ignore_ids)).decode_exact(colours)
        if distance.any():
            return colours if self.colours else ids
        numbers, first = np.unique(ids, return_index=True)
        painted = mask.reshape(-1)[first]
        agrees = np.isin(painted, painted[painted == numbers]).all()
        if not self.colours and not agrees and not unknown_ids(narrow(ids), self.label_set):
            raise BadItem("palette of other classes", item.mask_name, "save it as grey ids, or in RGB")
        return colours if len(np.unique(painted)) == len(numbers) else ids

    def _from_colours(self, annotation: np.ndarray, item: Item) -> np.ndarray:
        if annotation.ndim != 3:
            raise BadItem("ids where colours are expected", item.mask_name)
        mask, distance = ColourDecoder(self.label_set, bool(self.label_set.ignore_ids)).decode_exact(annotation)
        far = distance > (self.snap_distance or 0.0)
        if far.any():
            if self.colours is None and (annotation == annotation[..., :1]).all():
                raise BadItem("colours where ids are expected", item.mask_name, "grey in RGB: keep one channel of it")
            counts = _named(unknown_colours(annotation[far][None], self.label_set))
            if self.snap_distance is None:
                detail = "" if self.colours else f"neither ids nor exactly the colours of {self.label_set.name}"
                raise BadItem("unknown colour", item.mask_name, detail, counts)
            detail = f"farther than {self.snap_distance:g} from every class"
            raise BadItem("unknown colour", item.mask_name, detail, counts, float(distance.max()))
        return mask


def read_annotation(folder: Folder, name: str) -> np.ndarray:
    """Ids H x W or colours H x W x 3 of a mask file. Raises BadItem."""
    return annotation_of(read_mask_file(folder, name), name)


def read_mask_file(folder: Folder, name: str) -> bytes:
    """A mask file as it lies. Raises BadItem."""
    try:
        return folder.read(name)
    except OSError as error:
        raise BadItem("unreadable mask", name, str(error)) from error


def annotation_of(data: bytes, name: str) -> np.ndarray:
    """Ids H x W or colours H x W x 3 of the bytes of a mask file. Raises BadItem."""
    try:
        return decode_annotation(data)
    except DecodeError as error:
        raise BadItem("unreadable mask", name, str(error)) from error


def checked_ids(
    annotation: np.ndarray, label_set: LabelSet, name: str, hints: Sequence[tuple[int, str]] = ()
) -> np.ndarray:
    """A mask of ids as narrow as they allow. Raises BadItem for colours, and for ids that are no class's."""
    if annotation.ndim != 2:
        raise BadItem("colours where ids are expected", name)
    mask = narrow(annotation)
    unknown = unknown_ids(mask, label_set)
    if unknown:
        meanings = dict.fromkeys(text for id_, text in hints if str(id_) in unknown)
        raise BadItem("unknown id", name, "; ".join(meanings), unknown)
    return mask


def read_image(folder: Folder, image_name: str, mask_name: str, shape: tuple[int, ...]) -> bytes:
    """An image file as it lies. Raises BadItem unless it is whole and has the mask's height and width."""
    try:
        data = folder.read(image_name)
    except OSError as error:
        raise BadItem("unreadable image", image_name, str(error)) from error
    check_image(data, shape, image_name, mask_name)
    return data


def check_image(data: bytes, shape: tuple[int, ...], image_name: str, mask_name: str) -> None:
    """Raise BadItem unless the bytes are a whole image of the mask's height and width, shown as its pixels lie."""
    try:
        image = decode_image(data)
    except DecodeError as error:
        raise BadItem("unreadable image", image_name, str(error)) from error
    if (turned := orientation(data)) != 1:
        detail = f"orientation {turned}: turn the pixels if the mask was drawn on what is shown, else remove the tag"
        raise BadItem("image turned by EXIF", image_name, detail)
    if image.shape[:2] != shape:
        sizes = f"mask {shape[1]} x {shape[0]}, image {image.shape[1]} x {image.shape[0]}"
        raise BadItem("size mismatch", mask_name, sizes)


def list_files(
    root: str, folder: str, endings: tuple[str, ...], flat: bool = False, advice: str = ""
) -> dict[str, Entry]:
    """Files below `folder` by stem, in order of the stem; their names begin at the root. Raises UsageError without any.

    A stem is the name up to one of `endings` (in any case), without its folders if `flat`; a file whose name ends
    otherwise is none of ours.
    """
    found: dict[str, Entry] = {}
    prefix = f"{folder}/" if folder else ""
    for entry in Folder(root).child(folder).entries() if folder else Folder(root).entries():
        ending = next((ending for ending in endings if entry.name.lower().endswith(ending.lower())), None)
        if ending is None:
            continue
        stem = entry.name[: -len(ending)]
        stem = PurePosixPath(stem).name if flat else stem
        if stem in found:
            raise UsageError(f"{root}: {found[stem].name} and {prefix}{entry.name} have the same name: rename one")
        found[stem] = Entry(prefix + entry.name, entry.size)
    if not found:
        where = f"{root}/{folder}".rstrip("/")
        more = f"; {advice}" if advice else ""
        above = _folders_above(root, folder, endings)
        if above:
            more = f"; such files lie in {first_names(above, 3)}: choose another --split, or move them{more}"
        raise UsageError(f"{where}: no {' or '.join(endings)} files here (missing or empty folder){more}")
    return dict(sorted(found.items()))


def _folders_above(root: str, folder: str, endings: tuple[str, ...]) -> list[str]:
    """Where files with these endings lie one level above a folder that has none, as places below the root."""
    if "/" not in folder:
        return []
    parent = PurePosixPath(folder).parent
    entries = Folder(root).child(str(parent)).entries()
    return sorted({str((parent / entry.name).parent) for entry in entries if entry.name.lower().endswith(endings)})


def read_colormap(root: str) -> LabelSet:
    """The label set of paper 001's `colormap.json`: `{"class": [r, g, b]}`, order = channel = id. Raises UsageError."""
    try:
        mapping = load_json(Folder(root).read("colormap.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{root}: no colormap.json here; name a label set with --labels instead") from None
    except ValueError as error:
        raise UsageError(f"{root}/colormap.json: not JSON ({error})") from error
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{root}/colormap.json: expected an object of class names and [r, g, b]")
    return from_colormap("colormap", dict(mapping), f"{root}/colormap.json")


def _named(colours: Mapping[tuple[int, int, int], int]) -> dict[str, int]:
    return {f"({r}, {g}, {b})": count for (r, g, b), count in colours.items()}
