"""The weights of a job or a training on every node that will load them: this machine, or each node of a Ray cluster.

Knows which options name weights, and where tasks run; how weights come to a node is known elsewhere.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from pydantic import BaseModel
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segdatagen.cluster import connect
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.fetch_weights import Wanted, fetch, survey
from segdatagen.job import Job
from segdatagen.weights import local_weights, map_weights
from segdatagen.weights_cache import cached_path, is_remote

MEGABYTE = 10**6

Progress = Callable[[int, int], None]
"""Called with what is done and all of it: megabytes on this machine, nodes of a cluster."""


@dataclass(frozen=True)
class Prefetched:
    """Weights on a node. `revision` and `fingerprint` are null where they were not fetched: a path, or builtin."""

    node: str
    uri: str
    path: str
    num_bytes: int
    revision: str | None
    fingerprint: str | None
    fetched: bool
    """Whether it was this call that brought them."""


def weights_of(job: Job) -> list[str]:
    """URIs of all weights that methods and filters of a job name, each once, paths absolute."""
    job = job.from_anywhere()
    return weights_named(job.methods, job.filters)


def weights_named(*parts: BaseModel) -> list[str]:
    """URIs of all weights that options name, each once."""
    found: dict[str, None] = {}

    def note(uri: str) -> str:
        found.setdefault(uri)
        return uri

    for options in parts:
        map_weights(options, note)
    return list(found)


def prefetch(job: Job, address: str | None, progress: Progress) -> list[Prefetched]:
    """Bring the weights of a job to the cache of this machine, or of every node of the cluster at `address`.

    Raises as `prefetch_weights` does.
    """
    return prefetch_weights(weights_of(job), job.hub.token_name, address, progress)


def prefetch_weights(
    uris: list[str], token_name: str | None, address: str | None, progress: Progress
) -> list[Prefetched]:
    """The same for weights that are named. `token_name`: of a variable with a token for the hub; None: HF_TOKEN.

    What a node has is not fetched again. Raises UsageError, before anything is fetched, where weights do not exist or
    are not pinned; SegdatagenError where a host does not answer, or nodes end up with other bytes than their peers.
    """
    for uri in uris:
        is_remote(uri)
    if address is None:
        return bring_all(uris, token_name, "", progress)
    with connect(address):
        found = [row for rows in _on_every_node(uris, token_name, progress) for row in rows]
    for uri in uris:
        rows = [row for row in found if row.uri == uri]
        others = [row for row in rows if row.fingerprint != rows[0].fingerprint]
        if others:
            raise SegdatagenError(
                f"{uri}: node {others[0].node} has other files than node {rows[0].node}: delete {others[0].path}, "
                "and the same command fetches them there again"
            )
    return found


def bring_all(uris: list[str], token_name: str | None, node: str, progress: Progress) -> list[Prefetched]:
    """Bring weights to this machine, all of which are looked for first. `token_name`: of a variable with a token."""
    token = os.environ.get(token_name or "HF_TOKEN")
    if token_name and not token:
        raise UsageError(f"hub.token: the environment has no {token_name}")
    surveyed = {uri: survey(uri, token) if is_remote(uri) else local_weights(uri) for uri in uris}
    wanted = {uri: found for uri, found in surveyed.items() if isinstance(found, Wanted)}
    total, done = sum(found.num_bytes for found in wanted.values()), 0

    def more(num_bytes: int) -> None:
        nonlocal done
        done = min(total, done + num_bytes)
        progress(done // MEGABYTE, -(-total // MEGABYTE))

    rows = []
    for uri, found in surveyed.items():
        if isinstance(found, Path):
            rows.append(Prefetched(node, uri, str(found), _num_bytes(found), None, None, False))
            continue
        record = fetch(found, more) if isinstance(found, Wanted) else found
        place = str(cached_path(uri))
        rows.append(Prefetched(node, uri, place, record.num_bytes, record.revision, record.fingerprint, uri in wanted))
    return rows


def _on_every_node(uris: list[str], token_name: str | None, progress: Progress) -> Iterator[list[Prefetched]]:
    """`bring_all` once on every node that is alive, in no order."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    bring = ray.remote(num_cpus=0)(_bring_here)
    pending = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = str(node["NodeManagerAddress"])
        pending[bring.options(scheduling_strategy=there).remote(uris, token_name, name)] = name
    progress(0, len(nodes))
    while pending:
        (ended,), _ = ray.wait(list(pending), num_returns=1)
        name = pending.pop(ended)
        try:
            yield ray.get(ended)
        except RayTaskError as error:
            if isinstance(error.cause, SegdatagenError):
                raise type(error.cause)(f"node {name}: {error.cause}") from error
            raise SegdatagenError(f"node {name}: {' '.join(str(error.cause).split())[:200]}") from error
        except RayError as error:
            raise SegdatagenError(
                f"node {name}: the task that fetches weights died ({type(error).__name__})"
            ) from error
        progress(len(nodes) - len(pending), len(nodes))


def _bring_here(uris: list[str], token_name: str | None, node: str) -> list[Prefetched]:
    return bring_all(uris, token_name, node, lambda *_: None)


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
