"""The page of a report: the HTML that stands without a script, and the data that the script begins with.

Fills a Jinja template whose every value is escaped. It does not know where files lie.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jinja2

from segdatagen.judged import JudgedSources
from segdatagen.report import overview, scores
from segdatagen.report.contact import THUMBNAILS_PER_CHUNK, Contact
from segdatagen.report.files import MARKER
from segdatagen.report.outcomes import Outcomes
from segdatagen.report.pictures import MaskPainter
from segdatagen.report.source_pictures import Place
from segdatagen.run_folder import Run, now
from segdatagen.samples import STATUSES
from segdatagen.status import RunStatus

TEMPLATE = "index.html.jinja"


@dataclass(frozen=True)
class Sources:
    """Where pictures of sources lie, by id, or why there are none."""

    chunks: list[str]
    places: Mapping[str, Place]
    problem: str | None


@dataclass(frozen=True)
class Page:
    """Everything that a report says, read and ready to be written down."""

    run: Run
    status: RunStatus
    outcomes: Outcomes
    contact: Contact
    sources: Sources
    min_pixels: int
    painter: MaskPainter
    judged: JudgedSources | None

    def html(self, names: Mapping[str, str]) -> str:
        """The index, from the names of its style, its script and its data."""
        loader = jinja2.PackageLoader("segdatagen.report", "assets")
        environment = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {
            "duration": overview.duration,
            "moment": overview.moment,
            "reason_link": overview.reason_link,
        }
        status, outcomes, judged = self.status, self.outcomes, self.judged
        of_masks = dict.fromkeys(outcomes.methods, judged.masks.mean) if judged else {}
        of_classes = {name: one.mean for name, one in judged.classes.items()} if judged else {}
        return environment.get_template(TEMPLATE).render(
            marker=MARKER.decode(),
            names=names,
            title=overview.title_of(self.run),
            status=status,
            written=now(),
            version=_version(),
            balance=overview.balance_of(status, self.run.label_set),
            times=overview.times_of(status.attempts, outcomes),
            reasons=outcomes.reasons,
            scores=scores.beside_real(scores.by_method(outcomes), of_masks),
            class_scores=scores.beside_real(scores.by_class(outcomes, self.run.label_set), of_classes),
            judged=judged,
            shares=scores.SHARES,
            num_samples=len(outcomes.sample_ids),
            num_shown=len(self.contact.columns["id"]),
            problems=self._problems(),
            recipes={name: overview.recipe_rows(recipe) for name, recipe in self.run.info.recipes.items()},
            fingerprints=self.run.info.fingerprints,
            label_set=self.run.label_set,
            min_pixels=self.min_pixels,
        )

    def data(self) -> dict[str, Any]:
        """What the script begins with; everything that is large lies in the files that it names."""
        columns = dict(self.contact.columns)
        ids = list(dict.fromkeys(columns["source"]))
        number = {source_id: place for place, source_id in enumerate(ids)}
        columns["source"] = [number[source_id] for source_id in columns["source"]]
        labels = self.run.label_set
        return {
            "title": overview.title_of(self.run),
            "regenerate": f"segdatagen regenerate {shlex.quote(self.run.folder.uri)}",
            "classes": [[one.name, overview.css_colour(one.colour), one.id] for one in labels.classes],
            "unclassed": [
                ["ignored", overview.css_colour(self.painter.ignore_colour)],
                ["an id that the label set does not know", overview.css_colour(self.painter.unknown_colour)],
            ],
            "minPixels": self.min_pixels,
            "methods": self.outcomes.methods,
            "statuses": STATUSES,
            "reasons": [[one.text, one.status, one.count] for one in self.outcomes.reasons],
            "recipes": [[name, overview.recipe_rows(recipe)] for name, recipe in self.run.info.recipes.items()],
            "attempts": [[one.number, overview.attempt_rows(one)] for one in self.status.attempts],
            "thumbnails": self.contact.thumbnails,
            "thumbnailsPerFile": THUMBNAILS_PER_CHUNK,
            "pages": self.contact.pages,
            "sources": {
                "files": self.sources.chunks,
                "ids": ids,
                "places": [self.sources.places.get(source_id) for source_id in ids],
                "problem": self.sources.problem,
            },
            "columns": columns,
            "scores": list(self.contact.scores.items()),
        }

    def _problems(self) -> list[str]:
        """What a reader should know before believing the page."""
        found = [*self.outcomes.unreadable, *self.contact.problems]
        if self.contact.num_undecodable:
            found.append(
                f"{self.contact.num_undecodable} of the samples that are shown have a picture that cannot be decoded: "
                f"`segdatagen verify {self.run.folder.uri} --deep` names their files"
            )
        if self.sources.problem:
            found.append(f"Pictures of sources are missing: {self.sources.problem}.")
        return found


def _version() -> str:
    try:
        return metadata.version("segdatagen")
    except metadata.PackageNotFoundError:
        return "from a folder that is not installed"
