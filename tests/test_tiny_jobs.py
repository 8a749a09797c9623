"""The papers' jobs in small: each runs as its file says, on samples of public data sets, with small random models."""

import shlex
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from small_models import make_small_models

from segdatagen.cli import main
from segdatagen.deep_verify import verify_parts
from segdatagen.images import decode_mask
from segdatagen.job import load_job
from segdatagen.method_options import LatentOptions, MethodOptions
from segdatagen.run_folder import Run, open_run
from segdatagen.samples import read_ledger
from segdatagen.tables import read_part

JOBS = REPOSITORY / "jobs"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A folder as the jobs expect it: small models, and sources beside them under `out/`."""
    folder = tmp_path_factory.mktemp("tiny_jobs") / "checkout"
    make_small_models(folder / "out/small")
    (folder.parent / "shared").symlink_to(shared.resolve())
    (folder / "jobs").symlink_to(JOBS)
    for kind in ("annotations", "images"):  # as the job's first lines say
        (folder / "out/ade20k" / kind).mkdir(parents=True)
        (folder / "out/ade20k" / kind / "validation").symlink_to(folder.parent / "shared/data/samples/ade20k" / kind)
    return folder


def commands_of(job: Path) -> list[list[str]]:
    """What the comment at the top of a job file says to type, without the shell's own commands."""
    lines = [line.removeprefix("#   ") for line in job.read_text().splitlines() if line.startswith("#   segdatagen ")]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("mask_ddpm_bdd100k", {"mask_ddpm": 12}),
        ("seggen_ade20k", {"imgsyn": 6, "masksyn": 3}),
        ("seggen_coco_panoptic", {"imgsyn": 6}),
        ("sga_voc", {"guided": 2}),
    ],
)
def test_a_tiny_job_runs_as_its_file_says(
    ray_session: None, workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str, counts: dict[str, int]
) -> None:
    monkeypatch.chdir(workplace)
    files = [path for path in (JOBS / name / "tiny_train.yaml", JOBS / name / "tiny_job.yaml") if path.exists()]
    commands = [words for path in files for words in commands_of(path)]
    assert len(commands) >= 2
    for words in commands:
        assert main(words) == 0, shlex.join(words)
    run = open_run(load_job(f"jobs/{name}/tiny_job.yaml").uri)
    ledger = read_ledger(run.folder)
    assert ledger.counts["failed"] == ledger.counts["rejected"] == 0
    methods = [part.name.split("method=")[1].split("/")[0] for part in ledger.parts]
    found = {method: sum(methods[number] == method for number in ledger.part.tolist()) for method in set(methods)}
    assert found == counts
    if name in MADE_OF:
        MADE_OF[name](run)


def rows_of(run: Run) -> list[dict[str, Any]]:
    """All samples of a run."""
    return [row for part in read_ledger(run.folder).parts for row in read_part(run.folder, part.name).to_pylist()]


def require_segments(run: Run) -> None:
    """Samples have the segments of their source, crowds among them, also once they are published."""
    assert main(["publish", run.folder.uri]) == 0
    assert verify_parts(run, 1.0, None, lambda done, total: None)[1] == ()
    shards = Path(run.folder.uri, "data").glob("*.parquet")
    published = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert sorted(published, key=itemgetter("sample_id")) == sorted(rows_of(run), key=itemgetter("sample_id"))
    crowds = set()
    for row in published:
        mask, numbers = decode_mask(row["mask"]), decode_mask(row["segment_map"])
        assert {segment["id"] for segment in row["segments"]} == set(np.unique(numbers)) - {0}
        assert all(set(mask[numbers == one["id"]]) == {one["class_id"]} for one in row["segments"])
        crowds |= {row["source_id"] for one in row["segments"] if one["iscrowd"]}
    assert len(crowds) == 2, "each of the two pictures has a crowd"


def require_class_prompts(run: Run) -> None:
    """A prompt is what a model said of the photograph, and behind it the classes of the mask (SGA, section 3.2.1)."""
    rows = rows_of(run)
    names = {one.id: one.prompt for one in run.label_set.classes}
    for row in rows:
        classes = ", ".join(names[id_] for id_ in row["class_ids"])
        assert row["caption_from"] == "model"
        assert (row["prompt"], row["prompt_notes"]) == (f"{row['caption']}; {classes}", None)
    assert len({row["caption"] for row in rows}) > 1, "each photograph has its own"


MADE_OF = {"seggen_coco_panoptic": require_segments, "sga_voc": require_class_prompts}
"""What the samples of some of the jobs have to be."""


@pytest.mark.parametrize("path", sorted(JOBS.glob("*/tiny_job.yaml")), ids=lambda path: path.parent.name)
def test_a_tiny_job_has_the_methods_strategies_and_filters_of_the_large_one(path: Path) -> None:
    tiny, large = load_job(str(path)), load_job(str(path.with_name("job.yaml")))
    assert tiny.methods.named().keys() == large.methods.named().keys()
    assert {(goal.method, goal.strategy) for goal in tiny.plan} == {(goal.method, goal.strategy) for goal in large.plan}
    for method in tiny.methods.named():
        kinds = [kinds_of(job.methods.named()[method]) for job in (tiny, large)]
        assert kinds[0] == kinds[1], method


def kinds_of(options: MethodOptions) -> list[Any]:
    """What a method is made of, whatever its weights."""
    if not isinstance(options, LatentOptions):
        return []
    priors = [(one.kind, one.prior.name, one.prior.of, one.prior.w1, one.prior.w2) for one in options.controls]
    return [*priors, options.caption.kind, options.prompt.kind]


PAPER_JOBS = sorted(path.with_name("job.yaml") for path in JOBS.glob("*/tiny_job.yaml"))


@pytest.mark.parametrize("path", PAPER_JOBS, ids=lambda path: path.parent.name)
def test_a_job_of_a_paper_is_a_lab_note(path: Path) -> None:
    """Its weights are fetched before it runs; it says on what, how long, and what the paper found."""
    words = [line[0] for line in commands_of(path)]
    assert words.index("prefetch") < words.index("run")
    above = path.read_text().partition("\nname: ")[0]
    for begins in ("Purpose: ", "Hardware: ", "Time, by arithmetic: ", "From the paper"):
        assert f"\n# {begins}" in f"\n{above}", begins
    assert "\n# Expected figures, the paper's and not measured here: " in above
    assert "Ours" in above, "what the paper does not say"


def test_seggen_is_told_captions_of_a_model_alone() -> None:
    """Section 3: the answers of BLIP-2 serve as text prompts. What differs from that is named."""
    for name in ("seggen_ade20k", "seggen_coco_panoptic"):
        path = JOBS / name / "job.yaml"
        for options in load_job(str(path)).methods.named().values():
            assert kinds_of(options)[1:] == ["blip2", "caption"]
        assert "The paper's is BLIP2-FlanT5-xxl" in path.read_text()
