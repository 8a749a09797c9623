"""Commands about models and machines: train, prefetch, judge, weights, bench, demo.

They parse words and print results; the work is the library's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand

from segdatagen.cli.data import Address, Json
from segdatagen.cli.runs import JobFile
from segdatagen.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(train)
    app.command()(prefetch)
    app.command()(judge)
    app.command(cls=NamesBenchmarks)(bench)
    app.command()(demo)
    weights = typer.Typer(help="Weights of models that were made elsewhere.", no_args_is_help=True)
    weights.command("convert")(weights_convert)
    app.add_typer(weights, name="weights")


class NamesBenchmarks(TyperCommand):
    """A command whose argument is a benchmark. Their names take seconds to import, so only its own help has them."""

    def get_help(self, ctx: Any) -> str:
        """The help, with the names."""
        from segdatagen.benchmark.suite import BENCHMARKS

        (argument,) = (parameter for parameter in self.params if isinstance(parameter, TyperArgument))
        argument.help = f"{', '.join(BENCHMARKS)}; without it, a table of them"
        return super().get_help(ctx)


def train(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="vae, base, text2mask, controlnet, t2i_adapter, mask_ddpm, segmenter, captioner or clip",
        ),
    ],
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="What to train, on which source store.")],
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train weights, or go on from the last checkpoint: the same command.

    Example: segdatagen train mask_ddpm jobs/scenes_mask_ddpm/train.yaml --local
    """
    from segdatagen.cli import screen
    from segdatagen.training.kind import TrainingProgress
    from segdatagen.training.run import train as train_weights

    last: list[TrainingProgress] = []

    def describe() -> str:
        if not last:
            return ""
        found = last[0]
        pace = f"{found.steps_per_second:.2f} steps/s, {found.images_per_second:.0f} images/s"
        return f"loss {found.loss:.4f}, {pace}{_restarts(found.restarts)}{_passed_over(found.passed_over)}"

    shown = screen.Meter("train", as_json, describe)

    def progress(found: TrainingProgress) -> None:
        last[:] = [found]
        shown.update(found.step, found.steps)

    try:
        result = train_weights(kind, config, local, address, progress)
    finally:
        shown.close()
    if as_json:
        screen.print_json(asdict(result))
        return
    spent = screen.as_duration(result.seconds) + _restarts(result.restarts)
    began = f", from step {result.first_step}" if result.first_step else ""
    if result.first_step == result.step:
        began = ", as it was"
    began += _passed_over(result.passed_over)
    screen.say(f"{result.out}: step {result.step} of {result.steps}{began}, loss {result.loss:.4f}, {spent}")
    if result.weights is None:
        screen.say("max_hours are over: the same command goes on")
    else:
        figures = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in result.figures.items())
        screen.say(f"weights: {result.weights}{figures}")


def _restarts(count: int) -> str:
    from segdatagen.cli import screen

    return f", {screen.as_count(count, 'restart')} after workers died" if count else ""


def _passed_over(steps: Sequence[int]) -> str:
    return f" (the checkpoint of step {' and '.join(map(str, steps))} cannot be read)" if steps else ""


def prefetch(
    file: Annotated[str, typer.Argument(metavar="FILE.yaml", help="A job, or with --train a training.")],
    train: Annotated[
        str | None, typer.Option(metavar="KIND", help="FILE is that of a training of this kind, not a job.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster: all its nodes; unset: this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the weights of a job or a training that lie on other hosts (hf://, s3://). Nothing else fetches weights.

    Example: segdatagen prefetch jobs/town/job.yaml --address auto
    """
    from segdatagen.cli import screen
    from segdatagen.job import load_job
    from segdatagen.prefetch import prefetch as prefetch_job
    from segdatagen.prefetch import prefetch_weights, weights_named

    with screen.meter("prefetch, nodes" if address else "prefetch, MB", silent=as_json) as progress:
        if train is None:
            found = prefetch_job(load_job(file), address, progress)
        else:
            from segdatagen.training.run import read_options

            found = prefetch_weights(weights_named(read_options(train, file)), None, address, progress)
    if as_json:
        screen.print_json({"weights": [asdict(row) for row in found]})
        return
    for row in found:
        where = f"{row.node}: " if row.node else ""
        state = "fetched" if row.fetched else "already there"
        pinned = f", revision {row.revision}" if row.revision else ""
        screen.say(f"{where}{row.uri}: {state}, {screen.as_bytes(row.num_bytes)}{pinned}, at {row.path}")


def judge(
    job: JobFile,
    sources: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="A source store that the segmenter was not trained on; the job's without it."
        ),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", min=2, help="At most so many, spread over the store.")] = 1000,
    keep: Annotated[bool, typer.Option("--keep", help="Keep it in the job's run, for the report to show.")] = False,
    as_json: Json = False,
) -> None:
    """How much of their masks the segmenter of `adherence` finds in real images: where to put its limits.

    Example: segdatagen judge jobs/camvid_suite/job.yaml --sources out/camvid/val --keep
    """
    from segdatagen.cli import screen
    from segdatagen.job import load_job
    from segdatagen.judge_sources import judge_sources, run_of
    from segdatagen.judged import PERCENTILES, IouSummary, keep_judged

    wanted = load_job(job)
    run = run_of(wanted) if keep else None
    with screen.meter("judge, images", silent=as_json) as progress:
        found = judge_sources(wanted, sources, images, progress)
    if run:
        keep_judged(run.folder, found)
    if as_json:
        screen.print_json(found.model_dump(exclude={"format_version"}) | {"percentiles": PERCENTILES})
        return

    def row(name: str, one: IouSummary) -> list[object]:
        return [name, one.images, one.iou, one.mean, *one.percentiles]

    rows = [row("whole masks", found.masks), row("masks of other images (chance)", found.other_masks)]
    rows += [row(name, one) for name, one in sorted(found.classes.items(), key=lambda entry: entry[1].mean)]
    columns = ["", "images", "IoU", "mean", *(f"{percentile} %" for percentile in PERCENTILES)]
    screen.table(columns, rows, f"{found.segmenter} on {found.sources}")
    screen.say("IoU of all pixels; mean and percentiles are of the images that show the class; of whole masks: mIoU")
    if sources is None:
        screen.note("what the segmenter was trained on it finds better: --sources names images that it was not")


def weights_convert(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A .ckpt, .pt or .pth file of paper 001.")],
    out: Annotated[str, typer.Option(help="Folder that receives the weights.")],
    labels: Annotated[
        str, typer.Option(help="What it was trained on: a shipped label set, a YAML file or its colormap.json.")
    ],
    size: Annotated[str, typer.Option(metavar="WxH", help="Width and height of its training images.")] = "128x128",
    half: Annotated[bool, typer.Option("--half", help="Store as float16: half the size.")] = False,
    as_json: Json = False,
) -> None:
    """Make a weights folder of a checkpoint of the mask-guided DDPM's authors. Nothing in it is unpickled.

    Example: segdatagen weights convert epoch=549.ckpt --labels colourbook_bdd --out out/weights/paper001
    """
    from segdatagen.cli import screen
    from segdatagen.mask_ddpm_checkpoints import Conversion, convert_checkpoint, parse_size, read_labels

    wanted = Conversion(checkpoint, out, read_labels(labels), parse_size(size), "float16" if half else "float32")
    with screen.meter("convert", silent=as_json) as progress:
        converted = convert_checkpoint(wanted, progress)
    if as_json:
        screen.print_json(asdict(converted))
        return
    state = "already there, unchanged" if converted.unchanged else "written"
    screen.say(f"{out}: {converted.num_parameters:,} parameters, {state}; hidden {converted.network['hidden']}")
    screen.say(f"taken: {converted.taken}; {converted.left_out} other tensors left out")


def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which; without it, a table of them.")] = None,
    kills: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of `bench kills`: how many.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of `bench render`: tiny, or sdxl for a GPU.")
    ] = None,
    microbatch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of `bench render`: images at once.")
    ] = None,
    numerics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Of `bench render`: compile,channels_last,fuse_qkv or some.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=4, metavar="N", help="Of `bench render`: images of each case, a multiple of 4.")
    ] = None,
    trained: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Of `bench scenes_suite`: where its models were trained, if not those shipped."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder whose NAME.csv gets the row.")] = Path("benchmarks"),
    as_json: Json = False,
) -> None:
    """Measure one thing beside a reference in the same run, and keep the row.

    Example: segdatagen bench plan
    """
    from segdatagen.benchmark.measure import record
    from segdatagen.benchmark.render_cases import NUMERICS, Size
    from segdatagen.benchmark.results import write_results
    from segdatagen.benchmark.suite import BENCHMARKS
    from segdatagen.cli import screen
    from segdatagen.storage import Folder

    names = None if numerics is None else [name.strip() for name in numerics.split(",")]
    of_render = {"size": size, "microbatch": microbatch, "images": images, "numerics": names}
    given = _options_of(name, {"kills": {"kills": kills}, "scenes_suite": {"trained": trained}, "render": of_render})
    if images is not None and images % 4:
        raise UsageError(f"--images: {images} is no multiple of 4, and each source has four variants")
    if size not in (None, *get_args(Size)):
        raise UsageError(f"--size: {size!r} is none of {', '.join(get_args(Size))}")
    if unknown := sorted(set(names or ()) - set(NUMERICS)):
        raise UsageError(f"--numerics: {', '.join(unknown)}: only {', '.join(NUMERICS)} can be timed")
    if name is None:
        _list_benchmarks(as_json)
        return
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    Folder(str(out)).require_writable()  # before half an hour of work
    if not as_json:
        screen.note(f"{name}: about {BENCHMARKS[name].minutes:g} min by default, on two cores")
    figures = BENCHMARKS[name].run(**given)
    path = record(out, name, figures)
    page = write_results(out, BENCHMARKS)
    if as_json:
        screen.print_json(figures)
        return
    screen.table(["figure", "value"], [[key, str(value)] for key, value in figures.items()], name)
    screen.say(f"kept in {path}, summed up in {page}")


def _options_of(name: str | None, owned: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options that were given, all of this benchmark. Raises UsageError for one of another."""
    given = {
        owner: {option: value for option, value in options.items() if value is not None}
        for owner, options in owned.items()
    }
    for owner, options in given.items():
        for option in options:
            if name != owner:
                raise UsageError(f"--{option} belongs to `segdatagen bench {owner}`")
    return given.get(name or "", {})


def _list_benchmarks(as_json: bool) -> None:
    from segdatagen.benchmark.suite import BENCHMARKS
    from segdatagen.cli import screen

    rows = [[b.name, b.measures, b.reference, f"{b.minutes:g} min"] for b in BENCHMARKS.values()]
    if as_json:
        names = ("name", "measures", "reference", "takes")
        screen.print_json({"benchmarks": [dict(zip(names, row, strict=True)) for row in rows]})
    else:
        screen.table(["benchmark", "measures", "beside", "takes about"], rows)


def demo(
    out: Annotated[str, typer.Option(help="Folder that receives everything.")] = "out/demo",
    as_json: Json = False,
) -> None:
    """Scenes in, a class-balanced set out, on this machine and without network; ends with a report.

    Example: segdatagen demo --out out/demo
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import RunScreen
    from segdatagen.demo import demo as make_demo

    events = RunScreen(silent=as_json)
    shown: dict[str, screen.Meter] = {}

    def progress(title: str, done: int, total: int) -> None:
        shown.setdefault(title, screen.Meter(title, as_json)).update(done, total)
        if done == total:
            shown.pop(title).close()

    try:
        result = make_demo(out, events, progress)
    finally:
        events.close()
    if as_json:
        screen.print_json(asdict(result))
        return
    counts = ", ".join(f"{count} {status}" for status, count in result.outcome.counts.items())
    screen.say(f"{result.run}: {counts}")
    picture = f", a picture of it {result.picture}" if result.picture else ", empty: no sample is good"
    screen.say(f"the job file is {out}/job.yaml, the data set {result.run}/data{picture}")
    screen.say(f"open {result.report} in a browser")
