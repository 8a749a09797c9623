"""What the stages of a method are built from: the part of a job that travels to every actor.

It does not know which stages there are.
"""

from dataclasses import dataclass

from segdatagen.filtering import FilterContext, filter_context
from segdatagen.geometry import Geometry
from segdatagen.images import ImageFormat
from segdatagen.job import Execution, Job
from segdatagen.labels import LabelSet
from segdatagen.method_options import MethodOptions
from segdatagen.stages.redraw import Redraws


@dataclass(frozen=True)
class MethodContext:
    """What the stages of a method are built from, small enough to travel to every actor."""

    method: str
    """Its name in the job."""
    sources: str
    geometry: Geometry
    label_set: LabelSet
    image_format: ImageFormat
    execution: Execution
    options: MethodOptions
    filtering: FilterContext
    seed: int
    """Of the job: what variants of a source share has its random numbers from it."""
    image_microbatch: int | None = None
    """Batch shape of what draws images, where it is not that of `execution`: as a row recorded it."""
    layout_microbatch: int | None = None
    """That of what draws masks."""
    keeps_code: bool = True
    """Whether what torch.compile makes is kept in the run."""

    @property
    def redraws(self) -> Redraws | None:
        """When a stage that makes images draws one again."""
        blank = self.filtering.filters.blank
        return None if blank is None else Redraws(blank.redraw_below, blank.redraws)


def method_contexts(job: Job, label_set: LabelSet) -> dict[str, MethodContext]:
    """The context of every method of a job."""
    filtering, image_format = filter_context(job, label_set), job.output.image_format
    return {
        name: MethodContext(
            method=name,
            sources=job.sources,
            geometry=job.geometry,
            label_set=label_set,
            image_format=image_format,
            execution=job.execution,
            options=options,
            filtering=filtering,
            seed=job.seed,
        )
        for name, options in job.methods.named().items()
    }
