"""The arithmetic of `segdatagen balance`: a hand-worked file, wrong input, and the real VOC statistics."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused

from segdatagen.balance_report import balance_report, parse_n_balance, parse_stats
from segdatagen.errors import UsageError

SHARED = Path(os.environ.get("SEGDATAGEN_SHARED", Path(__file__).parents[2] / "shared"))


def stats(**images: dict[str, int]) -> dict[str, Any]:
    return {
        "classes": ["cat", "dog"],
        "images": {name: {"size": [4, 4], "pixels": pixels} for name, pixels in images.items()},
    }


def test_hand_worked_statistics() -> None:
    given = stats(a={"cat": 5}, b={"cat": 3, "dog": 9}, c={"cat": 2})
    # dog lacks one image of b, which raises cat too.
    assert balance_report(given, [2, 1]) == {
        "real": {
            "images": 3,
            "entropy": pytest.approx(0.8112781),
            "cir": 0.75,
            "counts": {"cat": 3, "dog": 1},
        },
        "plans": [
            {
                "n_balance": 2,
                "generated": 1,
                "entropy": pytest.approx(0.9182958),
                "cir": pytest.approx(2 / 3),
                "counts": {"cat": 4, "dog": 2},
            },
            {
                "n_balance": 1,
                "generated": 0,
                "entropy": pytest.approx(0.8112781),
                "cir": 0.75,
                "counts": {"cat": 3, "dog": 1},
            },
        ],
    }


def test_unreachable_classes_are_named_only_where_there_are_any() -> None:
    plans = balance_report(stats(a={"cat": 5}), [0, 3])["plans"]
    assert "unreachable" not in plans[0]
    assert plans[1]["unreachable"] == ["dog"]
    assert plans[1]["counts"] == {"cat": 3, "dog": 0}


def test_min_pixels_decides_what_is_present_and_zero_pixels_never_are() -> None:
    given = stats(a={"cat": 5, "dog": 4}, b={"cat": 0})
    assert balance_report(given, [])["real"]["counts"] == {"cat": 1, "dog": 1}
    assert balance_report(given, [], min_pixels=5)["real"]["counts"] == {"cat": 1, "dog": 0}


def test_the_order_of_images_in_the_file_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    images = {f"i{i}": {"pixels": {c: 1 for c in ("cat", "dog") if rng.random() < 0.4}} for i in range(50)}
    backwards = dict(reversed(images.items()))
    reports = [balance_report({"classes": ["cat", "dog"], "images": x}, [40, "auto"]) for x in (images, backwards)]
    assert reports[0] == reports[1]


def test_the_report_is_json() -> None:
    report = balance_report(stats(a={"cat": 5}, b={"dog": 1}), [3, "auto"])
    assert json.loads(json.dumps(report)) == report


def test_an_empty_data_set_has_a_report() -> None:
    report = balance_report(stats(), [2])
    assert report["real"] == {"images": 0, "entropy": 0.0, "cir": 0.0, "counts": {"cat": 0, "dog": 0}}
    assert report["plans"][0]["unreachable"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "are a list"),
        (None, "are a null"),
        ({"images": {}}, "no 'classes'"),
        ({"classes": ["cat"]}, "no 'images'"),
        ({"classes": [], "images": {}}, "'classes' is not a list"),
        ({"classes": "cat", "images": {}}, "'classes' is not a list"),
        ({"classes": ["cat", 3], "images": {}}, "'classes' is not a list"),
        ({"classes": ["cat", "cat"], "images": {}}, "names 'cat' twice"),
        ({"classes": ["cat"], "images": []}, "'images' is a list"),
        ({"classes": ["cat"], "images": {"a": {"size": [1, 1]}}}, "image 'a' has no 'pixels'"),
        ({"classes": ["cat"], "images": {"a": 3}}, "image 'a' has no 'pixels'"),
        ({"classes": ["cat"], "images": {"a": {"pixels": {"cow": 1}}}}, "image 'a' has pixels of 'cow'"),
        ({"classes": ["cat"], "images": {"a": {"pixels": {"cat": -1}}}}, "image 'a' has -1 pixels of 'cat'"),
        ({"classes": ["cat"], "images": {"a": {"pixels": {"cat": "9"}}}}, "image 'a' has '9' pixels of 'cat'"),
        ({"classes": ["cat"], "images": {"a": {"pixels": {"cat": True}}}}, "image 'a' has True pixels"),
    ],
)
def test_wrong_statistics_are_refused_in_one_line(given: object, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        balance_report(given, [10])
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("quota", [-1, 1.5, "100", True, None, 10**12])
def test_wrong_quotas_are_refused(quota: Any) -> None:
    with pytest.raises(UsageError, match="n_balance is"):
        balance_report(stats(a={"cat": 1}), [quota])


def test_wrong_min_pixels_and_ratio_are_refused() -> None:
    with pytest.raises(UsageError, match="min_pixels is 0"):
        balance_report(stats(a={"cat": 1}), [1], min_pixels=0)
    for ratio in (-1.0, float("nan"), float("inf"), 1e17):
        with pytest.raises(UsageError, match="ratio is"):
            balance_report(stats(a={"cat": 1}), ["auto"], ratio=ratio)


def test_typed_quotas_and_files_are_parsed_or_refused() -> None:
    assert parse_n_balance("auto") == "auto"
    assert parse_n_balance("311") == 311
    for text in ("", "ten", "1.5", "-3"):
        with pytest.raises(UsageError, match="n_balance is"):
            parse_n_balance(text)
    assert parse_stats(b'{"classes": []}') == {"classes": []}
    for text in (b"{", b"\xff\xfe{", b'"\\ud800"', b'"\xed\xa0\x80"', b"[" * 10**5):
        with pytest.raises(UsageError, match="not JSON"):
            parse_stats(text)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("statistics that are not JSON", "{"),
        ("statistics without images", '{"classes": ["road"]}'),
        ("statistics without classes", '{"classes": [], "images": {}}'),
        ("statistics with an image that stands twice", '{"classes": ["road"], "images": {"a": 1, "a": 2}}'),
        ("statistics with half a character in a name", r'{"classes": ["ro\ud800ad"], "images": {}}'),
    ],
)
def test_wrong_file_of_statistics(refused_here: Refused, tmp_path: Path, row: str, text: str) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(text)
    refused_here("balance", stats, "--n-balance", 3, row=row)


@pytest.fixture(scope="module")
def voc() -> object:
    path = SHARED / "data" / "voc" / "class_pixels.json"
    if not path.exists():
        pytest.skip(f"{path} is absent; set SEGDATAGEN_SHARED to the folder of shared inputs")
    return parse_stats(path.read_bytes())


def test_voc_becomes_more_balanced_and_stays_there_as_in_table_4_of_sga(voc: object) -> None:
    plans = [balance_report(voc, ["auto"], ratio=ratio) for ratio in (1.0, 2.0, 3.0)]
    real = plans[0]["real"]
    assert real["images"] == 1153
    generated = [plan["plans"][0] for plan in plans]
    for ratio, plan in enumerate(generated, 1):
        assert abs(plan["generated"] - ratio * 1153) <= 20  # one step of the quota moves at most twenty classes
        assert plan["entropy"] > real["entropy"]
        assert plan["cir"] < real["cir"]
        assert min(plan["counts"].values()) >= plan["n_balance"]
    # Table 4: 3.944 bits and 0.253 at first; then 4.044, 4.042, 4.059 and 0.231, 0.231, 0.224: a step, then a plateau.
    step = generated[0]["entropy"] - real["entropy"]
    assert all(abs(plan["entropy"] - generated[0]["entropy"]) < step for plan in generated[1:])
    assert all(plan["entropy"] <= np.log2(20) for plan in generated)


def test_voc_quota_of_the_commonest_class_makes_every_class_as_common(voc: object) -> None:
    report = balance_report(voc, [100, 311])
    assert max(report["real"]["counts"].values()) == 311
    low, high = report["plans"]
    assert min(low["counts"].values()) >= 100
    assert min(high["counts"].values()) >= 311
    assert low["generated"] < high["generated"] <= sum(311 - n for n in report["real"]["counts"].values())
