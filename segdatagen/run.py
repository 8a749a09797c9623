"""A job is planned or run: everything is checked first, then Ray, lease and attempt frame the driver's work.

Knows the order in which things begin and end, so that wrong input leaves nothing behind. It does not know rounds,
methods or parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from segdatagen.budget import Budget, cost_of, pool_price
from segdatagen.cluster import connect, require_resources
from segdatagen.dataflow import SPLIT_CPUS
from segdatagen.decisions import read_decisions
from segdatagen.driver import Driver, Events, Outcome, RunOptions, Session
from segdatagen.errors import SegdatagenError, UsageError, placed
from segdatagen.filtering import check_filters, judges_of
from segdatagen.filters import LIMITS, Limits
from segdatagen.goals import AnyGoal, Cover, Quotas
from segdatagen.hash_sources import hash_layouts, hash_sources
from segdatagen.job import Job
from segdatagen.labels import LabelSet
from segdatagen.lease import Lease
from segdatagen.method_context import MethodContext, method_contexts
from segdatagen.methods import Chain, build_chain, check_weights, content_recipes, stages_of
from segdatagen.missing import check_goals, require_plannable
from segdatagen.placement import ChainFactory, Segment, Segments, require_pools, segments_of, whole
from segdatagen.plan_rows import refuse_gone_methods
from segdatagen.planner import (
    PlannedRound,
    RoundSummary,
    presence_of,
    put_round,
    read_plan,
    read_rounds,
    refuse_evaluation_splits,
    refuse_sources_without_masks,
    usable_sources,
)
from segdatagen.prefetch import weights_of
from segdatagen.refilter import RANK, bring_in_line, is_judged, judge, limits_in_force
from segdatagen.run_folder import (
    REPORT_NAME,
    RUN_NAME,
    Run,
    begin_attempt,
    check_same_content,
    end_attempt,
    open_run,
    read_attempts,
    write_run,
)
from segdatagen.samples import decided, read_columns, read_ledger
from segdatagen.sources import has_any, open_store, transformed_counts
from segdatagen.storage import Folder
from segdatagen.verify import Manifest, read_manifest, stray_decisions
from segdatagen.weights import fingerprint_of
from segdatagen.weights_cache import is_remote, require_copies


def prepare(job: Job) -> Session:
    """Check everything that can be checked without writing. Raises UsageError.

    The job of the session has absolute paths, and quotas under the label set's own class names.
    """
    store = open_store(job.sources)
    job = _with_class_names(job.from_anywhere(), store.label_set)
    refuse_evaluation_splits(store, job.settings.allow_splits)
    refuse_sources_without_masks(store, [name for name, own in job.methods.named().items() if own.needs_mask])
    if job.geometry.fit == "pad" and not store.label_set.ignore_ids:
        raise UsageError(f"geometry.fit: pad needs a label set with an ignore id, {store.label_set.name} has none")
    for context in method_contexts(job, store.label_set).values():
        check_weights(context)
    check_filters(job.filters, store.label_set)
    recipes = content_recipes(job, store)
    require_pools(job.execution, segments(job, store.label_set, job.filters.limits()))
    folder = Folder(job.uri)
    folder.require_writable()
    check_same_content(job.uri, recipes, _judges_to_keep(folder, judges_of(job.filters)))
    refuse_gone_methods(folder, list(recipes))
    for sentence in stray_decisions(folder, read_decisions(folder)):
        raise UsageError(sentence)
    counts = transformed_counts(store, job.geometry)
    presence = presence_of(store, counts, job.settings.min_pixels)
    usable = usable_sources(job.methods, store.label_set, counts)
    check_goals(job.plan, presence, job.seed, usable)
    return Session(job, store, recipes, presence, limits_in_force(folder, job.filters)[0], usable)


def segments(job: Job, label_set: LabelSet, limits: Limits) -> Segments:
    """What actors build of each method: all of it, or what is given to a pool of them.

    Each first compares its node's copies of fetched weights with those of this machine, which the ids of samples
    stand for.
    """
    fetched = [uri for uri in weights_of(job) if is_remote(uri)]
    fingerprints = {uri: fingerprint_of(uri) for uri in fetched}

    def of_these_weights(segment: Segment) -> Segment:
        def build() -> Chain:
            require_copies(fingerprints)
            return segment.build()

        return replace(segment, build=build)

    def of_method(method: str, context: MethodContext) -> tuple[Segment, ...]:
        context = replace(context, filtering=replace(context.filtering, limits=limits))
        if job.execution.placement == "fused":
            return whole(lambda: build_chain(method, context))
        return segments_of(stages_of(method, context))

    contexts = method_contexts(job, label_set)
    return {name: tuple(map(of_these_weights, of_method(name, context))) for name, context in contexts.items()}


@dataclass(frozen=True)
class PlanOutcome:
    """The round that a run would work on next: `is_new` unless it was planned before, `is_allowed` by `max_rounds`."""

    summary: RoundSummary
    is_new: bool
    is_allowed: bool


def plan_job(job: Job, events: Events, *, dry_run: bool) -> PlanOutcome:
    """Plan the round that a run would work on next.

    A round that is not finished yet stands; only then the next one is planned and, unless it is a dry run, empty or
    past `max_rounds`, stored.
    """
    session = prepare(job)
    folder = Folder(session.job.uri)
    _note_semantic_masks(session, events)
    if dry_run:
        _note_overrides(job, events)
        return _plan_next(session, folder)[0]
    with Lease(folder, events.waiting) as lease:
        session, _ = _begin(session, events, lease)
        outcome, planned = _plan_next(session, folder)
        if planned is not None and planned.summary.num_rows and outcome.is_allowed:
            lease.check()
            put_round(folder, planned)
    return outcome


def run_job(
    job: Job, options: RunOptions, events: Events, factories: Mapping[str, ChainFactory] | None = None
) -> Outcome:
    """Run a job to its end, or on from the point where it stopped last time.

    `factories` replace the chains of methods (tests put faulty stages into them). Raises UsageError before anything is
    written, or where no actor can be built, SegdatagenError when the run stops; what was committed stays.
    """
    session = prepare(job)
    folder = Folder(session.job.uri)
    manifest = read_manifest(folder)
    if manifest and not options.retry_failed and _nothing_to_do(session, manifest):
        planned = sum(manifest.counts.values())
        unmet = manifest.unmet
        return Outcome(manifest.counts, planned, manifest.goals_met, complete=True, already_complete=True, unmet=unmet)
    _note_semantic_masks(session, events)
    Lease(folder, events.waiting).await_free()  # before Ray, whose start costs seconds
    execution = job.execution
    with connect(options.address):
        require_resources(execution.actors, execution.cpus_per_actor, execution.gpus_per_actor, SPLIT_CPUS)
        with Lease(folder, events.waiting) as lease:
            folder.sweep(leave=REPORT_NAME)
            session, run = _begin(session, events, lease)
            budget = _budget(job, folder)
            if job.filters.duplicates:
                hash_sources(folder, session.store, job.geometry, lease, events)
            if job.methods.masksyn and job.methods.masksyn.layout.compares:
                hash_layouts(folder, session.store, job.geometry, lease, events)
            attempt = begin_attempt(folder, execution.model_dump(mode="json"))
            made = {method: whole(build) for method, build in factories.items()} if factories else None
            chains = made or segments(session.job, session.store.label_set, session.limits)
            known = _stage_seconds(folder)
            driver = Driver(session, run, lease, attempt, options, events, chains, budget, known)
            outcome_text = "stopped"
            try:
                outcome = driver.run()
                outcome_text = outcome.ended
                if session.limits.get(RANK, 1.0) < 1:
                    events.note(f"{RANK} ranks over the whole set: `segdatagen refilter {job.uri}` applies it")
            except SegdatagenError as error:
                outcome_text = f"stopped: {error}"
                raise
            finally:
                end_attempt(folder, attempt, outcome_text, driver.spent)
            return outcome


def _stage_seconds(folder: Folder) -> dict[str, dict[str, float]]:
    """What the stages of each method took, over all attempts so far."""
    spent: dict[str, dict[str, float]] = {}
    for attempt in read_attempts(folder):
        for method, stages in attempt.stage_seconds.items():
            found = spent.setdefault(method, {})
            for stage, seconds in stages.items():
                found[stage] = found.get(stage, 0.0) + seconds
    return spent


def _budget(job: Job, folder: Folder) -> Budget:
    """What the limits of the job leave to a new attempt."""
    execution, prices = job.execution, job.prices
    per_hour = pool_price(execution.model_dump(), prices)
    return Budget(execution.max_hours, execution.max_cost, cost_of(read_attempts(folder), prices), per_hour)


def _begin(session: Session, events: Events, lease: Lease) -> tuple[Session, Run]:
    """Bring what is there in line with the limits in force, and `run.json` with the job, under the lease."""
    job = session.job
    folder = Folder(job.uri)
    limits, overrides = limits_in_force(folder, job.filters)
    _note_overrides(job, events)
    if not is_judged(folder, limits):
        events.note(bring_in_line(folder, limits, overrides, lease))
    labels, judges = session.store.label_set, judges_of(job.filters)
    lease.check()
    run = write_run(job.uri, job.model_dump(mode="json"), session.recipes, labels, judges)
    return replace(session, limits=limits), run


def _judges_to_keep(folder: Folder, judges: dict[str, str]) -> dict[str, str]:
    """Those of the judges which may be no others than before: what they scored is stored."""
    if not folder.exists(RUN_NAME):
        return {}
    pinned, kept = open_run(folder.uri).info.judges, dict[str, str]()
    for name, judge_ in judges.items():
        if pinned.get(name, judge_) != judge_:
            filter_name = name.split(".")[0]
            columns = [limit.column for field, limit in LIMITS.items() if field.startswith(f"{filter_name}.")]
            scores = read_columns(folder, read_ledger(folder), columns)
            if any(scores.num_rows > column.null_count for column in scores.columns):
                kept[name] = judge_
    return kept


def _note_overrides(job: Job, events: Events) -> None:
    """Tell which limits are not those of the job."""
    for name, value in limits_in_force(Folder(job.uri), job.filters)[1].items():
        if job.filters.limits().get(name) != value:
            events.note(f"{name} is {value:g} here, as refilter set it; `segdatagen refilter {job.uri}` takes it back")


def _note_semantic_masks(session: Session, events: Events) -> None:
    """Tell that generated masks have no segments, where sources have them."""
    if session.job.methods.masksyn and has_any(session.store, "segments"):
        events.note(f"{session.store.folder.uri} is panoptic: masksyn makes semantic masks, without segments, of it")


def _with_class_names(job: Job, label_set: LabelSet) -> Job:
    """The job with quotas under the label set's own class names, whatever alias or case the file has."""
    goals: list[AnyGoal] = []
    for goal in job.plan:
        if isinstance(goal, Quotas | Cover) and goal.quotas is not None:
            with placed(f"{goal.place}.quotas"):
                named = [(label_set.names[label_set.channel_of(name)], quota) for name, quota in goal.quotas.items()]
                quotas = dict(named)
                if len(quotas) < len(named):
                    raise UsageError(f"two names mean the same class of {label_set.name}: {', '.join(goal.quotas)}")
            goals.append(goal.model_copy(update={"quotas": quotas}))
        else:
            goals.append(goal)
    return job.model_copy(update={"plan": tuple(goals)})


def _nothing_to_do(session: Session, manifest: Manifest) -> bool:
    """Whether a run that ended whole met the goals of this job, or cannot or may not plan another round for them."""
    if manifest.settings != session.settings:
        return False
    return manifest.missing == 0 or manifest.goals_met or manifest.rounds_of_settings >= session.job.settings.max_rounds


def _plan_next(session: Session, folder: Folder) -> tuple[PlanOutcome, PlannedRound | None]:
    """What `plan_job` returns, and the round itself if it is new."""
    ledger, rounds = read_ledger(folder), read_rounds(folder)
    if not is_judged(folder, session.limits):
        ledger = decided(ledger, read_decisions(folder, judge(folder, ledger, session.limits).decisions))
    sample_ids = read_plan(folder, rounds, ["sample_id"])["sample_id"].to_numpy()
    if (ledger.status_of(sample_ids) < 0).any():
        return PlanOutcome(rounds[-1], is_new=False, is_allowed=True), None
    planned = session.next_round(folder, ledger, rounds)
    require_plannable(planned.summary.num_rows)
    return PlanOutcome(planned.summary, is_new=True, is_allowed=session.may_plan(rounds)), planned
