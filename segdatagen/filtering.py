"""The filters of a job as stages behind those of any method, and what can be checked of them before a run starts.

Knows options, weights and stages; it does not know methods, nor how rows are distributed or stored.
"""

from dataclasses import dataclass
from typing import Any

from segdatagen.clip_scores import check_clip, judged_by
from segdatagen.errors import UsageError
from segdatagen.filters import FILTER_STAGE, LIMITS, Adherence, ClipRank, Filters, IgnoreNoisy, Limits, of_rows
from segdatagen.job import Execution, Job
from segdatagen.judges import clip_of, segmenter_of
from segdatagen.labels import LabelSet
from segdatagen.segmenters import check_segmenter
from segdatagen.source_hashes import read_index
from segdatagen.stages.stage import Stage, StageSpec
from segdatagen.storage import Folder
from segdatagen.weights import fingerprint_of


@dataclass(frozen=True)
class FilterContext:
    """What the stages of the filters are built from, small enough to travel to every actor."""

    run: str
    label_set: LabelSet
    execution: Execution
    filters: Filters
    limits: Limits


def filter_context(job: Job, label_set: LabelSet) -> FilterContext:
    """The context of a job's filters, with the limits of the job."""
    return FilterContext(job.uri, label_set, job.execution, job.filters, job.filters.limits())


def filter_stages(context: FilterContext, scored: set[str]) -> list[StageSpec]:
    """The stages of the filters, and the limits on what they or the stages before them have `scored`.

    What scores the mask that the image was made for comes before what changes it.
    """
    filters, stages = context.filters, list[StageSpec]()
    if filters.adherence:
        stages += [_adherence(filters.adherence, context), _target(context.label_set)]
    if filters.clip_rank:
        stages.append(_clip_rank(filters.clip_rank, context))
    if filters.duplicates:
        stages.append(_duplicates(context))
    if filters.ignore_noisy:
        stages.append(_ignore_noisy(filters.ignore_noisy, context))
    scored = scored.union(*(stage.scores for stage in stages))
    limits = {name: value for name, value in of_rows(context.limits).items() if LIMITS[name].column in scored}
    return [*stages, _limits(limits)] if limits else stages


def _adherence(options: Adherence, context: FilterContext) -> StageSpec:
    def build() -> Stage:
        from segdatagen.stages.adherence import AdherenceStage

        return AdherenceStage(segmenter_of(options.segmenter, context.label_set, context.execution), context.label_set)

    return StageSpec("adherence", build, scores=("score_adherence",))


def _target(label_set: LabelSet) -> StageSpec:
    def build() -> Stage:
        from segdatagen.stages.target_score import TargetStage

        return TargetStage(label_set)

    return StageSpec("target", build, scores=("score_target",))


def _clip_rank(options: ClipRank, context: FilterContext) -> StageSpec:
    def build() -> Stage:
        from segdatagen.stages.clip_rank import ClipRankStage

        return ClipRankStage(clip_of(options, context.label_set, context.execution))

    return StageSpec("clip_rank", build, scores=("score_clip",))


def _duplicates(context: FilterContext) -> StageSpec:
    def build() -> Stage:
        from segdatagen.stages.duplicates import DuplicatesStage

        return DuplicatesStage(*read_index(Folder(context.run)))

    return StageSpec("duplicates", build, scores=("score_source_distance", "score_duplicate_distance"))


def _ignore_noisy(options: IgnoreNoisy, context: FilterContext) -> StageSpec:
    def build() -> Stage:
        from segdatagen.stages.ignore_noisy import IgnoreNoisyStage

        return IgnoreNoisyStage(
            segmenter_of(options.segmenter, context.label_set, context.execution), context.label_set, options.factor
        )

    return StageSpec("ignore_noisy", build, scores=("score_ignored",))


def _limits(limits: Limits) -> StageSpec:
    def build() -> Stage:
        from segdatagen.stages.limits import LimitsStage

        return LimitsStage(limits)

    return StageSpec(FILTER_STAGE, build)


def check_filters(filters: Filters, label_set: LabelSet) -> None:
    """Raise UsageError unless judges exist and know the classes of the sources, and ignored pixels have an id."""
    if filters.ignore_noisy and not label_set.ignore_ids:
        raise UsageError(f"filters.ignore_noisy needs a label set with an ignore id, {label_set.name} has none")
    for name, uri in filters.segmenters().items():
        try:
            weights = check_segmenter(uri, label_set.names)
        except UsageError as error:
            raise UsageError(f"filters.{name}: {error}") from error
        if name == "ignore_noisy" and not any(mean is not None for mean in weights.class_losses):
            raise UsageError(f"filters.{name}: {uri} holds no mean loss of any class: train it with validation images")
    if filters.clip_rank:
        try:
            check_clip(filters.clip_rank, label_set)
        except UsageError as error:
            raise UsageError(f"filters.clip_rank: {error}") from error


def filter_recipe(filters: Filters) -> dict[str, Any]:
    """What of the filters decides a sample: nothing that only scores it, and no limit."""
    recipe: dict[str, Any] = {}
    content = filters.content()
    if content.blank and content.blank.redraws:
        recipe["blank"] = {"redraws": content.blank.redraws, "redraw_below": content.blank.redraw_below}
    if content.ignore_noisy:
        pinned = fingerprint_of(content.ignore_noisy.segmenter)
        recipe["ignore_noisy"] = {"segmenter": pinned, "factor": content.ignore_noisy.factor}
    return recipe


def judges_of(filters: Filters) -> dict[str, str]:
    """What the scores of the filters that only score depend on, by field: those of two judges cannot be compared."""
    found = {"adherence": fingerprint_of(filters.adherence.segmenter)} if filters.adherence else {}
    if filters.clip_rank:
        said = judged_by(filters.clip_rank, fingerprint_of(filters.clip_rank.weights))
        found |= {f"clip_rank.{field}": value for field, value in said.items()}
    return found
