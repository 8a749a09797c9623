"""Small folders that lie on disk as the published data sets do, and what was put into them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segdatagen.datasets import BadItem, Options, RawSource, Reader, open_reader
from segdatagen.images import encode_image, encode_mask
from segdatagen.labels import LabelSet

SHAPE = (24, 32)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_photograph(path: Path, shape: tuple[int, int] = SHAPE) -> Path:
    """A JPEG or PNG, as the suffix says; small in bytes at any size."""
    image = np.full((*shape, 3), len(path.name) * 7 % 256, np.uint8)
    return write(path, encode_image(image, "png" if path.suffix == ".png" else "jpeg95"))


def write_mask(path: Path, mask: np.ndarray) -> Path:
    return write(path, encode_mask(mask))


def write_palette_mask(path: Path, mask: np.ndarray) -> Path:
    """A PNG of palette indices, as VOC ships them."""
    picture = PIL.Image.fromarray(mask, "P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def every_id(ids: Sequence[int], shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A mask in which each of the ids stands, in columns of blocks."""
    return np.resize(np.array(ids, np.uint8), (shape[1], shape[0])).T.copy()


def all_ids(label_set: LabelSet) -> list[int]:
    return [*label_set.ids.tolist(), *label_set.ignore_ids]


def read_all(reader: Reader) -> dict[str, RawSource]:
    listing = reader.list_items()
    assert not listing.orphans
    return {item.source_id: reader.read(item) for item in listing.items}


def read_only(data_format: str, root: Path, split: str = "train", **options: Any) -> RawSource:
    """The one source of a data set."""
    (source,) = read_all(open_reader(data_format, str(root), split, Options(**options))).values()
    return source


def problem_of(data_format: str, root: Path, split: str = "train", **options: Any) -> BadItem:
    """The one item of a data set is bad: how?"""
    reader = open_reader(data_format, str(root), split, Options(**options))
    listing = reader.list_items()
    if listing.orphans:
        (orphan,) = listing.orphans
        return orphan
    (item,) = listing.items
    with pytest.raises(BadItem) as caught:
        reader.read(item)
    return caught.value


def write_voc(root: Path, masks: dict[str, np.ndarray], split: str = "train") -> Path:
    """VOC2012: palette masks, photographs, the list of a split, and a photograph that has no mask."""
    for name, mask in masks.items():
        write_palette_mask(root / "SegmentationClass" / f"{name}.png", mask)
        write_photograph(root / "JPEGImages" / f"{name}.jpg", mask.shape)
    write_photograph(root / "JPEGImages/2007_999999.jpg")
    write(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in sorted(masks)).encode())
    return root


def write_panoptic(root: Path, pictures: dict[str, tuple[np.ndarray, list[dict[str, Any]]]], **more: Any) -> Path:
    """COCO panoptic of split val2017: for each name codes H x W and segments_info."""
    images, annotations = [], []
    for number, (name, (codes, segments)) in enumerate(pictures.items(), 1):
        rgb = np.stack([codes & 255, codes >> 8 & 255, codes >> 16], axis=-1).astype(np.uint8)
        write(root / f"annotations/panoptic_val2017/{name}.png", encode_image(rgb, "png"))
        write_photograph(root / f"val2017/{name}.jpg", codes.shape)
        images.append({"id": number, "file_name": f"{name}.jpg", "height": codes.shape[0], "width": codes.shape[1]})
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    document = {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": []} | more
    write(root / "annotations/panoptic_val2017.json", json.dumps(document).encode())
    return root


def segment(id_: int, category: int, **more: Any) -> dict[str, Any]:
    return {"id": id_, "category_id": category, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0} | more
