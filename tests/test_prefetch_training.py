"""Weights that a training begins with: fetched from a real server by `prefetch --train` alone."""

import json
from pathlib import Path

import pytest
from conftest import Refused
from hub_server import Hub, Repository, files_below
from test_prefetch import cache, hub  # noqa: F401
from tiny_latent import save_pipeline
from tiny_latent_training import fields, write

from segdatagen.cli import main
from segdatagen.weights import fingerprint_of


def test_what_a_training_begins_with_is_brought_too(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    scenes_store: Path,
    refused_here: Refused,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save_pipeline(tmp_path / "sdxl")
    hub.repositories["town/sdxl"] = Repository()
    hub.repositories["town/sdxl"].commit(files_below(tmp_path / "sdxl"), tag="v1")
    base = "hf://town/sdxl@v1"
    options = fields(scenes_store, tmp_path / "out", base=base, steps=1, prompts=["simple"])
    config = write(tmp_path, "controlnet", options)
    line = refused_here("train", "controlnet", config, "--local")
    there = f"base: weights {base} are not on this machine"
    assert line == f"segdatagen: {there}: `segdatagen prefetch FILE` brings them to its cache\n"
    assert "unknown kind of training 'painter'" in refused_here("prefetch", config, "--train", "painter")
    assert "controlnet.yaml: " in refused_here("prefetch", config), "it is no job"
    assert main(["prefetch", config, "--train", "controlnet", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["weights"]
    assert (row["uri"], row["fetched"], row["fingerprint"]) == (base, True, fingerprint_of(str(tmp_path / "sdxl")))
    asked = len(hub.requests)
    assert main(["train", "controlnet", config, "--local"]) == 0
    assert len(hub.requests) == asked
