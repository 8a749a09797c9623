"""Object stores that answer as Amazon's does: conditional puts, and leases."""

from collections.abc import Iterator
from threading import Timer

import object_server
import pytest
import s3fs

from segdatagen.lease import Lease, read_holder
from segdatagen.storage import Folder

SHORT = 1.0
"""Seconds of a lease in these tests, instead of 30."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[object_server.Store]:
    """An object store with one bucket, which the folders of a test find by the environment."""
    with object_server.serve(object_server.Store()) as server:
        settings = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "word",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def folder(store: object_server.Store) -> Folder:
    return Folder(f"s3://{object_server.BUCKET}/run")


def test_a_version_that_is_gone_is_another_version(folder: Folder) -> None:
    assert folder.put_if_unchanged("n", b"0", None)
    assert not folder.put_if_unchanged("n", b"1", None)
    _, version = folder.read_versioned("n") or (b"", "")
    assert folder.put_if_unchanged("n", b"2", version)
    assert not folder.put_if_unchanged("n", b"3", version)
    folder.delete(["n"])
    assert not folder.put_if_unchanged("n", b"4", version)
    assert folder.read_versioned("n") is None


def test_who_waits_for_a_lease_that_is_given_back_takes_it(folder: Folder) -> None:
    first, second = Lease(folder, print, 2 * SHORT), Lease(folder, print, 2 * SHORT)
    first.__enter__()
    Timer(SHORT / 2, first.__exit__, (None, None, None)).start()
    with second:
        second.check()
        assert read_holder(folder) is not None
    assert read_holder(folder) is None
