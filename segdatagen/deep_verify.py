"""The deep look at a run on Ray: every image and mask is decoded and compared with its hash, part by part.

Knows how parts are spread over a cluster; what is checked in one is the business of `verify`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from segdatagen.cluster import connect
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.records import derive_seed
from segdatagen.run_folder import Run
from segdatagen.storage import Entry
from segdatagen.verify import check_part, part_entries

CHECK_CPUS = 0.5


def verify_parts(
    run: Run, fraction: float, address: str | None, progress: Callable[[int, int], None]
) -> tuple[int, tuple[str, ...]]:
    """Check a fraction of the parts; returns how many, and a sentence per problem.

    Raises UsageError for a fraction that is none, SegdatagenError where the check itself fails.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--fraction is {fraction:g}: give a number above 0, 1 at most")
    chosen = choose_parts(part_entries(run.folder), fraction)
    problems: list[str] = []
    if not chosen:
        return 0, ()

    def check(row: dict[str, Any]) -> dict[str, Any]:
        return {"problems": check_part(run.folder, chosen[row["item"]].name)}

    with connect(address):
        numbers = ray.data.from_items(list(range(len(chosen))), override_num_blocks=len(chosen))
        try:
            for done, row in enumerate(numbers.map(check, num_cpus=CHECK_CPUS).iter_rows(), start=1):
                problems += row["problems"]
                progress(done, len(chosen))
        except ray.exceptions.RayError as error:
            raise SegdatagenError(f"{run.folder.uri}: the check itself failed ({error})") from error
    return len(chosen), tuple(sorted(problems))


def choose_parts(parts: Sequence[Entry], fraction: float) -> list[Entry]:
    """The same fraction of the same parts every time, one at least."""
    ordered = sorted(parts, key=lambda part: derive_seed(0, "verify", part.name))
    return ordered[: max(1, round(fraction * len(ordered)))] if ordered else []
