"""Masks to colours and back: exact where colours are, nearest elsewhere, with figures for what was between."""

from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.colours import (
    DISTANCE_EDGES,
    ColourDecoder,
    colour_book,
    encode,
    furthest_colour,
    ignore_colour_of,
    quality_of,
    unknown_colours,
)
from segdatagen.errors import UsageError
from segdatagen.labels import LabelClass, LabelSet, load_label_set, shipped_label_sets


def label_set_of(colours: np.ndarray, first_id: int = 0, ignore_ids: tuple[int, ...] = ()) -> LabelSet:
    classes = tuple(
        LabelClass(id=first_id + i, name=f"class {i}", prompt=f"class {i}", colour=tuple(colour), kind="stuff")
        for i, colour in enumerate(colours.tolist())
    )
    return LabelSet(name="made", version="1", classes=classes, ignore_ids=ignore_ids)


def random_palette(num_colours: int, seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).choice(1 << 24, num_colours, replace=False)
    return np.stack([codes & 255, codes >> 8 & 255, codes >> 16], axis=1).astype(np.uint8)


def lattice_palette() -> np.ndarray:
    """27 colours in even steps of 64: between them lie planes, lines and points of equally near colours."""
    steps = [60, 124, 188]
    lattice = np.array([[r, g, b] for r in steps for g in steps for b in steps], dtype=np.uint8)
    return np.random.default_rng(5).permutation(lattice)


def brute_force_channels(colour_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    pixels = colour_map.reshape(-1, 3).astype(np.int32)
    best = np.full(len(pixels), np.iinfo(np.int32).max)
    channels = np.zeros(len(pixels), dtype=np.int64)
    for channel, colour in enumerate(colours.astype(np.int32)):
        squared = ((pixels - colour) ** 2).sum(axis=1)
        nearer = squared < best
        best[nearer], channels[nearer] = squared[nearer], channel
    return channels.reshape(colour_map.shape[:2])


def near_ties(colours: np.ndarray) -> np.ndarray:
    """Colours around the middle between pairs of palette colours, where the nearest one changes."""
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, len(colours), (4000, 2))
    middles = colours.astype(np.int64)[pairs].sum(axis=1) // 2
    return np.clip(middles[:, None] + rng.integers(-1, 2, (1, 25, 3)), 0, 255).astype(np.uint8)


def coarse_grid(step: int) -> np.ndarray:
    axis = np.append(np.arange(0, 256, step), 255)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(len(axis), -1, 3).astype(np.uint8)


PALETTES = {
    "one": random_palette(1),
    "two": random_palette(2),
    "lattice": lattice_palette(),
    "grey": np.repeat(np.random.default_rng(2).permutation(256)[:80, None], 3, axis=1).astype(np.uint8),
    "150": random_palette(150),
    "400": random_palette(400),
    **{name: load_label_set(name).colours for name in shipped_label_sets()},
}


@pytest.mark.parametrize("palette", PALETTES)
def test_decoding_equals_brute_force(palette: str) -> None:
    colours = PALETTES[palette]
    decoder = ColourDecoder(label_set_of(colours))
    random = np.random.default_rng(3).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    for colour_map in (random, near_ties(colours), coarse_grid(17), colours[None]):
        assert np.array_equal(decoder.decode(colour_map), brute_force_channels(colour_map, colours))


def test_decoding_equals_brute_force_for_every_colour() -> None:
    colours = lattice_palette()[:4]
    codes = np.arange(1 << 24, dtype=np.uint32).reshape(4096, 4096)
    colour_map = np.stack([codes & 255, codes >> 8 & 255, codes >> 16], axis=-1).astype(np.uint8)
    decoded = ColourDecoder(label_set_of(colours)).decode(colour_map)
    for rows in range(0, 4096, 512):
        part = slice(rows, rows + 512)
        assert np.array_equal(decoded[part], brute_force_channels(colour_map[part], colours))


@given(st.data())
@settings(max_examples=6)
def test_decoding_equals_brute_force_for_clustered_colours(data: st.DataObject) -> None:
    centre = data.draw(st.tuples(*[st.integers(0, 252)] * 3))
    offsets = data.draw(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=64, unique=True))
    colours = np.array(offsets, dtype=np.uint8) + np.array(centre, dtype=np.uint8)
    around = np.clip(np.array(centre) + np.random.default_rng(4).integers(-20, 24, (40, 50, 3)), 0, 255)
    for colour_map in (around.astype(np.uint8), coarse_grid(51)):
        decoded = ColourDecoder(label_set_of(colours)).decode(colour_map)
        assert np.array_equal(decoded, brute_force_channels(colour_map, colours))


def test_a_tie_goes_to_the_lowest_channel_and_not_the_lowest_id() -> None:
    classes = (
        LabelClass(id=9, name="a", prompt="a", colour=(20, 0, 0), kind="stuff"),
        LabelClass(id=3, name="b", prompt="b", colour=(10, 0, 0), kind="stuff"),
    )
    decoder = ColourDecoder(LabelSet(name="pair", version="1", classes=classes))
    assert decoder.decode(np.array([[[15, 0, 0], [14, 0, 0]]], dtype=np.uint8)).tolist() == [[9, 3]]


@pytest.mark.parametrize("name", shipped_label_sets())
def test_round_trip_of_shipped_sets_with_their_ignored_pixels(name: str) -> None:
    labels = load_label_set(name)
    allowed = np.append(labels.ids, labels.ignore_ids[:1]).astype(np.uint8)
    mask = np.random.default_rng(6).choice(allowed, (90, 110))
    decoder = ColourDecoder(labels, with_ignore=bool(labels.ignore_ids))
    colour_map = encode(mask, labels)
    assert colour_map.shape == (90, 110, 3)
    assert colour_map.dtype == np.uint8
    decoded = decoder.decode(colour_map)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, mask)


def test_ids_past_255_round_trip_as_uint16() -> None:
    labels = label_set_of(random_palette(40), first_id=65490, ignore_ids=(0,))
    mask = np.random.default_rng(7).choice(labels.ids, (30, 40)).astype(np.uint16)
    decoded = ColourDecoder(labels).decode(encode(mask, labels))
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, mask)


def test_each_id_is_encoded_in_the_colour_of_its_class() -> None:
    labels = load_label_set("camvid")
    mask = np.array([[8, 0], [11, 10]], dtype=np.uint8)
    expected = [[[64, 0, 128], [128, 128, 128]], [[0, 0, 0], [0, 128, 192]]]
    assert encode(mask, labels).tolist() == expected
    assert encode(mask.astype(np.uint16), labels).tolist() == expected
    assert encode(mask[:, ::-1], labels).tolist() == [row[::-1] for row in expected]


def test_an_unknown_id_is_refused_by_name() -> None:
    mask = np.array([[0, 12, 200]], dtype=np.uint8)
    with pytest.raises(UsageError, match=r"ids \[12, 200\] that label set camvid does not know"):
        encode(mask, load_label_set("camvid"))


def test_a_given_ignore_colour_is_used_unless_a_class_has_it() -> None:
    labels = load_label_set("voc")
    mask = np.array([[255, 1]], dtype=np.uint8)
    assert encode(mask, labels, ignore_colour=(224, 224, 192)).tolist() == [[[224, 224, 192], [128, 0, 0]]]
    with pytest.raises(UsageError, match="is that of a class of label set voc"):
        encode(mask, labels, ignore_colour=(128, 0, 0))


@pytest.mark.parametrize("name", shipped_label_sets())
def test_the_ignore_colour_is_no_class_colour(name: str) -> None:
    labels = load_label_set(name)
    taken = {tuple(colour) for colour in labels.colours.tolist()}
    ignore = ignore_colour_of(labels)
    assert ignore == (0, 0, 0) or (0, 0, 0) in taken
    assert ignore not in taken


def test_the_furthest_colour_is_the_furthest_of_the_grid() -> None:
    assert furthest_colour(np.array([[0, 0, 0]], dtype=np.uint8)) == (255, 255, 255)
    assert furthest_colour(np.array([[0, 0, 0], [255, 255, 255]], dtype=np.uint8)) in {(0, 0, 255), (0, 128, 255)}


def test_without_a_free_grid_colour_the_user_is_told() -> None:
    with pytest.raises(UsageError, match="leaves no colour free"):
        furthest_colour(coarse_grid(32).reshape(-1, 3))


def test_an_ignored_pixel_decodes_to_a_class_unless_ignore_is_asked_for() -> None:
    labels = load_label_set("camvid")
    black = np.zeros((1, 1, 3), dtype=np.uint8)
    assert ColourDecoder(labels).decode(black).tolist() == brute_force_channels(black, labels.colours).tolist()
    assert ColourDecoder(labels, with_ignore=True).decode(black).tolist() == [[11]]


def test_ignore_cannot_be_decoded_where_no_id_is_ignored() -> None:
    with pytest.raises(UsageError, match="colourbook_bdd ignores no id"):
        ColourDecoder(load_label_set("colourbook_bdd"), with_ignore=True)


def test_distance_is_euclidean_and_limited_on_demand() -> None:
    decoder = ColourDecoder(load_label_set("voc"))
    colour_map = np.array([[[0, 0, 0], [3, 0, 4]], [[128, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    mask, distance = decoder.decode_exact(colour_map)
    assert np.array_equal(mask, decoder.decode(colour_map))
    squared = ((colour_map.astype(int) - decoder.label_set.colours[mask].astype(int)) ** 2).sum(axis=-1)
    assert np.allclose(distance, np.sqrt(squared))
    assert distance[:, 0].tolist() == [0.0, 0.0]
    assert distance[0, 1] == 5.0
    decoder.decode_exact(colour_map[:1], max_distance=5)
    with pytest.raises(
        UsageError, match=r"^1 pixels are further than 5 .* row 1, column 1 with colour \[255, 255, 255\]"
    ):
        decoder.decode_exact(colour_map, max_distance=5)
    with pytest.raises(UsageError, match=r"^2 pixels are further than 4\.9 "):
        decoder.decode_exact(colour_map, max_distance=4.9)


def test_views_and_read_only_maps_are_decoded_alike() -> None:
    decoder = ColourDecoder(load_label_set("voc"))
    colour_map = np.random.default_rng(8).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    colour_map.flags.writeable = False
    assert np.array_equal(decoder.decode(colour_map[::-2, 3:40:5]), decoder.decode(colour_map)[::-2, 3:40:5])


@pytest.mark.parametrize("colour_map", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_colour_map_is_refused(colour_map: np.ndarray) -> None:
    with pytest.raises(ValueError, match="H x W x 3"):
        ColourDecoder(load_label_set("voc")).decode(colour_map)


def test_quality_of_a_clean_map_finds_nothing_wrong() -> None:
    labels = load_label_set("camvid")
    mask = np.repeat(np.arange(11, dtype=np.uint8), 20)[None].repeat(30, axis=0)
    quality = quality_of(encode(mask, labels), ColourDecoder(labels))
    assert quality.num_pixels == 30 * 220
    assert quality.distance_histogram == (6600, *[0] * (len(DISTANCE_EDGES) - 2))
    assert (quality.mean_distance, quality.far_share, quality.speckle_share) == (0.0, 0.0, 0.0)
    assert quality.class_ids == tuple(range(11))
    assert quality.class_pixels == (600,) * 11


def test_quality_counts_what_was_put_into_a_map() -> None:
    labels = load_label_set("voc")
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[5:8, 5:10] = 1  # 15 pixels of class 1: speckle below 16.
    mask[5:8, 10:15] = 2  # 15 more of another class that touch them: still two specks.
    mask[20:24, 20:24] = 3  # 16 pixels: no speckle.
    mask[30, 30] = mask[31, 31] = 4  # Two that touch at a corner only.
    colour_map = encode(mask, labels)
    colour_map[0, :10, 2] += 5  # Ten background pixels at distance 5.
    colour_map[39, :4] = (60, 60, 60)  # Four at distance 60 sqrt 3 = 103.9 of black, nearer to dark green (0, 64, 0).
    quality = quality_of(colour_map, ColourDecoder(labels), far_distance=50.0)
    assert brute_force_channels(colour_map, labels.colours)[39, 0] == 8
    far = float(np.sqrt(4**2 + 60**2 + 60**2))
    assert quality.num_pixels == 2000
    assert quality.distance_histogram == (2000 - 14, 0, 10, 0, 0, 0, 4, 0)
    assert quality.mean_distance == pytest.approx((10 * 5 + 4 * far) / 2000)
    assert quality.far_share == pytest.approx(4 / 2000)
    assert quality.speckle_share == pytest.approx((15 + 15 + 1 + 1 + 4) / 2000)
    assert quality.class_ids == (0, 1, 2, 3, 4, 8)
    assert quality.class_pixels == (2000 - 15 - 15 - 16 - 2 - 4, 15, 15, 16, 2, 4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
@settings(max_examples=30)
def test_speckle_equals_components_found_class_by_class(seed: int, speckle_pixels: int) -> None:
    labels = load_label_set("camvid")
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, rng.integers(1, 25, 2), dtype=np.uint8)
    expected = 0
    for id_ in range(3):
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == id_).astype(np.uint8), connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]
        expected += int(areas[areas < speckle_pixels].sum())
    quality = quality_of(encode(mask, labels), ColourDecoder(labels), speckle_pixels=speckle_pixels)
    assert quality.speckle_share == pytest.approx(expected / mask.size)


def test_unknown_colours_are_listed_exactly_and_most_first() -> None:
    labels = load_label_set("camvid")
    rng = np.random.default_rng(9)
    colour_map = encode(rng.integers(0, 12, (60, 70), dtype=np.uint8), labels)
    colour_map[rng.random((60, 70)) < 0.3] = (1, 2, 3)
    colour_map[5, 5:9] = (3, 2, 1)
    colour_map[7, 7] = (128, 128, 129)
    pixels = Counter(map(tuple, colour_map.reshape(-1, 3).tolist()))
    known = set(map(tuple, labels.colours.tolist()))
    expected = {colour: count for colour, count in pixels.items() if colour not in known}
    found = unknown_colours(colour_map, labels)
    assert found == expected
    assert (0, 0, 0) in found
    assert list(found.values()) == sorted(found.values(), reverse=True)
    del expected[0, 0, 0]
    assert unknown_colours(colour_map, labels, with_ignore=True) == expected


def test_a_clean_map_has_no_unknown_colours() -> None:
    labels = load_label_set("voc")
    mask = np.random.default_rng(10).integers(0, 21, (20, 30), dtype=np.uint8)
    assert unknown_colours(encode(mask, labels), labels) == {}


@pytest.mark.parametrize("name", shipped_label_sets())
def test_colour_book_shows_each_colour_in_channel_order(name: str) -> None:
    labels = load_label_set(name)
    book = colour_book(labels)
    assert book.dtype == np.uint8
    pixels = Counter(map(tuple, book.reshape(-1, 3).tolist()))
    assert all(pixels[tuple(colour)] >= 500 for colour in labels.colours.tolist())
    first_rows = [np.argwhere((book == colour).all(axis=-1)).mean(axis=0)[0] for colour in labels.colours[1:4]]
    assert first_rows == sorted(first_rows)


def test_colour_book_of_many_classes_has_several_columns() -> None:
    labels = label_set_of(random_palette(150), ignore_ids=(255,))
    book = colour_book(labels)
    pixels = Counter(map(tuple, book.reshape(-1, 3).tolist()))
    assert all(pixels[tuple(colour)] >= 500 for colour in labels.colours.tolist())
    assert pixels[ignore_colour_of(labels)] >= 500
    assert book.shape[0] < 1000
