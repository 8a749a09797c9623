"""Pixels to bytes and back: what is lossless, what is refused, and what a hash stands for."""

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.images import (
    PNG_SIGNATURE,
    DecodeError,
    class_pixels,
    decode_annotation,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    orientation,
    pixel_hash,
)

RNG = np.random.default_rng(1)
PHOTOGRAPH = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def smooth_photograph() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    return np.stack([rows * 5, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def file_of(picture: PIL.Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind)
    return sink.getvalue()


@given(st.sampled_from([np.uint8, np.uint16]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_masks_round_trip(kind: type, height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (height, width), kind, endpoint=True)
    for decode in (decode_mask, decode_annotation):
        decoded = decode(encode_mask(mask))
        assert decoded.dtype == kind
        assert np.array_equal(decoded, mask)


def test_other_programs_read_the_masks_that_are_written() -> None:
    mask = np.arange(0, 65536, 31, dtype=np.uint16)[:2100].reshape(42, 50)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(encode_mask(mask)))), mask)
    small = mask.astype(np.uint8)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(encode_mask(small)))), small)


def test_views_are_encoded_as_what_they_show() -> None:
    mask = RNG.integers(0, 12, (20, 30), dtype=np.uint8)
    assert np.array_equal(decode_mask(encode_mask(mask[::-1, ::2])), mask[::-1, ::2])
    assert np.array_equal(decode_image(encode_image(PHOTOGRAPH[:, ::-1], "png")), PHOTOGRAPH[:, ::-1])


def test_png_photographs_are_lossless_and_keep_the_order_of_channels() -> None:
    assert np.array_equal(decode_image(encode_image(PHOTOGRAPH, "png")), PHOTOGRAPH)
    with PIL.Image.open(io.BytesIO(encode_image(PHOTOGRAPH, "png"))) as picture:
        assert np.array_equal(np.asarray(picture), PHOTOGRAPH)


def test_jpeg_photographs_are_near_in_every_channel() -> None:
    photograph = smooth_photograph()
    decoded = decode_image(encode_image(photograph))
    assert np.abs(decoded.astype(int) - photograph).max() <= 8


def test_jpeg_keeps_colours_at_full_resolution() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (200, 40, 40), (40, 40, 200)
    decoded = decode_image(encode_image(stripes, "jpeg95")).astype(int)
    assert np.abs(decoded - stripes).mean() < 12  # With chroma at half the resolution it is 50 and more.


@pytest.mark.parametrize("mask", [np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), np.int64), np.zeros(9, np.uint8)])
def test_what_is_no_mask_is_not_encoded(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        encode_mask(mask)


@pytest.mark.parametrize("decode", [decode_image, decode_annotation, decode_mask])
@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(decode: object, data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)  # type: ignore[operator]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_photographs_are_refused(share: float) -> None:
    for kind in ("png", "jpeg95"):
        data = encode_image(PHOTOGRAPH, kind)  # type: ignore[arg-type]
        with pytest.raises(DecodeError):
            decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("decode", [decode_annotation, decode_mask])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_masks_are_refused(decode: object, share: float) -> None:
    data = encode_mask(RNG.integers(0, 256, (64, 64), dtype=np.uint8))
    with pytest.raises(DecodeError):
        decode(data[: int(len(data) * share)])  # type: ignore[operator]


@pytest.mark.parametrize("decode", [decode_annotation, decode_mask])
def test_masks_with_a_wrong_byte_are_refused(decode: object) -> None:
    mask = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    data = bytearray(encode_mask(mask))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DecodeError):
        decode(bytes(data))  # type: ignore[operator]


@given(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=150)
def test_damage_is_refused_or_harmless(kind: int, changes: list[tuple[int, int]]) -> None:
    """Bytes at the front, where the header and its lengths are, take any value: nothing but DecodeError comes out."""
    wide = PHOTOGRAPH[..., 0].astype(np.uint16)
    files = [
        encode_image(PHOTOGRAPH, "png"),
        encode_image(PHOTOGRAPH),
        encode_mask(wide),
        encode_mask(PHOTOGRAPH[..., 0]),
    ]
    data = bytearray(files[kind])
    for place, value in changes:
        data[place] = value
    for decode in (decode_image, decode_annotation, decode_mask):
        with contextlib.suppress(DecodeError):
            assert decode(bytes(data)).dtype in (np.uint8, np.uint16)


def test_an_annotation_with_a_palette_gives_its_indices() -> None:
    ids = RNG.integers(0, 21, (15, 18), dtype=np.uint8)
    picture = PIL.Image.fromarray(ids, "P")
    picture.putpalette(RNG.integers(0, 256, 63, dtype=np.uint8).tobytes())
    assert np.array_equal(decode_annotation(file_of(picture)), ids)


def test_an_annotation_of_one_bit_gives_zero_and_one() -> None:
    ids = RNG.integers(0, 2, (15, 18), dtype=np.uint8)
    decoded = decode_annotation(file_of(PIL.Image.fromarray(ids.astype(bool))))
    assert np.array_equal(decoded, ids)


def test_an_annotation_of_sixteen_bits_keeps_ids_past_255() -> None:
    ids = RNG.integers(0, 65536, (15, 18), dtype=np.uint16)
    decoded = decode_annotation(file_of(PIL.Image.fromarray(ids)))
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, ids)


@pytest.mark.parametrize("value", [-1, 65536])
def test_an_annotation_with_ids_out_of_range_is_refused(value: int) -> None:
    ids = np.full((4, 4), value, np.int32)
    with pytest.raises(DecodeError, match="0 to 65535"):
        decode_annotation(file_of(PIL.Image.fromarray(ids), "TIFF"))


@pytest.mark.parametrize("decode", [decode_image, decode_annotation, decode_mask])
def test_a_file_that_claims_an_absurd_size_is_refused(decode: object) -> None:
    data = bytearray(encode_mask(np.zeros((8, 8), np.uint8)))
    data[16:24] = (600_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(DecodeError):
        decode(bytes(data))  # type: ignore[operator]


def test_an_annotation_in_colours_drops_an_opaque_alpha() -> None:
    colours = RNG.integers(0, 256, (15, 18, 3), dtype=np.uint8)
    assert np.array_equal(decode_annotation(file_of(PIL.Image.fromarray(colours))), colours)
    opaque = np.dstack([colours, np.full((15, 18), 255, np.uint8)])
    assert np.array_equal(decode_annotation(file_of(PIL.Image.fromarray(opaque))), colours)


def test_an_annotation_that_is_see_through_is_refused() -> None:
    colours = RNG.integers(0, 256, (15, 18, 4), dtype=np.uint8)
    with pytest.raises(DecodeError, match="transparent"):
        decode_annotation(file_of(PIL.Image.fromarray(colours)))


@pytest.mark.parametrize("mode", ["LA", "F", "CMYK"])
def test_an_annotation_of_another_kind_is_refused_by_name(mode: str) -> None:
    picture = PIL.Image.fromarray(PHOTOGRAPH).convert("L").convert(mode)
    with pytest.raises(DecodeError, match=mode):
        decode_annotation(file_of(picture, "PNG" if mode == "LA" else "TIFF"))


def test_a_stored_mask_is_never_a_jpeg() -> None:
    with pytest.raises(DecodeError, match="not a PNG"):
        decode_mask(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes())


def test_a_stored_mask_of_several_channels_is_refused() -> None:
    with pytest.raises(DecodeError, match="one channel, this PNG has 3"):
        decode_mask(encode_image(PHOTOGRAPH, "png"))


def test_grey_and_palette_photographs_become_rgb() -> None:
    grey = PHOTOGRAPH[..., 0]
    assert np.array_equal(decode_image(file_of(PIL.Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    palette = PIL.Image.fromarray(PHOTOGRAPH).quantize(16)
    assert np.array_equal(decode_image(file_of(palette)), np.asarray(palette.convert("RGB")))


def test_equal_pixels_have_equal_hashes_whatever_their_encoding_and_memory() -> None:
    mask = RNG.integers(0, 12, (20, 30), dtype=np.uint8)
    fast = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    assert fast != encode_mask(mask)
    assert pixel_hash(decode_mask(fast)) == pixel_hash(mask)
    assert pixel_hash(np.asfortranarray(mask)) == pixel_hash(mask) == pixel_hash(mask[::-1][::-1])


def test_other_pixels_shapes_and_types_have_other_hashes() -> None:
    mask = RNG.integers(0, 12, (20, 30), dtype=np.uint8)
    changed = mask.copy()
    changed[7, 9] += 1
    others = [changed, mask.reshape(30, 20), mask[..., None], mask.astype(np.uint16), mask.view(np.int8)]
    assert len({pixel_hash(pixels) for pixels in [mask, *others]}) == 6
    assert len(pixel_hash(mask)) == 32


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=60))
def test_class_pixels_equal_a_count_by_hand(values: list[int]) -> None:
    ids, pixels = class_pixels(np.array([values], np.uint16))
    assert ids.tolist() == sorted(set(values))
    assert pixels.tolist() == [values.count(id_) for id_ in sorted(set(values))]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grey_annotation_of_few_bits_keeps_its_ids(bits: int) -> None:
    """Pillow stretches the grey of 2 and 4 bits over 0 to 255."""
    ids = RNG.integers(0, 2**bits, (15, 18), dtype=np.uint8)
    assert np.array_equal(decode_annotation(grey_png(ids, bits)), ids)


def grey_png(samples: np.ndarray, bits: int) -> bytes:
    """A grey PNG with so many bits a pixel, chunk by chunk as its specification says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = samples.shape
    rows = np.packbits(np.unpackbits(samples[..., None], axis=2)[:, :, 8 - bits :].reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("tag", "turned"), [(6, 6), (1, 1), (0, 1), (9, 1)])
def test_the_orientation_is_that_of_exif(tag: int, turned: int) -> None:
    sink, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = tag
    PIL.Image.fromarray(PHOTOGRAPH).save(sink, "JPEG", exif=exif)
    data = bytearray(sink.getvalue())
    assert orientation(bytes(data)) == turned
    start = data.index(b"Exif")
    data[start + 6 : start + 30] = bytes(24)
    assert orientation(bytes(data)) == 1, "what is damaged says nothing"


def test_an_annotation_is_never_a_jpeg() -> None:
    with pytest.raises(DecodeError, match="a mask is lossless, this file is a JPEG"):
        decode_annotation(encode_image(PHOTOGRAPH))


@pytest.mark.parametrize(("values", "mode"), [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_a_photograph_of_more_than_eight_bits_is_refused(values: type, mode: str) -> None:
    picture = PIL.Image.fromarray(np.arange(0, 4096, 16).reshape(16, 16).astype(values))
    with pytest.raises(DecodeError, match=f"8 bits per channel, this file has mode {mode}"):
        decode_image(file_of(picture, "TIFF"))
