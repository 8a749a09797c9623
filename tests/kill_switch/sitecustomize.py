"""Kills the process that puts a chosen file, before or after the rename: every Python process of a test imports this.

SEGDATAGEN_KILL is `PATTERN|NUMBER|before or after|COUNTER`: the NUMBER-th time that any process replaces a file whose
path matches PATTERN. COUNTER is a file that all processes count in.
"""

import fcntl
import os
import re
import signal

_SPECIFICATION = os.environ.get("SEGDATAGEN_KILL")


def _install(pattern: str, number: int, moment: str, counter: str) -> None:
    plain_replace = os.replace

    def replace(source: str, target: str, **options: int) -> None:
        hit = re.search(pattern, str(target)) is not None and _count(counter) == number
        if hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        plain_replace(source, target, **options)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def _count(counter: str) -> int:
    with open(counter, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b".")
        file.flush()
        return os.fstat(file.fileno()).st_size


if _SPECIFICATION:
    _pattern, _number, _moment, _counter = _SPECIFICATION.split("|")
    _install(_pattern, int(_number), _moment, _counter)
