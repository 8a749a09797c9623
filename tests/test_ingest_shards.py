"""How a listing becomes shards: in order, none with too many sources or bytes, and no id twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segdatagen.datasets import Item, Listing
from segdatagen.ingest import cut_shards, without_duplicates
from segdatagen.sources import SHARD_BYTES, SHARD_SIZE

SIZES = st.lists(st.sampled_from([0, 1, 1000, SHARD_BYTES // 3, SHARD_BYTES - 1, SHARD_BYTES, SHARD_BYTES + 1]))


@given(SIZES, st.integers(0, 3 * SHARD_SIZE))
def test_shards_are_the_items_in_order_and_as_large_as_they_may_be(sizes: list[int], small: int) -> None:
    sizes = [*sizes, *[1] * small]
    items = [Item(f"{number}", "x.png", num_bytes=size) for number, size in enumerate(sizes)]
    shards = cut_shards(items)
    assert [item for shard in shards for item in shard] == items
    for number, shard in enumerate(shards):
        total = sum(item.num_bytes for item in shard)
        assert len(shard) <= SHARD_SIZE
        assert total <= SHARD_BYTES or len(shard) == 1
        if number + 1 < len(shards):
            assert len(shard) == SHARD_SIZE or total + shards[number + 1][0].num_bytes > SHARD_BYTES


def test_shards_of_small_files_have_256_sources() -> None:
    items = [Item(f"{number}", "x.png", num_bytes=100) for number in range(600)]
    assert [len(shard) for shard in cut_shards(items)] == [256, 256, 88]


@given(st.lists(st.integers(0, 9)))
def test_only_the_first_item_of_an_id_stays(numbers: list[int]) -> None:
    items = tuple(Item(f"{number}", f"{place}.png") for place, number in enumerate(numbers))
    listing = without_duplicates(Listing(items))
    ids, first = np.unique(numbers, return_index=True)
    assert [item.mask_name for item in listing.items] == [f"{place}.png" for place in sorted(first.tolist())]
    assert len(listing.orphans) == len(numbers) - len(ids)
    assert {orphan.problem for orphan in listing.orphans} <= {"duplicate id"}
