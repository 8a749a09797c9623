"""A report written: everything that it shows is read once, its data files are put, and `index.html` last.

Knows the order of the work. It does not know how charts, pictures, pages or files are made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from segdatagen.errors import UsageError
from segdatagen.judged import read_judged
from segdatagen.lease import Holder
from segdatagen.planner import read_plan, read_rounds
from segdatagen.report.contact import PLAN_COLUMNS, ContactReader, origins_of
from segdatagen.report.files import INDEX_NAME, Chunks, ReportFolder
from segdatagen.report.outcomes import choose, read_outcomes
from segdatagen.report.page import Page, Sources
from segdatagen.report.pictures import MaskPainter
from segdatagen.report.source_pictures import SourceRow, open_sources, put_sources
from segdatagen.run_folder import REPORT_NAME, Run
from segdatagen.samples import read_ledger
from segdatagen.status import status_of
from segdatagen.storage import Folder

MAX_SAMPLES = 2000
"""Samples that a report shows unless it is asked for more."""
SCRIPTS = ("load.js", "filter.js", "sheet.js", "sample.js", "main.js")
"""The parts of the page's script, in order."""


@dataclass(frozen=True)
class ReportRequest:
    """Where a report goes (`report/` of the run if None), and how many samples it shows at most."""

    out: str | None = None
    max_samples: int = MAX_SAMPLES


@dataclass(frozen=True)
class ReportResult:
    """Where the page lies, how many of how many samples it shows, and how large it is."""

    index: str
    num_shown: int
    num_samples: int
    num_files: int
    num_bytes: int


def write_report(
    run: Run, request: ReportRequest, waiting: Callable[[Holder], None], progress: Callable[[int, int], None]
) -> ReportResult:
    """Write the report of a run, in place of an earlier one.

    `waiting` is called if another process is writing it, `progress` with pictures done and pictures in all. Raises
    UsageError where the folder holds something else, SegdatagenError where the run is damaged.
    """
    with ReportFolder(_folder_of(run, request.out), waiting) as out:
        ledger = read_ledger(run.folder)
        rounds = read_rounds(run.folder)  # after the samples, so that it knows the rounds of all of them
        status = status_of(run, ledger)
        min_pixels = int(rounds[-1].settings["min_pixels"]) if rounds else 1
        outcomes = read_outcomes(run, ledger, min_pixels)
        chosen = choose(outcomes, request.max_samples)
        origins = origins_of(read_plan(run.folder, rounds, PLAN_COLUMNS), outcomes.sample_ids[chosen])
        painter = MaskPainter(run.label_set)
        sources = sorted({origin.source for origin in origins.values()})
        step = _Steps(progress, len(chosen) + len(sources))
        contact = ContactReader(run, ledger, outcomes, origins, painter).read(chosen, out, step)
        pictures = _put_sources(run, sources, painter, out, step)
        judged = read_judged(run.folder)
        if judged is not None and judged.fingerprint != run.info.judges.get("adherence"):
            judged = None  # its figures are those of a segmenter that scored none of these samples
        page = Page(run, status, outcomes, contact, pictures, min_pixels, painter, judged)
        names = {
            "style": out.put("report", "css", _asset("report.css").encode()),
            "script": out.put("report", "js", _script().encode()),
            "samples": out.put_data("samples", "begin", page.data()),
        }
        out.finish(page.html(names))
        shown = len(contact.columns["id"])
        return ReportResult(out.folder.uri_of(INDEX_NAME), shown, len(ledger.sample_ids), out.num_files, out.num_bytes)


class _Steps:
    """Counts what is done, for a progress of done and total."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)


def _folder_of(run: Run, out: str | None) -> Folder:
    """Where the report goes. Raises UsageError for a place where the run keeps something else."""
    own = run.folder.uri_of(REPORT_NAME)
    if out is None:
        return Folder(own)
    folder = Folder(out)
    if folder.is_within(run.folder) and not folder.is_within(Folder(own)):
        raise UsageError(f"{out}: lies in the run, which keeps its report in {own}: leave --out away, or go elsewhere")
    return folder


def _put_sources(
    run: Run, wanted: list[SourceRow], painter: MaskPainter, out: ReportFolder, step: Callable[[int], None]
) -> Sources:
    store, problem = open_sources(run)
    if store is None:
        step(len(wanted))
        return Sources([], {}, problem)
    chunks = Chunks(out, "sources")
    places, problems = put_sources(store, wanted, painter, chunks, step)
    return Sources(chunks.names, places, "; ".join(problems) or None)


def _asset(name: str) -> str:
    return (resources.files("segdatagen.report") / "assets" / name).read_text(encoding="utf-8")


def _script() -> str:
    """One script of the parts, which share their names with each other and with nobody else."""
    return "".join(['"use strict";\n(() => {\n', *map(_asset, SCRIPTS), "})();\n"])
