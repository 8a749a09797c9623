"""The ledger: what lies in the parts has happened, each id once, in the order of precedence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from committed import commit, make_run, plan, sample_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.cli import main
from segdatagen.errors import SegdatagenError
from segdatagen.images import encode_mask
from segdatagen.planner import read_plan, read_rounds
from segdatagen.samples import STATUSES, put_samples, read_ledger, set_aside, split_parts
from segdatagen.verify import check_part, part_entries, verify_ledger


@settings(max_examples=25)
@given(st.dictionaries(st.tuples(st.integers(1, 4), st.integers(1, 3)), st.sampled_from(STATUSES), min_size=1))
def test_precedence_is_ok_rejected_failed_then_attempt(
    tmp_path_factory: pytest.TempPathFactory, outcomes: dict[tuple[int, int], str]
) -> None:
    run = make_run(tmp_path_factory.mktemp("ledger"))
    expected: dict[int, tuple[int, int]] = {}
    for (id_, attempt), status in outcomes.items():
        commit(run, [id_], status, attempt)
        expected[id_] = max(expected.get(id_, (-1, -1)), (STATUSES.index(status), attempt))
    ledger = read_ledger(run.folder)
    found = dict(
        zip(ledger.sample_ids.tolist(), zip(ledger.status.tolist(), ledger.attempt.tolist(), strict=True), strict=True)
    )
    assert found == expected
    assert ledger.num_rows == len(outcomes)


def test_a_replayed_commit_replaces_its_own_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert commit(run, [1, 2]) == commit(run, [1, 2])
    assert read_ledger(run.folder).num_rows == 2
    assert commit(run, [1, 2], attempt=2) != commit(run, [1, 2])


def test_status_of_unknown_ids(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert read_ledger(run.folder).status_of(np.array([5])).tolist() == [-1]
    commit(run, [5])
    commit(run, [7], "failed")
    assert read_ledger(run.folder).status_of(np.array([4, 5, 6, 7, 8])).tolist() == [-1, 2, -1, 0, -1]
    assert read_ledger(run.folder).finished(retry_failed=True).tolist() == [5]


def test_parts_are_of_one_method_and_round() -> None:
    table = pa.concat_tables([sample_rows([1, 2], "ok", 1, 0), sample_rows([3], "ok", 1, 1)])
    assert sorted(part["sample_id"].to_pylist() for part in split_parts(table)) == [[1, 2], [3]]


def test_unreadable_parts_count_as_absent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2, 3])
    torn = tmp_path / "run" / commit(run, [1, 2])
    commit(run, [3])
    torn.write_bytes(torn.read_bytes()[:-9])
    ledger = read_ledger(run.folder)
    assert ledger.sample_ids.tolist() == [3]
    assert list(ledger.unreadable) == [torn.relative_to(tmp_path / "run").as_posix()]
    verdict = verify_ledger(run)
    assert torn.name in verdict.problems[0]
    assert "2 of 3 planned samples are missing" in verdict.problems[1]


def test_only_what_is_damaged_is_set_aside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    good, torn = commit(run, [1]), commit(run, [2])
    (tmp_path / "run" / torn).write_bytes(b"PAR1 and then nothing")
    assert set_aside(run.folder, torn)
    assert not set_aside(run.folder, good)
    assert not set_aside(run.folder, "samples/absent.parquet")
    assert [entry.name for entry in part_entries(run.folder)] == [good]
    assert run.folder.read(f"{torn}.damaged") == b"PAR1 and then nothing"


def test_a_part_damaged_behind_an_intact_footer_is_set_aside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    name = commit(run, [1, 2, 3])
    path = tmp_path / "run" / name
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert column.path_in_schema == "sample_id"
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert list(read_ledger(run.folder).unreadable) == [name]
    assert set_aside(run.folder, name)
    assert read_ledger(run.folder).parts == ()


def test_a_file_of_another_schema_is_no_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    commit(run, [1])
    pq.write_table(pa.table({"text": ["theirs"]}), tmp_path / "run" / "samples" / "theirs.parquet")
    ledger = read_ledger(run.folder)
    assert list(ledger.unreadable) == ["samples/theirs.parquet"]
    assert ledger.sample_ids.tolist() == [1]


def test_verify_names_what_is_in_no_plan(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert verify_ledger(run).problems == ("nothing is planned yet",)
    plan(run, [1])
    commit(run, [1, 9])
    assert verify_ledger(run).problems == ("1 samples are in no plan, the first is 9",)


def test_verify_tells_a_problem_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1])
    commit(run, [1, 9])
    assert main(["verify", str(tmp_path / "run")]) == 1
    out, err = capfd.readouterr()
    assert out.endswith("\n1 samples are in no plan, the first is 9\n")
    assert err == f"segdatagen: {tmp_path / 'run'}: not as planned: 1 problem, listed on stdout\n"


def test_deep_check_finds_every_kind_of_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = sample_rows([1, 2, 3, 4, 5], "ok", 1, 0).to_pylist()
    rows[1]["image"] = rows[1]["image"][: len(rows[1]["image"]) // 2]
    rows[2]["mask"] = rows[0]["mask"]
    rows[3]["height"] = 8
    rows[4]["mask"] = None
    name = put_samples(run.folder, pa.Table.from_pylist(rows))
    problems = check_part(run.folder, name)
    assert any("sample 2: its image is not what was written" in text for text in problems)
    assert any("sample 2: its image cannot be decoded" in text for text in problems)
    assert any("sample 3: its mask is not what was written" in text for text in problems)
    assert any("sample 4: its image is 16 x 16, not 16 x 8" in text for text in problems)
    assert any("sample 5: has no mask" in text for text in problems)
    assert not any("sample 1" in text for text in problems)
    assert [entry.name for entry in part_entries(run.folder)] == [name]


def test_deep_check_holds_segments_against_their_map(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = sample_rows([1, 2, 3, 4, 5, 6], "ok", 1, 0).to_pylist()
    segment_map = np.zeros((16, 16), np.uint8)
    segment_map[2:6, 3:8] = 2
    one = {"id": 2, "class_id": 0, "area": 20, "bbox": [3, 2, 5, 4], "iscrowd": False}
    for row in rows:
        row |= {"segment_map": encode_mask(segment_map), "segments": [one]}
    rows[1]["segments"] = [one | {"area": 19}]
    rows[2]["segments"] = None
    rows[3]["segment_map"] = None
    rows[4]["segment_map"] = encode_mask(segment_map[:8])
    rows[5]["segment_map"] = b"nothing"
    problems = check_part(run.folder, put_samples(run.folder, pa.Table.from_pylist(rows)))
    assert [text.split(": ", 1)[1] for text in problems] == [
        "sample 2: its segments are not those of its segment map",
        "sample 3: has a segment map without its segments",
        "sample 4: has segments without a map of them",
        "sample 5: its segment map is 16 x 8, not 16 x 16",
        "sample 6: its segment map cannot be decoded (not a PNG)",
    ]


def test_a_plan_that_lost_rows_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan(run, [1, 2])
    plan(run, [3], number=1)
    (tmp_path / "run" / "plan" / "round=01" / "part-00000.parquet").unlink()
    with pytest.raises(SegdatagenError, match="the plan lost rows"):
        read_plan(run.folder, read_rounds(run.folder))
