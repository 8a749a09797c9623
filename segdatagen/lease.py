"""One live writer per folder: a small object that its holder renews, and that others may take once it stands still.

Whether a lease stands still is observed, never computed from clocks of two hosts. It does not know what the holder
does.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder

LEASE_NAME = "lease.json"
DURATION = 30.0
"""Seconds without renewal after which a lease may be taken over."""
RENEWAL = 10.0
"""Seconds between two renewals."""


class LeaseError(SegdatagenError):
    """Somebody else works on this folder."""


def host_name() -> str:
    """Name of this host, which clones of a machine, and containers on its network, have too."""
    return socket.gethostname()


def boot_id() -> str:
    """What the kernel drew when it started, empty where none says so: no two machines have the same."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def process_namespace() -> str:
    """Where numbers of processes mean the same as to this one, such as `pid:[4026531836]`, empty where none says so."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


@dataclass(frozen=True)
class Holder:
    """Who holds the lease. `started` tells a process from a later one of the same number.

    Where it runs is said by `host`, `boot` and `namespace`: by default here.
    """

    host: str
    pid: int
    started: str
    token: str
    renewals: int = 0
    boot: str = field(default_factory=boot_id)
    namespace: str = field(default_factory=process_namespace)

    def is_dead_here(self) -> bool:
        """True if the holder ran where this process looks for it, and is gone."""
        here = (host_name(), boot_id(), process_namespace())
        return (self.host, self.boot, self.namespace) == here and process_start(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """The lease of a folder as a context: taken on entry, renewed by a thread, given back on exit.

    Raises LeaseError on entry if another process holds and renews it. `check` raises once it was lost.
    """

    def __init__(self, folder: Folder, waiting: Callable[[Holder], None], duration: float = DURATION) -> None:
        self._folder = folder
        self._waiting = waiting
        self._duration = duration
        self._holder = Holder(host_name(), os.getpid(), process_start(os.getpid()), uuid.uuid4().hex)
        self._stopped = threading.Event()
        self._lost_to: str | None = None
        self._renewed = 0.0
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        while not self._put(self._holder, self.await_free()):
            continue
        self._renewed = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._look_if_late()
        if self._lost_to is None:
            self._folder.delete([LEASE_NAME])

    def await_free(self) -> str | None:
        """The version of a lease that nobody renews, None where there is none; writes nothing. Raises LeaseError."""
        while (found := self._folder.read_versioned(LEASE_NAME)) is not None:
            if self._stands_still(*found):
                return found[1]
        return None

    def check(self) -> None:
        """Raise LeaseError if another process took the lease over, also while this one was suspended."""
        self._look_if_late()
        if self._lost_to is not None:
            raise LeaseError(f"{self._folder.uri}: the lease was taken over by {self._lost_to}; this process stops")

    def _stands_still(self, data: bytes, version: str) -> bool:
        """Wait until nobody renews this version of the lease; False if it was given back meanwhile.

        Raises LeaseError if its holder renews it.
        """
        holder = parse_holder(data)
        if holder is None or holder.is_dead_here():
            return True
        self._waiting(holder)
        deadline = time.monotonic() + self._duration
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._duration / 10))
            found = self._folder.read_versioned(LEASE_NAME)
            if found is None:
                return False
            if holder.is_dead_here():
                return True
            if found[1] != version:
                now = parse_holder(found[0])
                raise LeaseError(f"{self._folder.uri}: is being worked on by {now}; wait for it or stop it first")
        return True

    def _put(self, holder: Holder, version: str | None) -> bool:
        return self._folder.put_if_unchanged(LEASE_NAME, json.dumps(asdict(holder)).encode(), version)

    def _look_if_late(self) -> None:
        """Renew now if that was due long ago: after a suspension the thread has not had its turn yet."""
        if self._lost_to is None and time.monotonic() - self._renewed > self._duration:
            self._renew_once()

    def _renew(self) -> None:
        """Renew until stopped or lost."""
        while self._lost_to is None and not self._stopped.wait(self._duration * RENEWAL / DURATION):
            self._renew_once()

    def _renew_once(self) -> None:
        """Renew, or find out that the lease is lost. A storage that does not answer is asked again while it is ours."""
        with self._renewing:
            problem = "the lease could not be renewed"
            try:
                found = self._folder.read_versioned(LEASE_NAME)
                current = parse_holder(found[0]) if found else None
                if found is None or current is None or current.token != self._holder.token:
                    self._lost_to = str(current) if current else "somebody who removed it"
                    return
                if self._put(replace(current, renewals=current.renewals + 1), found[1]):
                    self._renewed = time.monotonic()
            except (OSError, SegdatagenError) as error:
                problem = f"storage has not answered ({error})"
            if time.monotonic() - self._renewed > self._duration:
                self._lost_to = f"nobody, but {problem} for {self._duration:g} s"


def parse_holder(data: bytes) -> Holder | None:
    """The holder that a lease names; None if it cannot be read, which frees it."""
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return None


def read_holder(folder: Folder) -> Holder | None:
    """Who holds the lease of a folder now, or held it when it died; None if nobody does."""
    found = folder.read_versioned(LEASE_NAME)
    return parse_holder(found[0]) if found else None


def process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot, empty if there is none: tells a reused number apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
