"""Pixels to bytes and back: photographs, masks of class ids, and their hashes.

Masks are lossless PNG, 8 bit or 16 bit past id 255, and are only ever resized with nearest neighbour. This module
does not know label sets or where bytes are stored.
"""

import io
from typing import Literal

import cv2
import numpy as np
import PIL
import PIL.Image
import xxhash

from segdatagen.errors import SegdatagenError

Image = np.ndarray
"""uint8 H x W x 3, RGB."""
Mask = np.ndarray
"""uint8 or uint16 H x W of class ids."""
ImageFormat = Literal["jpeg95", "png"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH, PNG_COLOUR_TYPE = 24, 25
"""Where the header of a PNG has the bits of a sample, and what the samples are: 0 is grey."""
ORIENTATION = 0x0112
"""Of the tags of EXIF: how a picture is to be turned and mirrored for display. 1: as it is."""
UNREADABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, truncated, of no known kind, or claim to be of absurd size."""


class DecodeError(SegdatagenError):
    """The bytes are not a whole image of the kind that was expected."""


def encode_image(image: Image, image_format: ImageFormat = "jpeg95") -> bytes:
    """Encode an RGB image as PNG, or as JPEG of quality 95 without chroma subsampling (4:4:4)."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if image_format == "png":
        return _encode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _encode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling])


def decode_image(data: bytes) -> Image:
    """Decode a JPEG or PNG photograph to RGB. Raises DecodeError on anything that is not a whole image of 8 bits.

    Pillow, because OpenCV fills the missing rest of a truncated file with grey and reports success.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            mode = picture.mode
            if mode[0] not in "IF":  # Pillow would cut their values off at 255
                return np.asarray(picture.convert("RGB"))
    except UNREADABLE as error:
        raise _unreadable(error) from error
    raise DecodeError(f"a photograph has 8 bits per channel, this file has mode {mode}: scale it to 8 bits")


def orientation(data: bytes) -> int:
    """How a picture is to be turned for display, by its EXIF: 1 (as it is) to 8. What is no number from 1 to 8 is 1."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            found = picture.getexif().get(ORIENTATION, 1)
    except UNREADABLE:  # tags may be damaged where pixels are whole
        return 1
    return int(found) if found in range(1, 9) else 1


def decode_annotation(data: bytes) -> np.ndarray:
    """Decode a mask file as a data set ships it: H x W ids (grey, 16 bit, palette index) or H x W x 3 colours.

    Raises DecodeError on anything that is not a whole image of one of these kinds, and on a JPEG: it blends ids.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            mode, pixels, is_lossy = picture.mode, np.array(picture), picture.format in ("JPEG", "MPO")
    except UNREADABLE as error:
        raise _unreadable(error) from error
    if is_lossy:
        raise DecodeError("a mask is lossless, this file is a JPEG: take the PNG that it was made from")
    if mode == "L" and data.startswith(PNG_SIGNATURE) and data[PNG_COLOUR_TYPE] == 0:
        pixels //= 255 // ((1 << data[PNG_DEPTH]) - 1)  # Pillow stretches 2 and 4 bits over 0..255
        return pixels
    if mode in ("L", "P"):
        return pixels
    if mode in ("1", "I", "I;16", "I;16B"):
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > np.iinfo(np.uint16).max:
            raise DecodeError("a mask has ids from 0 to 65535, this file has others")
        return pixels.astype(np.uint16)
    if mode == "RGBA" and pixels[..., 3].min(initial=255) < 255:
        raise DecodeError("a mask in colours is opaque, this file has transparent pixels: flatten it")
    if mode in ("RGB", "RGBA"):
        return np.ascontiguousarray(pixels[..., :3])
    raise DecodeError(f"a mask is grey, palette or RGB, this file has mode {mode}")


def palette_colours(data: bytes) -> np.ndarray | None:
    """The colours uint8 H x W x 3 that a mask file with a palette shows, None where it has none.

    Raises DecodeError on anything that is not a whole image.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB")) if picture.mode == "P" else None
    except UNREADABLE as error:
        raise _unreadable(error) from error


def decode_rgba(data: bytes) -> np.ndarray:
    """Decode a picture whose four channels are numbers: uint8 H x W x 4. Raises DecodeError on anything else."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except UNREADABLE as error:
        raise _unreadable(error) from error
    if mode != "RGBA":
        raise DecodeError(f"four channels are expected (RGBA), this file has mode {mode}")
    return pixels


def encode_mask(mask: Mask) -> bytes:
    """Encode class ids as PNG: 8 bit grey, or 16 bit for uint16 masks."""
    if mask.dtype not in (np.uint8, np.uint16) or mask.ndim != 2:
        raise ValueError(f"a mask is uint8 or uint16 of two dimensions, not {mask.dtype} of shape {mask.shape}")
    return _encode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def decode_mask(data: bytes) -> Mask:
    """Decode the PNG of class ids that `encode_mask` writes. Raises DecodeError on anything else."""
    if not data.startswith(PNG_SIGNATURE):
        raise DecodeError("not a PNG")
    try:
        mask: Mask | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DecodeError("not a readable PNG (damaged, or of absurd size)") from error
    if mask is None:
        raise DecodeError("not a readable PNG")
    if mask.ndim != 2:
        raise DecodeError(f"a mask of class ids has one channel, this PNG has {mask.shape[2]}")
    return mask


def pixel_hash(pixels: np.ndarray) -> str:
    """xxh3-128 of shape, type and pixels: equal for equal pixels whatever they were encoded with."""
    digest = xxhash.xxh3_128(f"{pixels.dtype}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def class_pixels(mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Ids that occur in a mask, ascending, and the pixels of each: two int64 arrays of one length."""
    counts = np.bincount(mask.ravel())
    ids = np.flatnonzero(counts)
    return ids, counts[ids]


def _unreadable(error: Exception) -> DecodeError:
    # Pillow's own sentence for bytes that it does not know holds the address of an object: another one in each run.
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    return DecodeError("not a readable image (of no known kind)" if unknown else f"not a readable image ({error})")


def _encode(suffix: str, pixels: np.ndarray, options: list[int]) -> bytes:
    succeeded, encoded = cv2.imencode(suffix, pixels, options)
    if not succeeded:
        raise ValueError(f"cannot encode {pixels.dtype} of shape {pixels.shape} as {suffix}")
    return encoded.tobytes()
