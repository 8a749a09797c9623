"""COCO panoptic: a JSON of annotations, a PNG of segments for each, and images.

A pixel is the number of its segment, red + 256 green + 65536 blue; the JSON says of which class that is, and decides
what the data set holds. It is read as a stream, and an item knows where its annotation lies: a hundred thousand of
them would be gigabytes. Knows nothing of COCO's detections.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from segdatagen.colours import packed
from segdatagen.config_files import shown
from segdatagen.datasets.folder import IMAGE_SUFFIXES, WITHOUT_IMAGES, list_files, read_annotation, read_image
from segdatagen.datasets.json_stream import READ_AHEAD, elements
from segdatagen.datasets.options import Options
from segdatagen.datasets.panoptic import CODES, ListedSegment, read_segments
from segdatagen.datasets.reader import BadItem, Item, Listing, RawSource, Reader, first_names
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.storage import Entry, Folder


@dataclass(frozen=True)
class Annotation:
    """One annotation of the JSON: its PNG, its image, and where it lies in the file."""

    file_name: str
    image_id: object
    first: int
    length: int


@dataclass
class Contents:
    """What the JSON lists: file names of images by their ids, annotations, categories, and ids that stand twice."""

    images: dict[object, str] = field(default_factory=dict)
    annotations: list[Annotation] = field(default_factory=list)
    categories: dict[object, str] = field(default_factory=dict)
    twice: list[BadItem] = field(default_factory=list)


@dataclass(frozen=True)
class CocoPanoptic:
    """Annotations of `json_name`, masks in `mask_folder`, images in `image_folder` (None: none), all below the root."""

    root: str
    json_name: str
    mask_folder: str
    image_folder: str | None
    label_set: LabelSet

    def list_items(self) -> Listing:
        """An item per annotation, by name. Raises UsageError for a JSON of another form, or of other categories."""
        contents = read_contents(Folder(self.root), self.json_name)
        self._check_categories(contents.categories)
        masks = list_files(self.root, self.mask_folder, (".png",))
        images = {} if self.image_folder is None else self._list_images(self.image_folder)
        items: list[Item] = []
        bad = list(contents.twice)
        for annotation in sorted(contents.annotations, key=lambda found: found.file_name):
            try:
                items.append(self._item(annotation, contents, masks, images))
            except BadItem as problem:
                bad.append(problem)
        annotated = {annotation.image_id for annotation in contents.annotations}
        bad += [BadItem("image without annotation", n) for id_, n in contents.images.items() if id_ not in annotated]
        return Listing(tuple(items), tuple(bad))

    def read(self, item: Item) -> RawSource:
        """Mask, segment map, segments and image, checked against each other. Raises BadItem."""
        folder = Folder(self.root)
        try:
            annotation = json.loads(folder.read_range(self.json_name, *item.place))
        except (ValueError, OSError) as error:
            raise BadItem("unreadable annotation", self.json_name, f"it changed: {error}") from error
        listed = _listed(annotation["segments_info"], item.mask_name)
        pixels = read_annotation(folder, item.mask_name)
        if pixels.ndim != 3:
            raise BadItem("ids where colours are expected", item.mask_name, "segments are numbers in RGB")
        codes = packed(pixels)
        source = read_segments(codes, listed, self.label_set, item.mask_name)
        return replace(
            source, image=read_image(folder, item.image_name, item.mask_name, codes.shape) if item.image_name else None
        )

    def _list_images(self, folder: str) -> dict[str, Entry]:
        return list_files(self.root, folder, IMAGE_SUFFIXES, advice=WITHOUT_IMAGES)

    def _item(
        self, annotation: Annotation, contents: Contents, masks: Mapping[str, Entry], images: Mapping[str, Entry]
    ) -> Item:
        """Raises BadItem where a file is not there."""
        stem = _stem(annotation.file_name)
        mask_name = f"{self.mask_folder}/{annotation.file_name}"
        if stem not in masks:
            raise BadItem("missing mask", mask_name)
        if contents.images and annotation.image_id not in contents.images:
            raise BadItem("unreadable annotation", mask_name, f"image {annotation.image_id} is not in the JSON")
        place, size = (annotation.first, annotation.length), masks[stem].size
        if self.image_folder is None:
            return Item(stem, masks[stem].name, None, place, size)
        image = images.get(_stem(contents.images.get(annotation.image_id, annotation.file_name)))
        if image is None:
            raise BadItem("mask without image", mask_name)
        return Item(stem, masks[stem].name, image.name, place, size + image.size)

    def _check_categories(self, categories: Mapping[object, str]) -> None:
        """Raise UsageError where an id of the JSON is that of another class in the label set."""
        of_id = {label.id: label for label in self.label_set.classes}
        differences = []
        for id_, name in categories.items():
            label = of_id.get(id_) if isinstance(id_, int) else None
            if label and name.casefold() not in (
                word.casefold() for word in (label.name, label.prompt, *label.aliases)
            ):
                differences.append(f"{id_} is {name}, not {label.name}")
        if differences:
            raise UsageError(
                f"{self.root}/{self.json_name}: other categories than those of label set {self.label_set.name} "
                f"({first_names(differences, 3)}): give the label set of this data with --labels"
            )


def open_coco_panoptic(root: str, split: str, options: Options) -> Reader:
    """`panoptic_<split>.json` and the PNGs of that name at the root or in `annotations`, images in `<split>`."""
    folder = Folder(root)
    name = f"panoptic_{split}"
    json_name = next((f"{at}{name}.json" for at in ("annotations/", "") if folder.exists(f"{at}{name}.json")), None)
    if json_name is None:
        there = [entry.name for entry in folder.child("annotations").entries(".json")]
        found = f"; annotations holds {first_names(there, 5)}" if there else ""
        raise UsageError(f"{root}: no annotations/{name}.json here (missing or empty folder){found}")
    mask_folder = f"annotations/{name}" if folder.exists(f"annotations/{name}") else name
    usual = f"images/{split}" if folder.exists(f"images/{split}") else split
    images = options.image_folder_or(usual)
    return CocoPanoptic(root, json_name, mask_folder, images, options.label_set_or("coco_panoptic"))


def read_contents(folder: Folder, json_name: str) -> Contents:
    """What a JSON lists, without the segments. Raises UsageError where it is not of COCO's panoptic form."""
    uri = folder.uri_of(json_name)
    found = Contents()
    files: set[str] = set()
    annotated: set[object] = set()
    with folder.open(json_name, READ_AHEAD) as file:
        for key, value, first, length in elements(file, uri):
            if key == "images":
                id_, name = _fields(value, uri, "an image", "id", "file_name")
                if id_ in found.images:
                    found.twice.append(BadItem("duplicate id", str(name), f"two images have id {id_}"))
                found.images[id_] = str(name)
            elif key == "categories":
                id_, name = _fields(value, uri, "a category", "id", "name")
                found.categories[id_] = str(name)
            elif key == "annotations":
                name, image, _ = _fields(value, uri, "an annotation", "file_name", "image_id", "segments_info")
                if name in files or image in annotated:
                    found.twice.append(BadItem("duplicate id", str(name), f"two annotations of image {image}"))
                    continue
                files.add(name)
                annotated.add(image)
                found.annotations.append(Annotation(str(name), image, first, length))
    if not found.annotations:
        raise UsageError(f"{uri}: it holds no annotations")
    return found


def _fields(value: object, uri: str, what: str, *names: str) -> list[Any]:
    """Some fields of an entry. Raises UsageError where it has not all of them, or an id that is no number or text."""
    row = value if isinstance(value, dict) else {}
    missing = [name for name in names if name not in row]
    if missing:
        raise UsageError(f"{uri}: not COCO's panoptic form: {what} has no {' and no '.join(missing)}")
    for name in names:
        if name != "segments_info" and not isinstance(row[name], str | int):
            raise UsageError(f"{uri}: not COCO's panoptic form: {what} has {name} {shown(row[name])}")
    return [row[name] for name in names]


def _listed(rows: object, mask_name: str) -> Sequence[ListedSegment]:
    """The segments of an annotation. Raises BadItem."""
    listed: dict[int, ListedSegment] = {}
    if not isinstance(rows, list):
        raise BadItem("unreadable annotation", mask_name, "segments_info is no list")
    for row in rows:
        id_, class_id = (row.get(name) if isinstance(row, dict) else None for name in ("id", "category_id"))
        if type(id_) is not int or type(class_id) is not int or not 0 < id_ < CODES or not 0 <= class_id < 1 << 16:
            raise BadItem("unreadable annotation", mask_name, f"segment {id_} has category {class_id}")
        if row.get("area", 1) == 0:
            raise BadItem("segment without pixels", mask_name, "its area is 0", {str(id_): 0})
        if id_ in listed:
            raise BadItem("duplicate id", mask_name, f"two segments have id {id_}")
        listed[id_] = ListedSegment(id_, class_id, bool(row.get("iscrowd", 0)))
    return list(listed.values())


def _stem(file_name: str) -> str:
    return str(PurePosixPath(file_name).with_suffix(""))
