"""What the documents say against what is there: commands, links, formats, layers, the job file of the README."""

import ast
import json
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
import yaml
from conftest import child_environment
from pydantic import BaseModel, TypeAdapter
from test_layers import LAYERS
from wrong_inputs import rows as wrong_inputs

from segdatagen.cli import app
from segdatagen.cli.data import FORMAT_NAMES
from segdatagen.datasets import FORMATS
from segdatagen.diffusion.latent_options import PRESETS
from segdatagen.experiment.options import ExperimentOptions
from segdatagen.filters import LIMITS, Filters
from segdatagen.job import STRATEGIES, Job, PlanSettings, load_job
from segdatagen.labels import LabelSet
from segdatagen.layouts import LayoutOptions
from segdatagen.method_options import (
    COMBINATIONS,
    GuidedOptions,
    InpaintOptions,
    MaskDDPMOptions,
    MaskSynOptions,
    Methods,
)
from segdatagen.records import DECISION_SCHEMA, PLAN_SCHEMA, SAMPLE_SCHEMA, SOURCE_SCHEMA
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.mixture import SyntheticOptions
from segdatagen.training.run import KINDS, kind_type

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "jobs/**/*.md", "cluster/*.md", "docker/*.md")
    for path in REPOSITORY.glob(pattern)
)
HEAVY = {"torch", "ray", "diffusers", "transformers", "pyarrow"}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading {title}"
    return found.group(1)


def table_rows(text: str) -> list[list[str]]:
    """The cells of the tables of a text, without headings and rules."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0].startswith("`") or row[0][:1].isdigit()]


def slugs(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands(command, (*words, name))
    else:
        yield words, group


COMMANDS = dict(commands(typer.main.get_command(app)))


def type_name(field: pa.Field) -> str:
    inner = field.type.value_type if pa.types.is_list(field.type) else field.type
    word = "struct" if pa.types.is_struct(inner) else str(inner)
    return (f"list<{word}>" if pa.types.is_list(field.type) else word) + ("?" if field.nullable else "")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_and_a_row_in_the_readme(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    spoken = f"segdatagen {' '.join(words)}"
    assert f"Example: {spoken}" in (command.help or "")
    rows = [cell for row in table_rows(section(read("README.md"), "Commands")) for cell in row]
    assert any(re.search(rf"`{re.escape(spoken)}\b", cell) for cell in rows)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is(words: tuple[str, ...]) -> None:
    options = [p for p in COMMANDS[words].params if p.name != "help"]
    assert not [option.name for option in options if not getattr(option, "help", None)]


def test_the_readme_names_every_kind_of_training() -> None:
    (row,) = (row for row in table_rows(section(read("README.md"), "Commands")) if "segdatagen train" in row[0])
    named = re.findall(r"`(\w+)`", row[1].split("Kinds: ")[1])
    assert sorted(named) == sorted(KINDS)


def test_the_documents_speak_of_no_other_command() -> None:
    spoken = {
        (document.name, words[0])
        for document in DOCUMENTS
        for words in re.findall(r"`segdatagen ((?:[a-z_]+ ?)+)", document.read_text(encoding="utf-8"))
        for words in [words.split()]
        if words[0] not in {known[0] for known in COMMANDS}
    }
    assert not spoken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), target
        assert not anchor or anchor in slugs(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_files_that_are_named_exist(document: Path) -> None:
    named = re.findall(r"`((?:segdatagen|tests|jobs)/[\w./]+)`", document.read_text(encoding="utf-8"))
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = {
        t for d in DOCUMENTS for t in re.findall(r"(?:^|`)make ([a-z]+)", d.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named <= targets


@pytest.mark.parametrize(
    ("title", "schema"),
    [
        ("Source store", SOURCE_SCHEMA),
        ("Plan row", PLAN_SCHEMA),
        ("Sample row", SAMPLE_SCHEMA),
        ("Decision row", DECISION_SCHEMA),
    ],
)
def test_the_format_tables_are_the_schemas(title: str, schema: pa.Schema) -> None:
    rows = table_rows(section(read("DESIGN.md"), title))
    assert [(row[0].strip("`"), row[1]) for row in rows] == [(field.name, type_name(field)) for field in schema]
    assert all(row[2] for row in rows)


def test_the_layer_table_is_the_one_that_is_checked() -> None:
    written = {
        name.rstrip("/"): int(row[0].split()[0])
        for row in table_rows(section(read("DESIGN.md"), "Layers"))
        for name in re.findall(r"`(\w+/?)`", row[1])
    }
    assert written == {name: layer for name, layer in LAYERS.items() if name != "__init__"}


def test_the_job_file_of_the_readme_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section(read("README.md"), "The job file"), re.DOTALL)
    job = Job.model_validate(yaml.safe_load(text))
    assert job.settings.max_rounds == 2


def test_the_latent_methods_of_the_readme_are_methods() -> None:
    text = section(read("README.md"), "Latent diffusion")
    yamls = re.findall(r"```yaml\n(.*?)```", text + read("docs/latent.md"), re.DOTALL)
    blocks = [yaml.safe_load(block)["methods"] for block in yamls]
    named = [name for block in blocks for name in Methods.model_validate(block).named()]
    assert named == ["guided", "masksyn", "imgsyn"]
    assert {row[0].strip("`") for row in table_rows(text)} == set(COMBINATIONS) == set(Methods.model_fields)
    (layout,) = [block["masksyn"]["layout"] for block in blocks if "masksyn" in block]
    assert LayoutOptions.model_validate(layout) == LayoutOptions(), "what stands there are the defaults"


def test_the_mixture_and_the_experiment_of_the_readme_are_some() -> None:
    text = section(read("README.md"), "Training on a mixture")
    mixture, experiment = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert SyntheticOptions.model_validate(mixture["synthetic"]).p_aug == 0.5
    assert len(list(ExperimentOptions.model_validate(experiment).cells())) == 6


def test_the_presets_of_the_page_about_latent_diffusion_are_those_that_there_are() -> None:
    rows = {
        row[0].strip("`"): row[1].strip("`")
        for row in table_rows(section(read("docs/latent.md"), "Presets and options"))
    }
    assert {name: yaml.safe_load(f"{{{rows[name]}}}") for name in PRESETS} == {n: dict(v) for n, v in PRESETS.items()}


def options_of(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Every option of a model and of its parts, with its default as documents show it."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if field.is_required():
            shown = "required"
        elif isinstance(field.default, BaseModel):
            shown = "of its parts"
        else:
            value = TypeAdapter(field.annotation).dump_python(field.default, mode="json")
            shown = f"`{value if isinstance(value, str) else json.dumps(value)}`"
        yield f"{place}{name}", shown
        if f"{place}{name}" not in ("text2mask.sampler", "text2mask.numerics"):
            for part in parts:
                yield from options_of(part, f"{place}{name}.")


def test_the_page_about_latent_diffusion_has_every_option_with_its_default() -> None:
    """Where methods differ the table has what guided does, and says so."""
    wanted = dict([*options_of(MaskSynOptions), *options_of(InpaintOptions), *options_of(GuidedOptions)])
    rows = table_rows(section(read("docs/latent.md"), "Every option"))
    assert {row[0].strip("`"): row[1] for row in rows} == wanted


def table(text: str, title: str, number: int = 0) -> list[list[str]]:
    """The rows of the table with this number in a section."""
    blocks = re.split(r"(?:^|\n)\n(?=\|)", section(text, title))[1:]
    return table_rows(blocks[number].split("\n\n")[0])


def test_the_page_about_job_files_has_every_entry_with_its_default() -> None:
    """What stands elsewhere is left out: the latent methods, and how the best of several is found."""
    text = read("docs/job.md")

    def written(rows: list[list[str]], place: str = "") -> dict[str, str]:
        return {place + row[0].strip("`"): row[1] for row in rows}

    wanted = {name: shown for name, shown in options_of(Job) if not name.startswith(("methods.", "settings"))}
    filters = {name: shown for name, shown in wanted.items() if name.startswith("filters.")}
    assert written(table(text, "Of a job")) == {n: shown for n, shown in wanted.items() if n not in filters}
    assert written(table(text, "Filters"), "filters.") == filters
    assert written(table(text, "The plan", 1)) == dict(options_of(PlanSettings))
    method = {name: shown for name, shown in options_of(MaskDDPMOptions) if not name.startswith("best_of.")}
    assert written(table(text, "The mask-guided DDPM")) == method
    goals = [
        (strategy, name, shown)
        for strategy, kind in STRATEGIES.items()
        for name, shown in options_of(kind)
        if name not in ("method", "strategy")
    ]
    assert [(row[0].strip("`"), row[1].strip("`"), row[2]) for row in table(text, "The plan")] == goals


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_about_training_has_every_option_of_every_kind(kind: str) -> None:
    """Samplers and priors are those of job files, and are explained there."""
    text, model = read("docs/training.md"), kind_type(kind).options_type
    titles = ["Of every kind", f"Of `{kind}`"]
    if issubclass(model, LatentTrainingOptions):
        titles[1:] = ["Of `base`, `text2mask`, `controlnet` and `t2i_adapter`", f"`{kind}`"]
    elsewhere = ("sampler.", "prior.")
    wanted = {name: shown for name, shown in options_of(model) if not name.startswith(elsewhere)}
    found = {row[0].strip("`"): row[1] for title in titles for row in table_rows(section(text, title))}
    assert found == wanted


def test_the_example_of_the_page_about_training_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", read("docs/training.md"), re.DOTALL)
    assert kind_type("controlnet").options_type.model_validate(yaml.safe_load(block)).num_workers == 2


def test_the_filters_of_the_readme_are_all_that_there_are() -> None:
    text = section(read("README.md"), "Filters")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    filters = Filters.model_validate(yaml.safe_load(block)["filters"])
    assert {name for name in Filters.model_fields if getattr(filters, name)} == set(Filters.model_fields)
    assert [row[0].strip("`") for row in table_rows(text)] == list(Filters.model_fields)
    limits = {f"{row[0].strip('`')}.{name}" for row in table_rows(text) for name in re.findall(r"`(\w+)`", row[2])}
    assert limits == set(LIMITS)


def test_the_label_set_of_the_readme_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section(read("README.md"), "Your data"), re.DOTALL)
    assert LabelSet.from_yaml(text).names == ("ground", "crate")


def test_the_readme_names_every_strategy_and_format() -> None:
    strategies = {row[0].strip("`") for row in table_rows(section(read("README.md"), "The job file"))}
    formats = {row[0].strip("`") for row in table_rows(section(read("README.md"), "Your data"))}
    assert (strategies, formats) == (set(STRATEGIES), set(FORMATS))


def test_the_help_of_ingest_names_every_format() -> None:
    assert FORMAT_NAMES.split(", ") == sorted(FORMATS)


def test_every_wrong_input_of_the_table_is_a_test() -> None:
    """A test that names a row requires it; that a row is named by a test is seen here."""
    named = {
        node.value
        for path in (REPOSITORY / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert len(wrong_inputs()) >= 40
    assert not set(wrong_inputs()) - named


def test_help_imports_nothing_heavy_and_answers_within_a_second() -> None:
    code = (
        "import json, resource, sys; from segdatagen.cli import main; status = main(['--help'])\n"
        "spent = resource.getrusage(resource.RUSAGE_SELF); seconds = spent.ru_utime + spent.ru_stime\n"
        "print(json.dumps([status, seconds, sorted(sys.modules)]), file=sys.stderr)"
    )
    words = [sys.executable, "-c", code]
    runs = [
        json.loads(subprocess.run(words, capture_output=True, text=True, env=child_environment(), check=True).stderr)
        for _ in range(2)
    ]
    status, _, modules = runs[0]
    assert status == 0
    assert not HEAVY & set(modules)
    assert min(seconds for _, seconds, _ in runs) < 1.0  # processor time: the machine may be busy with something else


def fenced_commands(document: Path) -> list[str]:
    """The `segdatagen ...` lines of fenced blocks and of the comments of job files, without what follows them."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if document.suffix == ".md" else [text]
    return [line for block in blocks for line in re.findall(r"^(?:#   )?(segdatagen .+)$", block, re.MULTILINE)]


SPOKEN = [
    (path.relative_to(REPOSITORY).as_posix(), line)
    for path in [*DOCUMENTS, *sorted(REPOSITORY.glob("jobs/*/*.yaml"))]
    for line in fenced_commands(path)
]


@pytest.mark.parametrize(("document", "line"), SPOKEN, ids=[f"{name}: {line}" for name, line in SPOKEN])
def test_commands_in_documents_can_be_given(document: str, line: str) -> None:
    """Every word is one that the command takes, and job files that are named exist."""
    words = shlex.split(line, comments=True)[1:]
    group, spoken = typer.main.get_command(app), words
    while hasattr(group, "commands"):
        assert words[0] in group.commands, line
        group, words = group.commands[words[0]], words[1:]
    group.make_context(spoken[0], list(words))
    assert all((REPOSITORY / word).exists() for word in words if word.startswith("jobs/"))


def test_the_readme_shows_commands_that_are_tested() -> None:
    assert len([line for name, line in SPOKEN if name == "README.md"]) >= 5


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("jobs/*/*job.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_shipped_job_files_are_jobs(path: Path) -> None:
    assert load_job(str(path)).uri.startswith(("out/", "s3://bucket/"))
