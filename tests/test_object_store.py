"""Object stores that answer as Amazon's does, or do not answer: conditional puts, leases, reads that break off."""

import time
from collections.abc import Iterator
from threading import Timer

import object_server
import pytest
import s3fs

from segdatagen.lease import LEASE_NAME, Lease, LeaseError, read_holder
from segdatagen.storage import Folder, StorageError

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


def test_answers_that_break_off_keep_no_connection(store: object_server.Store, folder: Folder) -> None:
    """A client has ten, or fifty: the next question would wait for ever."""
    folder.put("small", b"whole")
    store.fail("GET", "small", object_server.CUT, times=100)
    for _ in range(100):
        with pytest.raises(StorageError):
            folder.read_versioned("small")
    found = folder.read_versioned("small")
    assert found is not None
    assert found[0] == b"whole"


def test_a_lease_is_renewed_though_its_body_once_broke_off(store: object_server.Store, folder: Folder) -> None:
    with Lease(folder, print, SHORT) as lease:
        store.fail("GET", LEASE_NAME, object_server.CUT, times=1)
        while store.faults["GET", LEASE_NAME][0]:
            time.sleep(0.01)
        before, deadline = read_holder(folder), time.monotonic() + 20
        while (holder := read_holder(folder)) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert before is not None
        assert holder is not None
        assert holder.renewals > before.renewals
        lease.check()


def test_a_lease_is_lost_where_its_store_is_silent_for_too_long(store: object_server.Store, folder: Folder) -> None:
    """Others may take it by then, and its holder would not see them."""
    with Lease(folder, print, SHORT / 2) as lease:
        store.fail("GET", LEASE_NAME, object_server.CUT)
        time.sleep(SHORT)
        with pytest.raises(LeaseError, match="taken over by nobody, but storage has not answered"):
            lease.check()
    assert f"run/{LEASE_NAME}" in store.objects, "what may be another's is not removed"


def test_a_body_that_always_breaks_off_is_an_error_of_the_store(store: object_server.Store, folder: Folder) -> None:
    folder.put("n", b"0123456789")
    store.fail("GET", "n", object_server.CUT)
    for read in (folder.read, folder.read_versioned):
        with pytest.raises(StorageError, match="the object store does not serve this"):
            read("n")


def test_a_store_that_does_not_say_whether_something_exists(store: object_server.Store, folder: Folder) -> None:
    """Not an error that a task of Ray Data would drop its block for: actors ask before they make a part."""
    assert not folder.exists("n")
    store.fail("HEAD", "n", 503)
    with pytest.raises(StorageError, match="s3://bucket/run/n: cannot be looked for"):
        folder.exists("n")
