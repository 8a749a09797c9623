"""Best of N: of several images of a row the best is taken, the others are named, and one is as it always was."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import JobFactory, Refused
from hypothesis import given
from hypothesis import strategies as st
from test_filter_stages import OUTCOMES, Draws, attempts
from test_latent_methods import models, options_of  # noqa: F401
from tiny_clip import make_clip
from tiny_segmenter import make_segmenter

from segdatagen.images import decode_image
from segdatagen.job import Job, load_job
from segdatagen.method_context import MethodContext, method_contexts
from segdatagen.methods import Chain, build_chain, content_recipes
from segdatagen.records import PLAN_SCHEMA, derive_seed
from segdatagen.sources import SourceStore, open_store
from segdatagen.stages.adherence import AdherenceStage
from segdatagen.stages.redraw import Choice, Redraws, draw_with_retries
from segdatagen.stages.stage import objects

SEEDS = [7, 8, 9, 10]


# Drawing


@given(st.lists(st.lists(OUTCOMES, min_size=6, max_size=6), min_size=1, max_size=4), st.data())
def test_the_best_of_the_first_n_is_taken_and_more_are_drawn_only_where_all_are_blank(
    outcomes: list[list[float | None]], data: st.DataObject
) -> None:
    count, times = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    scores = data.draw(st.lists(st.lists(st.sampled_from([None, 0.1, 0.5, 0.9]), min_size=21, max_size=21), min_size=4))
    seeds = list(range(100, 100 + len(outcomes)))
    table = {
        derived: outcomes[row][attempt]
        for row, seed in enumerate(seeds)
        for attempt, derived in enumerate(attempts(seed, 5))
    }

    def judge(row: int, seed: int) -> float | None:
        """A score of the row and of what was painted."""
        return scores[row][int(table[seed] or 0)]

    drawn = draw_with_retries(
        Draws(table.__getitem__), seeds, "mask2img", Redraws(10.0, times), Choice(count, "x", judge)
    )
    for row, seed in enumerate(seeds):
        tried = outcomes[row][:count]
        shown = [n for n, level in enumerate(tried) if level is not None and level >= 10]
        of = [-np.inf if (s := scores[row][int(tried[n] or 0)]) is None else s for n in shown]
        if shown:
            best = shown[int(np.argmax(of))]
        else:
            later = outcomes[row][count : count + times]
            good = [n for n, level in enumerate(later) if level is not None and level >= 10]
            tried = outcomes[row][: count + good[0] + 1] if good else outcomes[row][: count + times]
            best = max(range(len(tried)), key=lambda n: (-1.0 if tried[n] is None else tried[n], -n))
        assert drawn.seeds[row] == attempts(seed, 5)[best]
        assert drawn.images[row].max() == round(2 * (tried[best] or 0))
        losers = [derived for n, derived in enumerate(attempts(seed, 5)[: len(tried)]) if n != best]
        assert sorted(entry["seed"] for entry in drawn.candidates[row] or []) == sorted(losers)
        for entry in drawn.candidates[row] or []:
            level = table[entry["seed"]]
            said = None if level is None else scores[row][int(level)]
            scored = said is not None and entry["seed"] in attempts(seed, count - 1)
            assert (entry["score"], entry["value"]) == (("x", said) if scored else ("deviation", level))
        alone = draw_with_retries(
            Draws(table.__getitem__),
            [seed],
            "mask2img",
            Redraws(10.0, times),
            Choice(count, "x", lambda _, seed, row=row: judge(row, seed)),
        )
        assert alone.seeds == [drawn.seeds[row]]
        assert alone.candidates == [drawn.candidates[row]]


def test_without_redraws_what_is_not_finite_loses() -> None:
    levels = {derived: level for seed in (1, 2) for derived, level in zip(attempts(seed, 1), (None, 5.0), strict=True)}
    drawn = draw_with_retries(
        Draws(levels.__getitem__), [1, 2], "mask2img", None, Choice(2, "x", lambda row, seed: None)
    )
    assert drawn.finite.all()
    assert drawn.candidates[0] == [{"seed": attempts(1, 0)[0], "score": "deviation", "value": None}]


# Methods


def context_of(job: Job, method: str = "mask_ddpm") -> MethodContext:
    return method_contexts(job, open_store(job.sources).label_set)[method]


def plan_rows(store: SourceStore, method: str, seeds: list[int]) -> pa.Table:
    """A plan of one source per seed."""
    index = store.index.to_pylist()
    rows = [
        {"sample_id": seed, "round": 0, "method": method, "variant": 0, "seed": seed}
        | {name: index[place % len(index)][name] for name in ("source_id", "source_file", "source_row")}
        for place, seed in enumerate(seeds)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def made(job: Job, method: str = "mask_ddpm", seeds: list[int] | None = None) -> list[dict[str, Any]]:
    chain: Chain = build_chain(method, context_of(job, method))
    rows: list[dict[str, Any]] = chain.run(plan_rows(open_store(job.sources), method, seeds or SEEDS), 1).to_pylist()
    assert all(row["status"] == "ok" for row in rows), rows[0]["reason"]
    return [row | {"seconds": None} for row in rows]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_segmenter(tmp_path_factory.mktemp("segmenter") / "weights"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_clip(tmp_path_factory.mktemp("clip") / "weights"))


def mask_ddpm(weights: Path, best_of: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"mask_ddpm": {"weights": str(weights), "steps": 2, **({"best_of": best_of} if best_of else {})}}


def test_one_candidate_is_as_it_always_was(make_job: JobFactory, scenes_weights: Path, segmenter: str) -> None:
    """The recipe, and with it every id and seed, is that of a job that never heard of it; so are the bytes."""
    plain = load_job(str(make_job(methods=mask_ddpm(scenes_weights))))
    one = load_job(str(make_job(methods=mask_ddpm(scenes_weights, {"candidates": 1, "segmenter": segmenter}))))
    two = load_job(str(make_job(methods=mask_ddpm(scenes_weights, {"candidates": 2, "segmenter": segmenter}))))
    store = open_store(plain.sources)
    recipe = content_recipes(plain, store)
    assert set(recipe["mask_ddpm"]["options"]) == {"weights", "dtype", "sampler", "steps", "guidance", "thresholding"}
    assert content_recipes(one, store) == recipe != content_recipes(two, store)
    assert made(one) == made(plain)
    assert all(row["candidates"] is None for row in made(plain))


def test_the_judge_is_content(make_job: JobFactory, scenes_weights: Path, tmp_path: Path, clip: str) -> None:
    one, other = (str(make_segmenter(tmp_path / name, seed=n)) for n, name in enumerate(("one", "other")))
    cases: list[dict[str, Any]] = [
        {"candidates": 2, "segmenter": one},
        {"candidates": 3, "segmenter": one},
        {"candidates": 2, "segmenter": other},
        {"candidates": 2, "clip": {"weights": clip}},
        {"candidates": 2, "clip": {"weights": clip, "min_pixels": 9}},
    ]
    jobs = [load_job(str(make_job(methods=mask_ddpm(scenes_weights, case)))) for case in cases]
    found = [content_recipes(job, open_store(job.sources)) for job in jobs]
    assert all(a != b for place, a in enumerate(found) for b in found[:place])
    moved = str(make_segmenter(tmp_path / "elsewhere", seed=0))
    job = load_job(str(make_job(methods=mask_ddpm(scenes_weights, {"candidates": 2, "segmenter": moved}))))
    assert content_recipes(job, open_store(job.sources)) == found[0]


@pytest.mark.parametrize("kind", ["segmenter", "clip"])
def test_the_image_with_the_highest_score_is_taken_and_the_others_are_named(
    make_job: JobFactory, scenes_weights: Path, segmenter: str, clip: str, kind: str
) -> None:
    """Every candidate made alone, with its own seed as the only one, and scored by the filter."""
    judge: dict[str, Any] = (
        {"segmenter": segmenter} if kind == "segmenter" else {"clip": {"weights": clip, "min_pixels": 4}}
    )
    filters = {"adherence": {"segmenter": segmenter, "min": 0.0}, "clip_rank": {"weights": clip, "min_pixels": 4}}
    column = "score_adherence" if kind == "segmenter" else "score_clip"
    best = load_job(str(make_job(methods=mask_ddpm(scenes_weights, {"candidates": 3, **judge}), filters=filters)))
    rows = made(best)
    taken_later = 0
    for row in rows:
        drawn = [derive_seed(row["seed"], "mask2img", *([n] if n else [])) for n in range(3)]
        losers = {entry["seed"]: entry["value"] for entry in row["candidates"]}
        assert {entry["score"] for entry in row["candidates"]} == {column.removeprefix("score_")}
        assert len(losers) == 2
        assert set(losers) < set(drawn)
        assert all(value <= row[column] for value in losers.values())
        taken_later += drawn[0] in losers
    assert taken_later, "the first is not always the best"
    first = made(load_job(str(make_job(methods=mask_ddpm(scenes_weights), filters=filters))))
    for row, plain in zip(rows, first, strict=True):
        own = derive_seed(row["seed"], "mask2img")
        losers = {entry["seed"]: entry["value"] for entry in row["candidates"]}
        assert (own in losers) == (row["image_hash"] != plain["image_hash"])
        assert losers.get(own, row[column]) == plain[column], "what lost is scored as it would have been stored"


def test_a_row_is_the_same_whatever_stands_beside_it(
    make_job: JobFactory, scenes_weights: Path, segmenter: str
) -> None:
    job = load_job(str(make_job(methods=mask_ddpm(scenes_weights, {"candidates": 2, "segmenter": segmenter}))))
    together = made(job)
    chain = build_chain("mask_ddpm", context_of(job))
    plan = plan_rows(open_store(job.sources), "mask_ddpm", SEEDS)
    for place in range(len(SEEDS)):
        (alone,) = chain.run(plan.slice(place, 1), 1).to_pylist()
        assert alone | {"seconds": None} == together[place]


def test_latent_methods_take_the_best_too(make_job: JobFactory, models: Path, segmenter: str) -> None:  # noqa: F811
    plain, best = (
        load_job(
            str(
                make_job(
                    methods={"guided": options_of(models, "guided", **more)},
                    plan=[{"method": "guided", "strategy": "uniform", "per_source": 1}],
                )
            )
        )
        for more in ({}, {"best_of": {"candidates": 2, "segmenter": segmenter}})
    )
    one, two = made(plain, "guided", [1, 2]), made(best, "guided", [1, 2])
    assert "best_of" not in content_recipes(plain, open_store(plain.sources))["guided"]["options"]
    label_set = open_store(best.sources).label_set
    from segdatagen.segmenters import Segmenter

    stage = AdherenceStage(Segmenter(segmenter, label_set.names, batch_size=1), label_set)
    for before, after in zip(one, two, strict=True):
        (loser,) = after["candidates"]
        first = derive_seed(after["seed"], "mask2img")
        columns = [stage({n: objects([row[n]]) for n in ("image", "mask")}) for row in (before, after)]
        scores = [found["score_adherence"][0] for found in columns]
        if loser["seed"] == first:
            assert loser["value"] == np.float32(scores[0]) < np.float32(scores[1])
            assert not np.array_equal(decode_image(before["image"]), decode_image(after["image"]))
        else:
            assert after["image_hash"] == before["image_hash"]
            assert loser["value"] <= np.float32(scores[0])


# Mistakes in a job file


@pytest.mark.parametrize(
    ("row", "best_of"),
    [
        ("`best_of` without a judge", {"candidates": 2}),
        ("`best_of` with two judges", {"candidates": 2, "segmenter": "x", "clip": {"weights": "x"}}),
        ("`best_of: {candidates: 0}`", {"candidates": 0, "segmenter": "x"}),
        ("a judge of `best_of` that is not there", {"candidates": 2, "segmenter": "nowhere"}),
        ("`best_of` by what is no CLIP model", {"candidates": 2, "clip": {"weights": "builtin:scenes-segmenter"}}),
    ],
)
def test_mistakes_cost_a_line(
    refused_here: Refused,
    make_job: JobFactory,
    scenes_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: str,
    best_of: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused_here("run", make_job(methods=mask_ddpm(scenes_weights, best_of)), row=row)
