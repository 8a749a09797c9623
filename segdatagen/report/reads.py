"""Reads by several threads, of which few are in memory at a time.

It does not know what is read, nor what becomes of it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = os.cpu_count() or 1
Wanted = TypeVar("Wanted")
Found = TypeVar("Found")


def few_at_a_time(read: Callable[[Wanted], Found], wanted: Sequence[Wanted]) -> Iterator[Found]:
    """What is found, in the order in which it is wanted: no more than two a thread are read and not yet handed out."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(wanted), 2 * THREADS):
            yield from pool.map(read, wanted[start : start + 2 * THREADS])
