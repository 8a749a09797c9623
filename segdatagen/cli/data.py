"""Commands about real data: ingest, sources, balance, labels.

They parse words and print results; what they print is computed by the library.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdatagen.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from segdatagen.sources import SourceStore

Address = Annotated[str | None, typer.Option(help="A running Ray cluster; unset: Ray starts in this process.")]
FORMAT_NAMES = (
    "ade20k, bdd100k, bdd100k_instances, bdd100k_panoptic, camvid, captions, cityscapes_label_ids, "
    "cityscapes_train_ids, coco_panoptic, colormap, hf_dataset, id_masks, masks, parquet, scenes, voc, voc_aug"
)
"""Those of `datasets.FORMATS`, which is not imported for a help text; a test compares."""
OF_STATS = '{"classes": [NAME, ...], "images": {ID: {"pixels": {NAME: NUMBER}}}}'
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(ingest)
    app.command()(sources)
    app.command()(balance)
    labels = typer.Typer(help="Show and check label sets.", no_args_is_help=True)
    labels.command("list")(labels_list)
    labels.command("show")(labels_show)
    labels.command("validate")(labels_validate)
    app.add_typer(labels, name="labels")


def ingest(
    data_format: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {FORMAT_NAMES}.")],
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="Folder (captions, parquet: or file); scenes: COUNT@WIDTHxHEIGHT.")
    ],
    split: Annotated[str, typer.Option(help="Which split it is, for example train.")],
    out: Annotated[str, typer.Option(help="Folder of the source store: a path or s3://bucket/folder.")],
    labels: Annotated[str | None, typer.Option(help="A shipped label set or a YAML file.")] = None,
    snap_colours: Annotated[
        float | None, typer.Option(metavar="DIST", help="Take painted colours as a class up to this RGB distance.")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(metavar="PART", help="Only first:N, a fraction (1/16), or the ids or files that a FILE lists."),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Captions: COCO's JSON, JSON lines or name<TAB>caption; the first of each image."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images below ROOT, where they lie elsewhere; none: masks alone."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Columns of tables: image=photo,mask=label,id=name,caption=text."),
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave bad files out and list them in source.json.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Read and check a data set on Ray and write a source store. Safe to run again.

    Example: segdatagen ingest camvid data/camvid --split train --out s3://bucket/sources/camvid-train

    Example: segdatagen ingest voc data/VOC2012 --split train --partition 1/16 --out out/voc/sixteenth
    """
    from segdatagen.cli import screen
    from segdatagen.cli.run_screen import RunScreen
    from segdatagen.datasets import Options, open_reader
    from segdatagen.ingest import IngestRequest
    from segdatagen.ingest import ingest as ingest_sources

    options = Options(labels, snap_colours, images, columns, partition, captions)
    reader = open_reader(data_format, root, split, options)
    request = IngestRequest(data_format, root, split, out, skip_bad, address, partition, captions)
    with screen.meter("ingest", silent=as_json) as progress:
        store, unchanged = ingest_sources(request, reader, progress, RunScreen(silent=as_json).waiting)
    if as_json:
        screen.print_json(store.info.model_dump(mode="json") | {"unchanged": unchanged})
        return
    _say_ingested(out, store, unchanged=unchanged, captions=captions is not None)
    for problem in store.info.skipped:
        screen.say(f"left out: {problem}")


def _say_ingested(out: str, store: "SourceStore", *, unchanged: bool, captions: bool) -> None:
    from segdatagen.cli import screen
    from segdatagen.source_report import figures_of

    sources, parts = screen.as_count(store.info.num_sources, "source"), screen.as_count(len(store.info.parts), "part")
    screen.say(f"{out}: {sources} in {parts}, {'already there, unchanged' if unchanged else 'written'}")
    if captions:
        screen.say(f"{figures_of(store).captions} of {sources} have a caption")


def sources(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a source store.")],
    source: Annotated[str | None, typer.Option("--id", metavar="ID", help="The source to draw.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write it to this PNG file: image, and mask in colours.")] = None,
    as_json: Json = False,
) -> None:
    """What a source store holds, and a picture of one source with every segment outlined.

    Example: segdatagen sources out/coco --id 000000142238 --picture out/142238.png
    """
    from dataclasses import asdict

    from segdatagen.cli import screen
    from segdatagen.datasets.reader import first_names
    from segdatagen.source_report import figures_of, picture_of
    from segdatagen.sources import open_store

    if (source is None) != (picture is None):
        raise UsageError("--id and --picture belong together: which source, and the file to draw it to")
    opened = open_store(store)
    if source is not None and picture is not None:
        _put_picture(picture, lambda: picture_of(opened, source))
        if not as_json:
            screen.say(f"{picture}: source {source} of {store}")
            return
    figures = figures_of(opened)
    if as_json:
        screen.print_json(asdict(figures))
        return
    rows = [[c.name, c.sources, c.segments, f"{c.pixel_share:.2%}"] for c in figures.classes if c.sources]
    screen.table(["class", "sources", "segments", "pixels"], rows, f"{store}: {figures.label_set}, {figures.split}")
    absent = [c.name for c in figures.classes if not c.sources]
    if absent:
        screen.say(f"in no source: {first_names(absent)}")
    screen.say(
        f"{screen.as_count(figures.sources, 'source')}: {screen.as_count(figures.masks, 'mask')}, "
        f"{screen.as_count(figures.images, 'image')}, {screen.as_count(figures.captions, 'caption')}, "
        f"{screen.as_count(figures.segments, 'segment')}, of which {screen.as_count(figures.crowds, 'crowd')}"
    )


def _put_picture(path: Path, draw: "Callable[[], np.ndarray]") -> None:
    """Write a picture. Raises UsageError where nothing can be written, or the name promises another format."""
    from segdatagen.images import encode_image
    from segdatagen.storage import Folder

    if path.suffix.lower() != ".png":
        raise UsageError(f"--picture {path}: it is a PNG file, give a name that ends in .png")
    folder = Folder(str(path.parent))
    folder.require_writable()
    folder.put(path.name, encode_image(draw(), "png"))


def balance(
    stats: Annotated[str, typer.Argument(metavar="STATS.json", help=OF_STATS)],
    n_balance: Annotated[list[str], typer.Option(help="Images per class to reach, or auto. May be given often.")],
    ratio: Annotated[float, typer.Option(help="With auto: generated images per real image.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides between sources that are equally good.")] = 0,
    min_pixels: Annotated[int, typer.Option(help="Pixels from which a class counts as present.")] = 1,
    as_json: Json = False,
) -> None:
    """The arithmetic of class balance alone, on a file of class statistics.

    Example: segdatagen balance class_pixels.json --n-balance 100 --n-balance 311 --json
    """
    from segdatagen.balance_report import StatisticsError, balance_report, parse_n_balance, parse_stats
    from segdatagen.cli import screen
    from segdatagen.storage import read_any

    try:
        text = read_any(stats)
    except OSError as error:
        raise UsageError(f"{stats}: {(error.strerror or str(error)).lower()}") from None
    quotas = [parse_n_balance(value) for value in n_balance]
    try:
        report = balance_report(parse_stats(text), quotas, seed, min_pixels, ratio)
    except StatisticsError as error:
        raise UsageError(f"{stats}: {error}") from error
    if as_json:
        screen.print_json(report)
        return
    real = report["real"]
    rows = [["real", "", real["entropy"], real["cir"]]]
    rows += [[f"N = {plan['n_balance']}", plan["generated"], plan["entropy"], plan["cir"]] for plan in report["plans"]]
    screen.table(["images", "generated", "entropy", "CIR"], rows)
    classes = [
        [name, count, *(plan["counts"][name] for plan in report["plans"])] for name, count in real["counts"].items()
    ]
    screen.table(["class", "real", *(f"N = {plan['n_balance']}" for plan in report["plans"])], classes)
    for plan in report["plans"]:
        if plan.get("unreachable"):
            screen.say(f"N = {plan['n_balance']}: no source shows enough of {', '.join(plan['unreachable'])}")


def labels_list(as_json: Json = False) -> None:
    """The shipped label sets.

    Example: segdatagen labels list
    """
    from segdatagen.cli import screen
    from segdatagen.datasets.reader import first_names
    from segdatagen.labels import load_label_set, shipped_label_sets

    sets = [load_label_set(name) for name in shipped_label_sets()]
    if as_json:
        found = [{"name": s.name, "version": s.version, "num_classes": s.num_classes} for s in sets]
        screen.print_json({"label_sets": found})
    else:
        rows = [[s.name, s.version, s.num_classes, first_names(s.names, 12)] for s in sets]
        screen.table(["label set", "version", "classes", "names"], rows)


def labels_show(
    name: Annotated[str, typer.Argument(metavar="LABELS", help="A shipped label set or a YAML file.")],
    picture: Annotated[Path | None, typer.Option(help="Write the colour book to this PNG file.")] = None,
    as_json: Json = False,
) -> None:
    """The classes of a label set, and a picture of its colours.

    Example: segdatagen labels show camvid --picture camvid.png
    """
    from segdatagen.cli import screen
    from segdatagen.colours import colour_book
    from segdatagen.labels import load_label_set

    label_set = load_label_set(name)
    if picture is not None:
        _put_picture(picture, lambda: colour_book(label_set))
    if as_json:
        screen.print_json(label_set.model_dump(mode="json"))
        return
    rows = [[c.id, c.name, c.prompt, c.kind, "#{:02x}{:02x}{:02x}".format(*c.colour)] for c in label_set.classes]
    screen.table(["id", "name", "prompt", "kind", "colour"], rows, f"{label_set.name}, version {label_set.version}")
    screen.say(f"ignored ids: {', '.join(map(str, label_set.ignore_ids)) or 'none'}")


def labels_validate(
    path: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or the name of a shipped label set.")],
    as_json: Json = False,
) -> None:
    """Check a label set; every problem is named.

    Example: segdatagen labels validate my_labels.yaml
    """
    from segdatagen.cli import screen
    from segdatagen.labels import load_label_set

    label_set = load_label_set(path)
    if as_json:
        found = {"name": label_set.name, "version": label_set.version, "num_classes": label_set.num_classes}
        screen.print_json({"file": path} | found)
        return
    screen.say(f"{path}: {label_set.name}, version {label_set.version}, {label_set.num_classes} classes, no problem")
