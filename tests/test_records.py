"""Identity and seeds: one row and many rows agree, what decides an id shows in it, and ids never change."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdatagen.records import (
    DECISION_SCHEMA,
    FORMAT_VERSION,
    PLAN_SCHEMA,
    SAMPLE_SCHEMA,
    SOURCE_HASH_SCHEMA,
    SOURCE_SCHEMA,
    bytes_hash,
    derive_seed,
    derive_seeds,
    sample_id_of,
    sample_ids_of,
)

TEXTS = st.text(max_size=12)


def test_ids_and_seeds_are_63_bits_of_blake2b_for_ever() -> None:
    text = "f0\x1fscene-000001\x1fmask_ddpm\x1f3"
    expected = int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) // 2
    assert sample_id_of("f0", "scene-000001", "mask_ddpm", 3) == expected == 7512865946127746066
    assert derive_seed(7, expected, "mask2img") == 1250551566607205135


@given(TEXTS, TEXTS, st.lists(st.tuples(TEXTS, st.integers(0, 10**6)), max_size=30))
def test_many_ids_equal_the_ids_one_by_one(fingerprint: str, method: str, rows: list[tuple[str, int]]) -> None:
    ids = sample_ids_of(fingerprint, method, (source for source, _ in rows), (variant for _, variant in rows))
    assert ids.dtype == np.int64
    assert ids.tolist() == [sample_id_of(fingerprint, source, method, variant) for source, variant in rows]


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**63 - 1), max_size=30))
def test_many_seeds_equal_the_seeds_one_by_one(seed: int, ids: list[int]) -> None:
    seeds = derive_seeds(seed, np.array(ids, np.int64))
    assert seeds.dtype == np.int64
    assert seeds.tolist() == [derive_seed(seed, sample_id) for sample_id in ids]
    assert all(value >= 0 for value in seeds.tolist())


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        sample_ids_of("f", "m", ["a", "b"], [0])


def test_everything_that_decides_a_sample_shows_in_its_id() -> None:
    ids = {
        sample_id_of("f", "s", "m", 1),
        sample_id_of("g", "s", "m", 1),
        sample_id_of("f", "t", "m", 1),
        sample_id_of("f", "s", "n", 1),
        sample_id_of("f", "s", "m", 2),
        sample_id_of("f", "sm", "", 1),
        sample_id_of("fs", "", "m", 1),
    }
    assert len(ids) == 7


def test_scopes_do_not_run_into_each_other() -> None:
    assert len({derive_seed(1, 23), derive_seed(12, 3), derive_seed(1, 2, 3), derive_seed(123)}) == 4


def test_hundred_thousand_ids_are_unique_and_fill_their_range() -> None:
    ids = sample_ids_of("f", "m", ["s"] * 100_000, range(100_000))
    assert len(np.unique(ids)) == 100_000
    assert ids.min() >= 0
    assert abs(ids.mean() / 2**62 - 1) < 0.01


@pytest.mark.parametrize("schema", [SOURCE_SCHEMA, PLAN_SCHEMA, SAMPLE_SCHEMA, DECISION_SCHEMA, SOURCE_HASH_SCHEMA])
def test_every_table_says_its_format_and_keeps_pixels_as_bytes(schema: pa.Schema) -> None:
    assert schema.metadata == {b"format_version": FORMAT_VERSION.encode()}
    for name in ("image", "mask", "segment_map"):
        if name in schema.names:
            assert schema.field(name).type == pa.large_binary()


def test_hash_of_stored_bytes() -> None:
    assert bytes_hash(b"") == "99aa06d3014798d86001c324468d497f"  # The published test vector of XXH3-128.
    assert bytes_hash(b"a") != bytes_hash(b"b")
