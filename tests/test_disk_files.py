"""Files of a disk: what a caller has put is on the disk when it goes on, its name too."""

import os
from pathlib import Path
from typing import Any

import pytest

from segdatagen.disk_files import replace_file
from segdatagen.lease import Lease
from segdatagen.storage import Folder


@pytest.mark.parametrize("before", [None, b"before"])
def test_bytes_are_on_the_disk_before_their_name_and_the_name_before_the_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        synced = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert synced.is_dir() or synced.read_bytes() == b"now", "nothing waits in a buffer"
        seen.append(("fsync", str(synced)))
        fsync(descriptor)

    def noted_replace(source: str, target: str, **more: Any) -> None:
        seen.append(("replace", target))
        replace(source, target, **more)

    path = tmp_path / "new" / "folder" / "file"
    if before is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(before)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    replace_file(str(path), lambda file: file.write(b"now"))
    *made, (what, temporary), replaced, named = seen
    assert made == ([] if before is not None else [("fsync", str(tmp_path / "new")), ("fsync", str(tmp_path))])
    assert (what, Path(temporary).parent) == ("fsync", path.parent)
    assert temporary != str(path)
    assert (replaced, named) == (("replace", str(path)), ("fsync", str(path.parent)))
    assert path.read_bytes() == b"now"


def test_the_folders_of_a_run_are_on_the_disk_though_its_lease_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = set()
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    run = Folder(str(tmp_path / "runs" / "name" / "v1"))
    with Lease(run, lambda holder: None):
        run.put("samples/part", b"rows")
    above = [tmp_path, tmp_path / "runs", tmp_path / "runs" / "name", tmp_path / "runs" / "name" / "v1"]
    assert {str(folder) for folder in above} <= synced
