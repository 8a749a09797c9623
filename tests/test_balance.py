"""The vectorised Algorithm 1 against the literal loop, hand-worked cases and closed forms."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import presence_of_matrix

from segdatagen.balance import (
    ClassOrders,
    Copies,
    Presence,
    Progress,
    balance,
    cir,
    class_orders,
    entropy,
)
from segdatagen.balance_reference import LiteralResult, literal_balance


def random_presence(rng: np.random.Generator) -> Presence:
    """Zero to sixty sources, up to twelve classes, some never present, some excluded, some sources empty."""
    num_sources, num_classes = int(rng.integers(0, 60)), int(rng.integers(1, 13))
    frequency = rng.random(num_classes) ** rng.integers(1, 5) * (rng.random(num_classes) > 0.1)
    matrix = rng.random((num_sources, num_classes)) < frequency
    excluded = np.flatnonzero(rng.random(num_classes) < 0.1)
    ids = [f"image {rng.integers(1 << 40)}-{index}" for index in range(num_sources)]
    names = [f"class {channel}" for channel in range(num_classes)]
    return presence_of_matrix(ids, names, matrix, excluded.tolist())


def random_progress(rng: np.random.Generator, presence: Presence) -> Progress:
    accepted = rng.integers(0, 5, presence.num_classes)
    available = rng.random(presence.num_sources) < 0.7
    return Progress(presence.counts + accepted, available, rng.integers(0, 100, presence.num_classes))


def as_images(presence: Presence) -> list[tuple[str, list[int]]]:
    rows = np.split(presence.indices, presence.indptr[1:-1])
    return [(name, row.tolist()) for name, row in zip(presence.source_ids, rows, strict=False)]


def literal(presence: Presence, quotas: np.ndarray, seed: int, progress: Progress | None = None) -> LiteralResult:
    wanted = np.where(presence.counted, quotas, 0).tolist()
    return literal_balance(as_images(presence), presence.class_names, wanted, seed, progress)


@pytest.mark.parametrize("case", range(250))
def test_vectorised_equals_the_literal_loop(case: int) -> None:
    rng = np.random.default_rng(case)
    presence = random_presence(rng)
    one_quota = rng.random() < 0.5
    n_balance = int(rng.integers(0, 150)) if one_quota else rng.integers(0, 150, presence.num_classes)
    if not one_quota:
        n_balance[rng.random(presence.num_classes) < 0.3] = 0
    progress = random_progress(rng, presence) if case % 2 else None
    seed = int(rng.integers(-5, 1 << 40))

    copies = balance(presence, n_balance, seed, progress=progress)

    expected = literal(presence, n_balance, seed, progress)
    pairs = list(zip(copies.target_channel.tolist(), copies.source_index.tolist(), strict=True))
    assert dict(zip(pairs, copies.copies.tolist(), strict=True)) == Counter(expected.generated)
    assert pairs == list(dict.fromkeys(expected.generated))
    assert copies.counts.tolist() == expected.counts
    assert list(copies.unreachable) == expected.unreachable
    assert copies.num_generated == len(expected.generated)
    per_source = Counter(source for _, source in expected.generated)
    assert copies.per_source(presence.num_sources).tolist() == [per_source[s] for s in range(presence.num_sources)]


def copies_columns(copies: Copies) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return copies.target_channel, copies.source_index, copies.copies


def test_hand_worked_case() -> None:
    # cat: a, ab; dog: ab, bc; hen: bc. Quota 4.
    presence = Presence.from_lists(["a", "ab", "bc"], ["cat", "dog", "hen"], [[0], [0, 1], [1, 2]])
    copies = balance(presence, 4, seed=0)
    made = {(int(c), int(s)): int(n) for c, s, n in zip(*copies_columns(copies), strict=True)}
    # cat lacks 2: a, then ab. dog, now 3 through ab, lacks 1: ab or bc by the tie. hen lacks 3, or 2 after bc.
    assert made[0, 0] == 1
    assert made[0, 1] == 1
    tie = int(class_orders(presence, 0).of(1)[0])
    assert made[1, tie] == 1
    assert made[2, 2] == (3 if tie == 1 else 2)
    assert copies.num_generated == sum(made.values())


def test_a_generated_image_counts_at_once_for_every_class_it_holds() -> None:
    presence = Presence.from_lists(["x", "y", "z"], ["p", "q"], [[0], [0, 1], [0, 1]])
    copies = balance(presence, 10, seed=1)
    # p lacks 7: x y z, x y z, x. That brings q to 2 + 4, so it lacks 4, not 8: y z, y z.
    assert copies.per_source(3).tolist() == [3, 4, 4]
    assert copies.counts.tolist() == [14, 10]


def test_sources_with_fewest_classes_come_first() -> None:
    rng = np.random.default_rng(0)
    presence = presence_of_matrix([str(i) for i in range(300)], list("abcdefgh"), rng.random((300, 8)) < 0.4)
    orders = class_orders(presence, seed=3)
    for channel in range(8):
        order = orders.of(channel)
        assert (np.diff(presence.sizes[order]) >= 0).all()
        holders = {s for s in range(300) if channel in presence.classes_of(np.array([s]))}
        assert set(order.tolist()) == holders


def ids_in_order(presence: Presence, orders: ClassOrders, class_name: str) -> list[str]:
    return [presence.source_ids[s] for s in orders.of(presence.class_names.index(class_name))]


def test_order_depends_neither_on_the_order_of_sources_nor_on_that_of_classes() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.random((200, 5)) < 0.5
    ids, names = [f"s{i}" for i in range(200)], list("abcde")
    presence = presence_of_matrix(ids, names, matrix)
    rows, columns = rng.permutation(200), rng.permutation(5)
    shuffled = presence_of_matrix([ids[r] for r in rows], [names[c] for c in columns], matrix[rows][:, columns])
    for name in names:
        order = ids_in_order(presence, class_orders(presence, 7), name)
        assert order == ids_in_order(shuffled, class_orders(shuffled, 7), name)
        assert order != ids_in_order(presence, class_orders(presence, 8), name)


def test_ties_are_shuffled_differently_for_each_class() -> None:
    presence = Presence.from_lists([str(i) for i in range(100)], ["a", "b"], [[0, 1]] * 100)
    orders = class_orders(presence, seed=0)
    assert orders.of(0).tolist() != orders.of(1).tolist()
    assert orders.of(0).tolist() != list(range(100))


@settings(max_examples=150)
@given(st.integers(0, 1 << 32), st.integers(0, 200))
def test_reachable_classes_reach_the_quota_with_no_more_than_their_deficits(case: int, n_balance: int) -> None:
    presence = random_presence(np.random.default_rng(case))
    copies = balance(presence, n_balance, seed=case)
    reachable = presence.counted & (presence.counts > 0)
    deficits = np.maximum(n_balance - presence.counts, 0)[reachable]
    assert (copies.counts[reachable] >= n_balance).all()
    assert (copies.counts >= presence.counts).all()
    assert deficits.max(initial=0) <= copies.num_generated <= deficits.sum()
    generated = presence.counts_of_copies(copies.per_source(presence.num_sources))
    assert (presence.counts + generated).tolist() == copies.counts.tolist()
    unreachable = presence.counted & (presence.counts == 0) if n_balance else np.zeros(presence.num_classes, bool)
    assert copies.unreachable == tuple(np.flatnonzero(unreachable))


def test_unavailable_sources_count_as_real_but_are_not_copied() -> None:
    presence = Presence.from_lists(["a", "b", "c"], ["cat", "dog"], [[0], [0], [1]])
    progress = Progress(presence.counts, np.array([True, False, False]), np.zeros(2, dtype=np.int64))
    copies = balance(presence, 5, progress=progress)
    assert copies.per_source(3).tolist() == [3, 0, 0]
    assert copies.unreachable == (1,)


def test_going_on_in_the_cycle_equals_one_long_run_where_classes_do_not_meet() -> None:
    rng = np.random.default_rng(5)
    presence = Presence.from_lists([str(i) for i in range(40)], list("abcd"), [[c] for c in rng.integers(0, 4, 40)])
    first = balance(presence, 25)
    made = np.bincount(first.target_channel, weights=first.copies, minlength=4).astype(np.int64)
    second = balance(presence, 57, progress=Progress(first.counts, np.ones(40, dtype=bool), made))
    assert (first.per_source(40) + second.per_source(40)).tolist() == balance(presence, 57).per_source(40).tolist()


def test_excluded_classes_are_neither_counted_nor_balanced() -> None:
    presence = Presence.from_lists(["a", "b"], ["background", "cat"], [[0, 1], [0]], excluded=[0])
    assert presence.counts.tolist() == [0, 1]
    assert presence.sizes.tolist() == [1, 0]
    copies = balance(presence, 3)
    assert copies.unreachable == ()
    assert copies.per_source(2).tolist() == [2, 0]


@settings(max_examples=100)
@given(st.integers(0, 1 << 32))
def test_constructors_agree(case: int) -> None:
    rng = np.random.default_rng(case)
    matrix = rng.random((int(rng.integers(0, 9)), int(rng.integers(1, 5)))) < 0.5
    ids, names = [f"s{i}" for i in range(len(matrix))], [f"c{i}" for i in range(matrix.shape[1])]
    from_matrix = presence_of_matrix(ids, names, matrix)
    doubled = [[*np.flatnonzero(row)[::-1], *np.flatnonzero(row)] for row in matrix]
    from_lists = Presence.from_lists(ids, names, doubled)
    assert from_matrix.indptr.tolist() == from_lists.indptr.tolist()
    assert from_matrix.indices.tolist() == from_lists.indices.tolist()
    assert from_matrix.counts.tolist() == matrix.sum(axis=0).tolist()
    assert from_matrix.sizes.tolist() == matrix.sum(axis=1).tolist()


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [
        ([0, 1], [0]),
        ([0, 1, 3], [0, 1]),
        ([0, 2, 1], [0]),
        ([0, 1, 2], [0, 2]),
        ([0, 2, 2], [1, 0]),
        ([0, 2, 2], [1, 1]),
    ],
)
def test_arrays_that_are_no_rows_are_refused(indptr: list[int], indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"indptr|channel"):
        Presence(("a", "b"), ("x", "y"), np.array(indptr), np.array(indices, dtype=np.int32))


def test_entropy_and_cir_have_their_closed_forms() -> None:
    assert entropy([7] * 16) == pytest.approx(4.0)
    assert entropy([1, 1, 2]) == pytest.approx(1.5)
    assert entropy([1, 1, 2, 0, 0]) == pytest.approx(1.5)
    assert entropy([5]) == 0.0
    assert cir([7] * 16) == pytest.approx(1 / 16)
    assert cir([1, 1, 2]) == 0.5
    assert cir([5]) == 1.0
    assert entropy([3, 9]) == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))


@pytest.mark.parametrize("counts", [[], [0, 0], [float("nan")], [float("nan"), 0.0]])
def test_nothing_counted_has_entropy_and_cir_zero(counts: list[float]) -> None:
    assert str(entropy(counts)) == str(cir(counts)) == "0.0"


def test_copies_of_a_huge_quota_stay_compact() -> None:
    presence = Presence.from_lists(["a", "b", "c"], ["x", "y"], [[0], [0, 1], [0]])
    copies = balance(presence, 1_000_000_000)
    assert len(copies.copies) <= len(presence.indices)
    assert copies.counts.min() == 1_000_000_000
