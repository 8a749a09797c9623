"""The rows that segdatagen stores: one Arrow schema per table, the identity of a sample, and its seeds.

Every table is plain Parquet that opens without segdatagen. Images and masks are encoded bytes, never tensors. This
module does not know where tables lie or how a sample is made.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

FormatVersion = Literal["1"]
FORMAT_VERSION: FormatVersion = "1"

Status = Literal["ok", "rejected", "failed"]
"""`ok`: to be trained on. `rejected`: made, but a filter refused it. `failed`: could not be made."""

_METADATA = {b"format_version": FORMAT_VERSION.encode()}

SEGMENTS = pa.list_(
    pa.struct(
        [
            pa.field("id", pa.int32()),  # value in `segment_map`
            pa.field("class_id", pa.int32()),
            pa.field("area", pa.int64()),  # pixels
            pa.field("bbox", pa.list_(pa.int32())),  # x, y, width, height in pixels
            pa.field("iscrowd", pa.bool_()),
        ]
    )
)

SOURCE_SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.large_binary()),  # the file as it was found: JPEG or PNG
        pa.field("mask", pa.large_binary()),  # PNG of class ids at native size; null: the source is a caption alone
        pa.field("segment_map", pa.large_binary()),  # PNG of segment ids, 16 bit past 255, 0 = none
        pa.field("segments", SEGMENTS),
        pa.field("height", pa.int32()),  # null without a mask
        pa.field("width", pa.int32()),
        pa.field("class_ids", pa.list_(pa.int32()), nullable=False),  # classes in the mask, without ignore ids
        pa.field("class_pixels", pa.list_(pa.int64()), nullable=False),  # pixels of each of `class_ids`
        pa.field("caption", pa.string()),
    ],
    metadata=_METADATA,
)

SCORED = ("score", pa.string()), ("value", pa.float32())  # name of the score, as of its column without `score_`
CLASS_SCORES = pa.list_(pa.struct([("class_id", pa.int32()), *SCORED]))
CANDIDATES = pa.list_(pa.struct([("seed", pa.int64()), *SCORED]))

PLAN_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),  # name of the part in the source store
        pa.field("source_row", pa.int32(), nullable=False),  # row in that part
        pa.field(
            "variant", pa.int32(), nullable=False
        ),  # counts on per (source, method) across rounds, to a new mask where they share one
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("target_class", pa.string()),  # the class that asked for it, where one did
    ],
    metadata=_METADATA,
)

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),  # which attempt of the run made it
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # why it is not `ok`
        pa.field("image", pa.large_binary()),
        pa.field("mask", pa.large_binary()),  # PNG of class ids
        pa.field("segment_map", pa.large_binary()),  # as of the source, at the size of the mask; null: it is semantic
        pa.field("segments", SEGMENTS),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("class_ids", pa.list_(pa.int32())),
        pa.field("class_pixels", pa.list_(pa.int64())),
        pa.field("caption", pa.string()),
        pa.field("caption_from", pa.string()),  # `model`, `data set`, or `classes`: a sentence of their names
        pa.field("prompt", pa.string()),
        pa.field("negative_prompt", pa.string()),
        pa.field("prompt_notes", pa.string()),  # what had no room among the tokens; null: nothing
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("microbatch", pa.int32()),  # batch shape that the network really saw
        pa.field("layout_microbatch", pa.int32()),  # the same of the network that drew the mask; null: none did
        pa.field("image_hash", pa.string()),  # xxh3-128 of the stored bytes
        pa.field("mask_hash", pa.string()),
        pa.field("score_deviation", pa.float32()),  # standard deviation of the image's levels, 0 to 127.5; 0: blank
        pa.field("score_adherence", pa.float32()),  # mean IoU of the mask's classes under a segmenter, 0 to 1
        pa.field("score_target", pa.float32()),  # IoU, under the same, of the class that asked for it, 0 to 1
        pa.field("score_source_distance", pa.float32()),  # bits of 64 that differ from the hash of its own source
        pa.field("score_duplicate_distance", pa.float32()),  # the same from the nearest of all sources
        pa.field("score_ignored", pa.float32()),  # share of the labelled pixels that were ignored as noisy
        pa.field("score_off_palette", pa.float32()),  # share of the drawn mask's pixels that are far from every colour
        pa.field("score_speckle", pa.float32()),  # share of its pixels in small regions of one class
        pa.field("score_classes_found", pa.float32()),  # share of the classes asked for that it shows
        pa.field("score_layout_distance", pa.float32()),  # bits of 64 that differ from the nearest real mask's hash
        pa.field("score_clip", pa.float32()),  # mean over the classes of the mask of their CLIP scores
        pa.field("scores_per_class", CLASS_SCORES),
        pa.field("candidates", CANDIDATES),  # what was drawn and not taken; value null: NaN or infinity
        pa.field(
            "layout_candidates", CANDIDATES
        ),  # masks that were drawn before it and refused, with what refused them
        pa.field("seconds", pa.float32()),  # time of the sample's share in its batch
    ],
    metadata=_METADATA,
)

SCORE_PREFIX = "score_"
SCORE_COLUMNS = tuple(name for name in SAMPLE_SCHEMA.names if name.startswith(SCORE_PREFIX))
"""Columns of figures that a stage left: a float or null per sample."""

DECISION_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # `ok` or `rejected`, in place of that of the sample's row
        pa.field("reason", pa.string()),  # why it is not `ok`
    ],
    metadata=_METADATA,
)

SOURCE_HASH_SCHEMA = pa.schema(
    [
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("hash", pa.uint64()),  # perceptual hash of its image at the size of the samples
    ],
    metadata=_METADATA,
)


def score_words(column: str) -> str:
    """A score column as reasons and reports say it: `score_source_distance` is the source distance."""
    return column.removeprefix(SCORE_PREFIX).replace("_", " ")


def _digest63(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def sample_id_of(content_fingerprint: str, source_id: str, method: str, variant: int) -> int:
    """Identity of a sample: 63 bits of blake2b over what decides it (DESIGN.md, Identity)."""
    return _digest63(f"{content_fingerprint}\x1f{source_id}\x1f{method}\x1f{variant}")


def derive_seed(seed: int, *scope: int | str) -> int:
    """A 63-bit seed from a parent seed and what it is for, independent of order, batch and clock."""
    return _digest63("\x1f".join(map(str, (seed, *scope))))


def sample_ids_of(
    content_fingerprint: str, method: str, source_ids: Iterable[str], variants: Iterable[int]
) -> np.ndarray:
    """`sample_id_of` for many rows: int64 [N]."""
    rows = zip(source_ids, variants, strict=True)
    return _digests63(f"{content_fingerprint}\x1f{source}\x1f{method}\x1f{variant}" for source, variant in rows)


def derive_seeds(seed: int, sample_ids: np.ndarray) -> np.ndarray:
    """`derive_seed(seed, sample_id)` for many samples: int64 [N]."""
    return _digests63(f"{seed}\x1f{sample_id}" for sample_id in sample_ids.tolist())


def _digests63(texts: Iterable[str]) -> np.ndarray:
    """`_digest63` of each text, in half the time: what remains is blake2b, a microsecond each."""
    digests = b"".join([hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return (np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64)


def bytes_hash(data: bytes) -> str:
    """xxh3-128 of stored bytes, hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)
