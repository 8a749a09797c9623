"""Inpainting starts from sources that show something to draw anew; what they do not show is no sample."""

from pathlib import Path

import numpy as np
import pytest
from conftest import JobFactory, Refused
from test_latent_methods import options_of
from tiny_latent import save_models

from segdatagen.cli import main
from segdatagen.job import load_job
from segdatagen.planner import read_plan, read_rounds
from segdatagen.sources import open_store
from segdatagen.storage import Folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("latent"))


def test_sources_without_the_classes_are_not_planned(make_job: JobFactory, networks: Path, scenes_store: Path) -> None:
    store = open_store(str(scenes_store))
    labels = store.label_set
    shown = {row["source_id"]: set(row["class_ids"]) for row in store.index.to_pylist()}
    ids_of = dict(zip(labels.names, labels.ids.tolist(), strict=True))
    counts = {name: sum(id_ in ids for ids in shown.values()) for name, id_ in ids_of.items()}
    rare = min((name for name in counts if counts[name]), key=lambda name: counts[name])
    assert counts[rare] < len(shown)
    methods = {
        "inpaint": options_of(networks, "inpaint", classes=[rare]),
        "imgsyn": options_of(networks, "imgsyn"),
    }
    plan = [{"method": name, "strategy": "uniform", "per_source": 2} for name in methods]
    job = make_job(methods=methods, plan=plan)
    assert main(["plan", str(job)]) == 0
    run = Folder(load_job(str(job)).uri)
    rows = read_plan(run, read_rounds(run), ["method", "source_id"]).to_pylist()
    of_method = {name: [row["source_id"] for row in rows if row["method"] == name] for name in methods}
    wanted = sorted(name for name, ids in shown.items() if ids_of[rare] in ids)
    assert np.unique(of_method["inpaint"]).tolist() == wanted
    assert len(of_method["inpaint"]) == 2 * counts[rare]
    assert len(of_method["imgsyn"]) == 2 * len(shown)


def test_classes_that_no_source_shows_are_refused(
    refused_here: Refused, make_job: JobFactory, networks: Path, scenes_store: Path
) -> None:
    store = open_store(str(scenes_store))
    shown = {id_ for ids in store.index["class_ids"].to_pylist() for id_ in ids}
    ids_of = dict(zip(store.label_set.names, store.label_set.ids.tolist(), strict=True))
    absent = [name for name, id_ in ids_of.items() if id_ not in shown]
    methods = {"inpaint": options_of(networks, "inpaint", classes=absent[:1])}
    plan = [{"method": "inpaint", "strategy": "uniform", "per_source": 1}]
    job = make_job(methods=methods, plan=plan)
    refused_here("plan", job, row="`inpaint` of classes that no source shows")
