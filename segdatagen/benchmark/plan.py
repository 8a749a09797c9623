"""How long a plan of a million rows takes, and how much memory, strategy by strategy, beside Algorithm 1 as a loop.

The sources are as many, as varied and as unevenly spread as those of COCO panoptic, but random; the plan goes through
the planner's own code from a stored source store to a stored round, in a process of its own. It does not know how
the planner plans.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from segdatagen.balance import Presence, balance, class_orders
from segdatagen.balance_reference import literal_balance
from segdatagen.benchmark.measure import Benchmark, Figures
from segdatagen.geometry import Geometry
from segdatagen.goals import AnyGoal, Balance, BalancePixels, Cover, RandomSamples, wanted_per_class
from segdatagen.images import encode_mask
from segdatagen.labels import LabelClass, LabelSet
from segdatagen.missing import State
from segdatagen.planner import PlanRequest, plan_round, presence_of, put_round
from segdatagen.progress import CostModel
from segdatagen.records import SOURCE_SCHEMA
from segdatagen.sources import (
    INFO_NAME,
    LABELS_NAME,
    ROW_GROUP_SIZE,
    SHARD_SIZE,
    PartInfo,
    SourceInfo,
    fingerprint_of,
    open_store,
    transformed_counts,
)
from segdatagen.storage import Folder
from segdatagen.tables import to_parquet

METHOD = "mask_ddpm"
NUM_SOURCES = 118_000
NUM_CLASSES = 133
SIZE = 128
MOST_FREQUENT, RAREST = 0.54, 0.0016
"""Share of images that show a class: from COCO's person to its hair drier, the others evenly between on a log scale."""
COVERED = 0.6
"""Images that a cover of these sources makes for each that Algorithm 1 makes."""
KEPT = ("rows", "seconds", "seconds_to_plan", "processor_seconds", "peak_rss_gib", "at_least", "algorithm_1")
"""Figures that are kept of the strategies beside `balance`."""


def bench_plan(num_rows: int = 1_000_000, num_sources: int = NUM_SOURCES, num_classes: int = NUM_CLASSES) -> Figures:
    """Plan about `num_rows` rows by `balance`, twice as many, as many by the others, and once by the literal loop."""
    ratio = num_rows / num_sources
    with tempfile.TemporaryDirectory() as folder:
        sources = str(Path(folder) / "sources")
        put_random_store(sources, num_sources, num_classes)
        once = _in_a_child(sources, str(Path(folder) / "once"), balance_goal(ratio))
        twice = _in_a_child(sources, str(Path(folder) / "twice"), balance_goal(2 * ratio))
        others: dict[str, AnyGoal] = {
            "cover": Cover(method=METHOD, n_balance="auto", ratio=ratio / COVERED),
            "pixels": BalancePixels(method=METHOD, n_pixels="auto", ratio=ratio),
            "random": RandomSamples(method=METHOD, num_samples=num_rows),
        }
        figures: Figures = {}
        for name, goal in others.items():
            measured = _in_a_child(sources, str(Path(folder) / name), goal)
            figures |= {f"{figure}_{name}": value for figure, value in measured.items() if figure in KEPT}
        figures |= _beside_the_literal_loop(sources, balance_goal(ratio))
    return {
        "sources": num_sources,
        "classes": num_classes,
        **once,
        **{f"{name}_twice": value for name, value in twice.items()},
        "seconds_ratio_twice": round(twice["seconds"] / once["seconds"], 2),
        **figures,
    }


PLAN = Benchmark(
    "plan",
    bench_plan,
    measures="a plan of a million rows, from stored sources to a stored round",
    reference="Algorithm 1 as the paper prints it",
    figure="{rows:,} rows from {sources:,} images of {classes} classes in {seconds:.1f} s and {peak_rss_gib:.2f} GiB",
    ratio="{ratio_to_literal_loop:.1f} times as fast",
    minutes=1,
)


def put_random_store(uri: str, num_sources: int, num_classes: int) -> None:
    """A source store whose masks are all one picture, while the stored counts, all that planning reads, are random."""
    rng, sizes = np.random.default_rng(0), np.random.default_rng(1)
    shares = rng.permutation(np.geomspace(MOST_FREQUENT, RAREST, num_classes))
    labels = _label_set(num_classes)
    folder = Folder(uri)
    mask = encode_mask(np.zeros((SIZE, SIZE), np.uint8))
    parts = []
    for start in range(0, num_sources, SHARD_SIZE):
        present = rng.random((min(SHARD_SIZE, num_sources - start), num_classes)) < shares
        present[~present.any(axis=1), int(shares.argmax())] = True
        table = _random_part(present, start, mask, sizes)
        data = to_parquet(table, ROW_GROUP_SIZE)
        name = f"part-{start // SHARD_SIZE:05d}.parquet"
        folder.put(name, data)
        parts.append(PartInfo(name=name, num_rows=table.num_rows, size=len(data), digest=f"{start:032x}"))
    info = SourceInfo(
        fingerprint=fingerprint_of(parts, labels),
        num_sources=num_sources,
        data_format="id_masks",
        root="random",
        split="train",
        label_set=labels.name,
        parts=tuple(parts),
    )
    folder.put(LABELS_NAME, labels.to_yaml().encode())
    folder.put(INFO_NAME, info.model_dump_json().encode())


def _random_part(present: np.ndarray, start: int, mask: bytes, sizes: np.random.Generator) -> pa.Table:
    num_rows = len(present)
    rows, channels = np.nonzero(present)
    pixels = np.maximum(1, SIZE * SIZE * sizes.beta(0.4, 4, len(channels))).astype(np.int64)
    offsets = pa.array(np.searchsorted(rows, np.arange(num_rows + 1)).astype(np.int32))
    columns = {
        "source_id": [f"{number:012d}" for number in range(start, start + num_rows)],
        "split": ["train"] * num_rows,
        "mask": [mask] * num_rows,
        "height": np.full(num_rows, SIZE, np.int32),
        "width": np.full(num_rows, SIZE, np.int32),
        "class_ids": pa.ListArray.from_arrays(offsets, pa.array(channels.astype(np.int32))),
        "class_pixels": pa.ListArray.from_arrays(offsets, pa.array(pixels)),
    }
    return pa.table(
        [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in SOURCE_SCHEMA], schema=SOURCE_SCHEMA
    )


def _label_set(num_classes: int) -> LabelSet:
    classes = tuple(
        LabelClass(id=id_, name=f"{id_}", prompt=f"{id_}", colour=(id_ & 255, id_ >> 8, 0), kind="stuff")
        for id_ in range(num_classes)
    )
    return LabelSet(name="benchmark", version="1", classes=classes)


def balance_goal(ratio: float) -> Balance:
    """Algorithm 1 with the quota that makes about `ratio` images for each source."""
    return Balance(method=METHOD, n_balance="auto", ratio=ratio)


def _in_a_child(sources: str, run: str, goal: AnyGoal) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(plan_once, sources, run, goal).result()


def plan_once(sources: str, run: str, goal: AnyGoal) -> dict[str, float]:
    """Plan one round from the store at `sources` and store it at `run`: rows, seconds, peak memory of this process.

    Of a cover also the images that are needed at least, and those of Algorithm 1.
    """
    began, before = time.perf_counter(), time.process_time()
    store = open_store(sources)
    presence = presence_of(store, transformed_counts(store, Geometry(size=(SIZE, SIZE))), min_pixels=1)
    read = time.perf_counter()
    request = PlanRequest(0, [goal], {}, {goal.method: "0" * 32}, seed=0, min_pixels=1)
    planned = plan_round(request, store, State.at_start(presence), CostModel({}, 1.0))
    made = time.perf_counter()
    put_round(Folder(run), planned)
    put = time.perf_counter()
    of_goal = planned.summary.goals[0]
    numbers = {"at_least": of_goal.at_least, "algorithm_1": of_goal.algorithm_1}
    return {name: value for name, value in numbers.items() if value is not None} | {
        "rows": planned.summary.num_rows,
        "seconds": round(put - began, 2),
        "seconds_to_read_sources": round(read - began, 2),
        "seconds_to_plan": round(made - read, 2),
        "seconds_to_store": round(put - made, 2),
        "processor_seconds": round(time.process_time() - before, 2),
        "peak_rss_gib": round(_peak_memory_gib(), 2),
    }


def _peak_memory_gib() -> float:
    """The most memory that this process ever held. `ru_maxrss` would count what its parent held before the exec."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


def _beside_the_literal_loop(sources: str, goal: Balance) -> Figures:
    """Algorithm 1 alone, sorting included, in numpy and as the paper's loop, with the quotas of the same plan."""
    store = open_store(sources)
    presence = presence_of(store, transformed_counts(store, Geometry(size=(SIZE, SIZE))), min_pixels=1)
    wanted = wanted_per_class(goal, presence, seed=0)
    images = _images(presence)
    began = time.perf_counter()
    copies = balance(presence, wanted, 0, orders=class_orders(presence, 0))
    in_numpy = time.perf_counter() - began
    began = time.perf_counter()
    literal = literal_balance(images, presence.class_names, wanted.tolist(), 0)
    as_loop = time.perf_counter() - began
    return {
        "seconds_algorithm": round(in_numpy, 3),
        "seconds_literal_loop": round(as_loop, 2),
        "ratio_to_literal_loop": round(as_loop / in_numpy, 1),
        "images_that_differ": _num_different(
            copies.source_index, copies.target_channel, copies.copies, literal.generated
        ),
    }


def _images(presence: Presence) -> list[tuple[str, list[int]]]:
    rows = np.split(presence.indices, presence.indptr[1:-1])
    return [(source_id, row.tolist()) for source_id, row in zip(presence.source_ids, rows, strict=True)]


def _num_different(
    sources: np.ndarray, channels: np.ndarray, copies: np.ndarray, literal: list[tuple[int, int]]
) -> int:
    """Generated images that only one of the two made."""
    num_sources = int(sources.max(initial=0)) + 1
    keys = np.repeat(channels * num_sources + sources, copies)
    pairs = np.array(literal, np.int64).reshape(-1, 2)
    length = int(max(keys.max(initial=0), (pairs[:, 0] * num_sources + pairs[:, 1]).max(initial=0))) + 1
    mine = np.bincount(keys, minlength=length)
    theirs = np.bincount(pairs[:, 0] * num_sources + pairs[:, 1], minlength=length)
    return int(np.abs(mine - theirs).sum())
