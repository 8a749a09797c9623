"""Parts of a data set: fractions of the published sizes that lie in each other, the first N, and lists of names."""

from itertools import pairwise
from pathlib import Path

import pytest
from look_alikes import write

from segdatagen.datasets.partition import PartReader, parse_partition
from segdatagen.datasets.reader import BadItem, Item, Listing, RawSource
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet, load_label_set


class Names:
    """A data set that is only listed."""

    def __init__(self, items: list[Item], orphans: tuple[BadItem, ...] = ()) -> None:
        self._listing = Listing(tuple(items), orphans)

    @property
    def label_set(self) -> LabelSet:
        return load_label_set("voc")

    def list_items(self) -> Listing:
        return self._listing

    def read(self, item: Item) -> RawSource:
        raise AssertionError("nothing is read")


def voc_item(name: str) -> Item:
    return Item(name, f"SegmentationClass/{name}.png", f"JPEGImages/{name}.jpg")


VOC = [voc_item(f"2007_{number:06d}") for number in range(1464)]


def chosen(items: list[Item], partition: str) -> list[str]:
    listing = PartReader(Names(items), parse_partition(partition)).list_items()
    assert not listing.orphans
    return [item.source_id for item in listing.items]


def test_fractions_of_voc_have_the_published_sizes_and_lie_in_each_other() -> None:
    parts = [chosen(VOC, partition) for partition in ("1/16", "1/8", "1/4", "1/2")]
    assert [len(part) for part in parts] == [92, 183, 366, 732]
    for small, large in pairwise(parts):
        assert set(small) < set(large)
    assert parts[0] == sorted(parts[0])
    # Drawn, not cut: the first half of the ids holds about half of the part.
    assert 20 < sum(name < "2007_000732" for name in parts[0]) < 72


def test_a_fraction_depends_on_the_ids_alone() -> None:
    assert set(chosen(VOC[::-1], "1/8")) == set(chosen(VOC, "1/8"))
    assert chosen(VOC[:3], "1/1000") == chosen(VOC[:3], "1/3")


def test_the_first_items_are_those_that_stand_first() -> None:
    assert chosen(VOC, "first:3") == ["2007_000000", "2007_000001", "2007_000002"]
    assert len(chosen(VOC, "first:1464")) == 1464


@pytest.mark.parametrize(
    "line",
    [
        "2007_000007",
        "2007_000007.jpg",
        "JPEGImages/2007_000007.jpg",
        "/data/VOC2012/JPEGImages/2007_000007.jpg",
        "JPEGImages/2007_000007.jpg SegmentationClassAug/2007_000007.png",
        "  SegmentationClass/2007_000007.png\t",
    ],
)
def test_lists_may_name_ids_or_files(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "list.txt", f"# labelled\n\n{line}\r\n2007_000003\n".encode())
    assert chosen(VOC, str(path)) == ["2007_000003", "2007_000007"]


def test_a_byte_order_mark_belongs_to_no_name_and_only_newlines_end_one(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "\ufeff2007_000003\nwest\u2028east\n".encode())
    assert chosen([*VOC, Item("west\u2028east", "w.png")], str(path)) == ["2007_000003", "west\u2028east"]


def test_names_with_spaces_are_names(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", b"my dog 1\n")
    assert chosen([Item("my dog 1", "my dog 1.png"), Item("my", "my.png")], str(path)) == ["my dog 1"]


def test_an_id_goes_before_a_file_of_that_name(tmp_path: Path) -> None:
    items = [Item("1", "1.png"), Item("a/1", "a/1.png")]
    assert chosen(items, str(write(tmp_path / "list.txt", b"1\n"))) == ["1"]


def test_lists_of_cityscapes_name_masks_of_either_kind(tmp_path: Path) -> None:
    stem = "aachen_000000_000019"
    item = Item(
        stem,
        f"gtFine/train/aachen/{stem}_gtFine_labelIds.png",
        f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png",
    )
    line = f"{item.image_name} gtFine/train/aachen/{stem}_gtFine_labelTrainIds.png"
    assert chosen([item, voc_item("2007_000001")], str(write(tmp_path / "list.txt", line.encode()))) == [stem]


def test_what_is_listed_and_not_there_is_no_secret(tmp_path: Path) -> None:
    alone = BadItem("mask without image", "SegmentationClass/2007_000009.png")
    other = BadItem("mask without image", "SegmentationClass/2007_000010.png")
    path = write(tmp_path / "list.txt", b"2007_000001\n2009_123456\n2007_000009\n")
    listing = PartReader(Names(VOC[:3], (alone, other)), parse_partition(str(path))).list_items()
    assert [item.source_id for item in listing.items] == ["2007_000001"]
    assert [(bad.problem, bad.file_name) for bad in listing.orphans] == [
        ("not in the data set", "2009_123456"),
        ("mask without image", alone.file_name),
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("2007_000001\n2007_000001.jpg\n", "2007_000001 and 2007_000001.jpg are the same item"),
        ("2007_000001 -1\n", "-1 is no file of 2007_000001: name one item per line"),  # a list of ImageSets/Main
        ("2007_000001.jpg 2007_000002.png\n", "2007_000002.png is no file of 2007_000001"),
        ("2007_000001 2007_0000012\n", "2007_0000012 is no file of 2007_000001"),  # ids that begin alike
        ("\n# nothing\n", "names nothing"),
        ("1\n", "1 means several items (a/1, b/1)"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(tmp_path: Path, lines: str, problem: str) -> None:
    items = [*VOC[:5], Item("a/1", "a/1.png"), Item("b/1", "b/1.png")]
    path = write(tmp_path / "list.txt", lines.encode())
    with pytest.raises(UsageError) as caught:
        chosen(items, str(path))
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("partition", "problem"),
    [
        ("first:0", "at least one item"),
        ("first:", "--partition first:: at least one item, as in first:100"),
        ("first:many", "at least one item"),
        ("x" * 300, "cannot be read (File name too long); --partition is first:N"),
        ("first:1465", "there are only 1464 items"),
        ("0/4", "a fraction lies between 0 and 1"),
        ("4/4", "a fraction lies between 0 and 1"),
        ("1/0", "a fraction lies between 0 and 1"),
        ("nowhere.txt", "nowhere.txt: no such file; --partition is first:N, a fraction such as 1/16, or a file"),
    ],
)
def test_partitions_that_are_none_are_refused(partition: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(VOC, partition)
    assert problem in str(caught.value)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a text file"):
        parse_partition(str(write(tmp_path / "list.txt", b"\xff\xfe\x00")))
