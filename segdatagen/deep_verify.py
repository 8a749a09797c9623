"""The deep look at a run on Ray: every image and mask is decoded and compared with its hash, part by part.

Knows how parts are spread over a cluster; what is checked in one is the business of `verify`.
"""

from collections.abc import Callable, Sequence

from segdatagen.cluster import connect, spread
from segdatagen.errors import UsageError
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

    def check(part: Entry) -> list[str]:
        return check_part(run.folder, part.name)

    with connect(address):
        checked = spread(f"{run.folder.uri}: the check itself failed", chosen, check, CHECK_CPUS)
        for done, (_, found) in enumerate(checked, start=1):
            problems += found
            progress(done, len(chosen))
    return len(chosen), tuple(sorted(problems))


def choose_parts(parts: Sequence[Entry], fraction: float) -> list[Entry]:
    """The same fraction of the same parts every time, one at least."""
    ordered = sorted(parts, key=lambda part: derive_seed(0, "verify", part.name))
    return ordered[: max(1, round(fraction * len(ordered)))] if ordered else []
