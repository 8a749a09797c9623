"""Commands about runs: plan, run, status, verify, publish, report, export, regenerate.

They parse words and print results; the work is the library's.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from segdatagen.cli.data import Address, Json
from segdatagen.errors import SegdatagenError, UsageError

if TYPE_CHECKING:
    from segdatagen.driver import Outcome
    from segdatagen.job import Job
    from segdatagen.status import RunStatus

JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="A job file: a path or s3:// URI.")]
RunUri = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run: <root>/<name>/<version>.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (plan, run, status, verify, publish, report, export, regenerate):
        app.command()(command)


def plan(
    job: JobFile,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Show which images a job would make, and store the next round.

    Example: segdatagen plan jobs/camvid_mask_ddpm/job.yaml --dry-run
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import RunScreen, print_round
    from segdatagen.job import load_job
    from segdatagen.run import plan_job

    loaded = load_job(job)
    planned = plan_job(loaded, RunScreen(silent=as_json), dry_run=dry_run)
    summary = planned.summary
    if as_json:
        stored = not planned.is_new or (planned.is_allowed and not dry_run and summary.num_rows > 0)
        screen.print_json(summary.model_dump(mode="json") | {"new": planned.is_new, "stored": stored})
        return
    print_round(summary)
    if not planned.is_new:
        screen.say(f"{loaded.uri}: this round is planned and not finished yet: `segdatagen run` goes on with it")
    elif not summary.num_rows:
        screen.say(f"{loaded.uri}: nothing is missing")
    elif not planned.is_allowed:
        screen.say(f"{loaded.uri}: max_rounds {loaded.settings.max_rounds} is reached: raise it to plan this round")
    elif dry_run:
        screen.say("dry run: nothing was written")
    else:
        screen.say(f"{loaded.uri}: planned; `segdatagen run {job}` makes it")


def run(
    job: JobFile,
    address: Address = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Make failed samples again.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Make a stratified first N of what is missing, to keep.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a job to its end, or on from where it stopped: the same command, any number of times.

    Example: segdatagen run jobs/camvid_mask_ddpm/job.yaml --address auto
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import RunScreen
    from segdatagen.driver import RunOptions
    from segdatagen.job import load_job
    from segdatagen.run import run_job
    from segdatagen.status import goals_in_words

    loaded = load_job(job)
    shown = RunScreen(silent=as_json)
    try:
        outcome = run_job(loaded, RunOptions(address, retry_failed, limit), shown)
    finally:
        shown.close()
    if as_json:
        screen.print_json(asdict(outcome) | {"uri": loaded.uri})
        return
    counts = ", ".join(f"{count} {status}" for status, count in outcome.counts.items())
    goals = goals_in_words(outcome.goals_met, outcome.unmet)
    if outcome.already_complete:
        screen.say(f"{loaded.uri}: complete before, {goals}, nothing to do: {counts}")
    elif outcome.complete:
        screen.say(f"{loaded.uri}: complete, {goals}: {counts}; next: segdatagen publish {loaded.uri}")
    else:
        screen.say(f"{loaded.uri}: {outcome.ended}: {counts} of {outcome.planned}; {_how_to_go_on(loaded, outcome)}")


def _how_to_go_on(job: "Job", outcome: "Outcome") -> str:
    """What to do about the limit that stopped a run."""
    from segdatagen.budget import COST_OVER, TIME_OVER

    if outcome.ended == TIME_OVER:
        return f"max_hours {job.execution.max_hours:g} are over, the same command goes on"
    if outcome.ended == COST_OVER:
        return f"max_cost {job.execution.max_cost:g} is spent, raise it to go on"
    return "run again without --limit"


def status(run: RunUri, as_json: Json = False) -> None:
    """How far a run is, what failed and why, and who holds it.

    Example: segdatagen status s3://bucket/runs/camvid-balanced/v1
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import IN_WHAT, print_standing
    from segdatagen.run_folder import open_run
    from segdatagen.status import status_of

    found = status_of(open_run(run))
    if as_json:
        screen.print_json(found.model_dump(mode="json"))
        return
    print_standing(found)
    counts = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    rounds = screen.as_count(len(found.rounds), "round")
    screen.say(f"{run}: {found.state}: {rounds} planned, {counts}, {found.missing} of {found.planned} to do")
    for reason, count in found.reasons.items():
        screen.say(f"{count} x {reason}")
    for sentence in found.unreadable:
        screen.say(sentence)
    for attempt in found.attempts:
        ended = f"{attempt.ended}: {attempt.outcome}" if attempt.ended else "no end was recorded"
        screen.say(f"attempt {attempt.number}: {attempt.started} to {ended}")
    if found.cost:
        currency = "" if found.currency else IN_WHAT
        screen.say(f"cost of all attempts{currency}: {screen.as_money(found.cost, found.currency)}")
    screen.say(f"held by {found.held_by}" if found.held_by else "nobody runs it now")
    screen.say(_how_published(found))


def _how_published(found: "RunStatus") -> str:
    """What of the good samples is published, and the command for those that are not."""
    good, how = found.counts["ok"], f"`segdatagen publish {found.uri}`"
    if found.published is None:
        return f"nothing is published yet: {how}" if good else "nothing is published yet"
    published = f"{found.published} sample{'' if found.published == 1 else 's'} published"
    if found.published_is_current:
        return published
    return f"{published}, not the {good} that {'is' if good == 1 else 'are'} good now: {how}"


def verify(
    run: RunUri,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image and mask, and compare hashes.")] = False,
    fraction: Annotated[float | None, typer.Option(help="With --deep: which part of the files; unset: all.")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Compare what lies in a run with its plan. Exit status 1 if anything is wrong.

    Example: segdatagen verify s3://bucket/runs/camvid-balanced/v1 --deep --fraction 0.1
    """
    from segdatagen.cli import screen
    from segdatagen.run_folder import open_run
    from segdatagen.verify import verify_ledger

    if not deep and (fraction is not None or address is not None):
        raise UsageError("--fraction and --address say how --deep looks: give --deep as well, or leave them out")
    opened = open_run(run)
    verdict = verify_ledger(opened)
    problems, checked = verdict.problems, 0
    if deep:
        from segdatagen.deep_verify import verify_parts

        with screen.meter("verify", silent=as_json) as progress:
            checked, found = verify_parts(opened, 1.0 if fraction is None else fraction, address, progress)
        problems += found
    if as_json:
        screen.print_json(asdict(verdict) | {"problems": problems, "parts_decoded": checked})
    else:
        counts = ", ".join(f"{count} {name}" for name, count in verdict.counts.items())
        decoded = f", {screen.as_count(checked, 'file')} decoded" if deep else ""
        screen.say(f"{run}: {verdict.planned} planned, {counts}, {verdict.duplicates} made twice{decoded}")
        for sentence in problems:
            screen.say(sentence)
    if problems:
        raise SegdatagenError(f"{run}: not as planned: {screen.as_count(len(problems), 'problem')}, listed on stdout")


def publish(run: RunUri, as_json: Json = False) -> None:
    """Write the good samples, each once, to data/ in large shards. Safe to run again.

    Example: segdatagen publish s3://bucket/runs/camvid-balanced/v1
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import RunScreen
    from segdatagen.publish import publish as publish_run
    from segdatagen.run_folder import open_run

    with screen.meter("publish", silent=as_json) as progress:
        published = publish_run(open_run(run), RunScreen(silent=as_json).waiting, progress)
    index = published.index
    if as_json:
        screen.print_json(index.model_dump(mode="json") | {"missing": published.missing})
        return
    size = screen.as_bytes(sum(shard.size for shard in index.shards))
    samples, shards = screen.as_count(index.num_rows, "sample"), screen.as_count(len(index.shards), "shard")
    screen.say(f"{run}/data: {samples} in {shards}, {size}, index {index.number}")
    for sentence in published.missing:
        screen.say(f"the run is not whole: {sentence}, then publish again")


def export(
    run: RunUri,
    data_format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="mask_ddpm_folder")],
    out: Annotated[str, typer.Option(help="Folder of the export: a path or s3://bucket/folder, outside the run.")],
    as_json: Json = False,
) -> None:
    """Write the good samples in the layout of other tools. Needs no publish; safe to run again.

    Example: segdatagen export out/demo/runs/demo/v1 --format mask_ddpm_folder --out out/demo/export
    """
    from segdatagen.cli import screen
    from segdatagen.exporters import export as export_run
    from segdatagen.run_folder import open_run
    from segdatagen.verify import verify_ledger

    opened = open_run(run)
    with screen.meter("export", silent=as_json) as progress:
        exported = export_run(opened, data_format, out, progress)
    if as_json:
        screen.print_json(asdict(exported))
        return
    images, masks = screen.as_count(exported.num_images, "image"), screen.as_count(exported.num_sources, "mask")
    left_out = ", ".join(f"{count} {status}" for status, count in exported.left_out.items())
    screen.say(f"{out}: {images} for {masks}, {exported.num_written} written now; left out: {left_out}")
    for sentence in verify_ledger(opened).problems:
        screen.say(f"the run is not whole: {sentence}, then export again")


def regenerate(
    run: RunUri,
    sample_id: Annotated[int, typer.Argument(metavar="ID", help="The sample_id of the row.")],
    out: Annotated[str, typer.Option(help="Folder that receives image and mask.")],
    as_json: Json = False,
) -> None:
    """Make one sample again and compare it with the stored one.

    Example: segdatagen regenerate out/runs/demo/v1 1234567890 --out out/again
    """
    from segdatagen.cli import screen
    from segdatagen.regenerate import regenerate as make_again
    from segdatagen.run_folder import open_run

    found = make_again(open_run(run), sample_id, out)
    if as_json:
        screen.print_json(asdict(found))
        return
    if found.identical:
        screen.say(f"sample {sample_id}: identical to the stored one, byte for byte")
    else:
        mask = "the same mask" if found.mask_identical else "another mask"
        apart = (
            "another size"
            if found.mean_difference is None
            else (
                f"pixels differ by {found.mean_difference:.3f} on average, {found.largest_difference} at most, of 255"
            )
        )
        screen.say(f"sample {sample_id}: not byte for byte the same: {mask}, {apart}")
    for name in found.files:
        screen.say(name)


def report(
    run: RunUri,
    out: Annotated[str | None, typer.Option(help="Folder for the report; unset: report/ of the run.")] = None,
    max_samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Show at most so many; each costs the bytes of its image.")
    ] = 2000,
    as_json: Json = False,
) -> None:
    """Write a page for a browser: balance, contact sheet, a page per sample, problems, scores, time. Safe to run again.

    Example: segdatagen report out/demo/runs/demo/v1
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import RunScreen
    from segdatagen.report.write import ReportRequest, write_report
    from segdatagen.run_folder import open_run

    with screen.meter("report", silent=as_json) as progress:
        events = RunScreen(silent=as_json)
        found = write_report(open_run(run), ReportRequest(out, max_samples), events.waiting, progress)
    if as_json:
        screen.print_json(asdict(found))
        return
    files, size = screen.as_count(found.num_files, "file"), screen.as_bytes(found.num_bytes)
    screen.say(f"{found.index}: {found.num_shown} of {screen.as_count(found.num_samples, 'sample')}, {files}, {size}")
