"""Best of N of a method: its judge, checked before a run starts and loaded once per process.

Knows the options of methods and the stages that score; it does not know how images are drawn, nor filters.
"""

from segdatagen.clip_scores import check_clip
from segdatagen.errors import placed
from segdatagen.judges import clip_of, segmenter_of
from segdatagen.method_context import MethodContext
from segdatagen.segmenters import check_segmenter
from segdatagen.stages.best_of import BestOfN
from segdatagen.stages.stage import Stage


def best_of(context: MethodContext) -> BestOfN | None:
    """How a method takes one of several images; None where it draws one. Raises UsageError where no judge is."""
    from segdatagen.stages.adherence import AdherenceStage
    from segdatagen.stages.clip_rank import ClipRankStage

    options, label_set, execution = context.options.chosen, context.label_set, context.execution
    if options is None:
        return None
    judge: Stage
    if options.clip is not None:
        judge, column = ClipRankStage(clip_of(options.clip, label_set, execution)), "score_clip"
    else:
        assert options.segmenter is not None
        judge = AdherenceStage(segmenter_of(options.segmenter, label_set, execution), label_set)
        column = "score_adherence"
    return BestOfN(options.candidates, judge, column)


def check_best_of(context: MethodContext) -> None:
    """Raise UsageError, in one line, unless the judge of a method exists and knows the classes of the sources."""
    options, label_set = context.options.chosen, context.label_set
    if options is None:
        return
    with placed(f"methods.{context.method}.best_of"):
        if options.clip is not None:
            check_clip(options.clip, label_set)
        elif options.segmenter is not None:
            check_segmenter(options.segmenter, label_set.names)
