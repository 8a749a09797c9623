"""One live driver per run: renewed leases are respected, dead ones are taken over, lost ones are noticed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import child_environment

from segdatagen.lease import LEASE_NAME, Holder, Lease, LeaseError, host_name, process_start, read_holder
from segdatagen.storage import Folder

SHORT = 1.5
"""Seconds of a lease in these tests, instead of 30."""


def put_holder(folder: Folder, holder: Holder) -> None:
    """Give the lease to `holder`, as another host would: on the version it read, or a renewal just begun undoes it."""
    data = json.dumps(vars(holder)).encode()
    while True:
        found = folder.read_versioned(LEASE_NAME)
        if folder.put_if_unchanged(LEASE_NAME, data, found[1] if found else None):
            return


def check_for(lease: Lease, seconds: float) -> None:
    """Check again and again, as a driver does at every part."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.05)


def test_taken_renewed_and_given_back(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with Lease(folder, lambda holder: None, SHORT) as lease:
        deadline = time.monotonic() + 30
        while (holder := read_holder(folder)) and not holder.renewals and time.monotonic() < deadline:
            time.sleep(0.05)
        assert holder is not None
        assert holder.renewals > 0
        lease.check()
    assert read_holder(folder) is None


def test_renewed_lease_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    waited: list[Holder] = []
    with Lease(folder, waited.append, SHORT):
        second = Lease(folder, waited.append, SHORT)
        with pytest.raises(LeaseError, match="is being worked on by process"):
            second.__enter__()
    assert len(waited) == 1


def test_dead_process_of_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    words = "from segdatagen.lease import Lease; from segdatagen.storage import Folder; import os, sys\n"
    words += "Lease(Folder(sys.argv[1]), print).__enter__(); os._exit(9)"
    died = subprocess.run([sys.executable, "-c", words, str(tmp_path)], env=child_environment(), check=False)
    assert died.returncode == 9
    assert read_holder(folder) is not None
    waited: list[Holder] = []
    with Lease(folder, waited.append):
        assert not waited


def test_a_reused_process_number_is_a_dead_process(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    put_holder(folder, Holder(host_name(), 1, "an earlier start", "token"))
    waited: list[Holder] = []
    with Lease(folder, waited.append):
        assert not waited
    assert process_start(1) != "an earlier start"


@pytest.mark.parametrize("elsewhere", [{"boot": "that of a clone"}, {"namespace": "pid:[1]"}])
def test_a_process_that_cannot_be_seen_from_here_is_waited_for(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    """A clone of this machine, or another container on its network, has its name, and other processes."""
    folder = Folder(str(tmp_path))
    put_holder(folder, Holder(host_name(), 1, "an earlier start", "token", **elsewhere))
    waited: list[Holder] = []
    with Lease(folder, waited.append, SHORT):
        assert [holder.host for holder in waited] == [host_name()]


def test_silent_holder_of_another_host_is_taken_over_after_the_wait(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    put_holder(folder, Holder("elsewhere", 1, "1", "token"))
    waited: list[Holder] = []
    began = time.monotonic()
    with Lease(folder, waited.append, SHORT):
        assert time.monotonic() - began >= SHORT
    assert [holder.host for holder in waited] == ["elsewhere"]


def test_a_lease_that_was_taken_over_stops_its_first_holder(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with Lease(folder, lambda holder: None, SHORT) as lease:
        put_holder(folder, Holder("elsewhere", 7, "1", "token"))
        with pytest.raises(LeaseError, match="taken over by process 7 on elsewhere"):
            check_for(lease, 30)
    holder = read_holder(folder)
    assert holder is not None
    assert holder.host == "elsewhere", "what another one holds is not removed"


SUSPENDED = """
import os, signal, sys
from segdatagen.lease import Lease
from segdatagen.storage import Folder

with Lease(Folder(sys.argv[1]), print, 1.0) as lease:
    os.kill(os.getpid(), signal.SIGSTOP)
    if sys.argv[2] == "check":
        lease.check()
"""


@pytest.mark.parametrize("then", ["check", "exit"])
@pytest.mark.parametrize("is_taken", [True, False])
def test_who_was_suspended_looks_before_it_goes_on(tmp_path: Path, then: str, is_taken: bool) -> None:
    folder = Folder(str(tmp_path))
    words = [sys.executable, "-c", SUSPENDED, str(tmp_path), then]
    child = subprocess.Popen(words, env=child_environment(), stderr=subprocess.PIPE, text=True)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    if is_taken:
        put_holder(folder, Holder("elsewhere", 7, "1", "token"))
    time.sleep(1.5)
    child.send_signal(signal.SIGCONT)
    _, err = child.communicate(timeout=30)
    holder = read_holder(folder)
    assert (holder is not None and holder.host == "elsewhere") == is_taken, "only one's own lease is given back"
    assert ("taken over by process 7 on elsewhere" in err) == (is_taken and then == "check"), err
    assert child.returncode == (1 if is_taken and then == "check" else 0)


def test_an_unreadable_lease_is_free(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.put(LEASE_NAME, b"not JSON")
    with Lease(folder, lambda holder: None, SHORT):
        assert read_holder(folder) is not None
