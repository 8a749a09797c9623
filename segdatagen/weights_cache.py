"""Weights of other hosts: what their URIs say, and where a node keeps its own copy of them.

A copy is a folder that was renamed into its place when it was whole, with a record of what it is. Nothing here asks a
network for anything: `fetch_weights` does, for `segdatagen prefetch` alone.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.errors import UsageError
from segdatagen.storage import Folder

CACHE_VARIABLE = "SEGDATAGEN_CACHE"
RECORD_NAME = "weights.json"
FILES_NAME = "files"
SCHEMES = ("hf", "s3")
"""Hosts that weights are fetched from."""

BRANCHES = ("main", "master", "HEAD")
"""Revisions of which it is known without a look that they move; `prefetch` asks the hub about others."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"\w[\w.+/-]*")


@dataclass(frozen=True)
class HubUri:
    """`hf://<repository>[/<path>]@<revision>`: a repository of the hub, a folder or one file of it."""

    repository: str
    path: str
    """Below the repository; empty: all of it."""
    revision: str

    def at(self, revision: str) -> str:
        """The URI of the same at another revision."""
        return f"hf://{self.repository}{'/' * bool(self.path)}{self.path}@{revision}"


class CachedWeights(BaseModel):
    """The record of a copy: where it came from, and what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    revision: str
    """The commit of a repository; of an object store, which has none, a hash of its listing."""
    path: str
    """Of the folder or file that the URI stands for, below the copy."""
    num_bytes: int
    fingerprint: str


def parse_hub_uri(uri: str) -> HubUri:
    """What an `hf://` URI says. Raises UsageError where it names no repository, or no revision."""
    place, at, revision = uri.removeprefix("hf://").rstrip("/").rpartition("@")
    place = (place if at else revision).strip("/")
    organisation, _, rest = place.partition("/")
    name, _, path = rest.partition("/")
    repository = f"{organisation}/{name}"
    if not _REPOSITORY.fullmatch(repository) or ".." in place.split("/"):
        raise UsageError(f"weights {uri}: give hf://org/name@revision, or hf://org/name/path@revision for a part of it")
    if not at or not _REVISION.fullmatch(revision):
        raise UsageError(
            f"weights {uri} have no revision, and may be others tomorrow: pin them, as hf://{place}@COMMIT or @TAG"
        )
    return HubUri(repository, path, revision)


def is_remote(uri: str) -> bool:
    """Whether weights lie on another host. Raises UsageError for one that is not known, or where nothing is pinned."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme not in SCHEMES:
        known = "builtin:NAME, a path, hf://org/name@revision or s3://bucket/folder"
        raise UsageError(f"weights {uri}: {scheme}:// is not supported, use {known}")
    if scheme == "hf":
        parse_hub_uri(uri)
    return True


def cache_root() -> Path:
    """The folder of all that this node keeps: SEGDATAGEN_CACHE, or in the user's cache.

    Raises RuntimeError for a user without a home.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser().absolute() / "segdatagen"


def entry_path(uri: str) -> Path:
    """The folder of the copy of a URI, there or not: a readable name, and a hash of URI and revision."""
    uri = uri.rstrip("/")
    place = uri.rpartition("@")[0] if uri.startswith("hf://") else uri
    name = re.sub(r"[^\w.-]", "-", place.partition("://")[2])[-60:].strip("-.")
    return cache_root() / "weights" / f"{name}-{hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()}"


def read_cached(uri: str) -> CachedWeights | None:
    """The record of the copy of a URI on this node; None: there is no whole one."""
    entry = entry_path(uri)
    if not (entry / RECORD_NAME).is_file():
        return None
    return read_stored(Folder(str(entry)), RECORD_NAME, CachedWeights, UsageError)


def require_copies(fingerprints: Mapping[str, str]) -> None:
    """Raise UsageError unless this node's copies of weights, by URI, are those with these fingerprints."""
    for uri, wanted in fingerprints.items():
        cached_path(uri)
        record = read_cached(uri)
        if record is not None and record.fingerprint != wanted:
            raise UsageError(
                f"this node's copy of {uri} has other bytes than that of the machine that started the run: "
                "`segdatagen prefetch FILE --address ADDRESS` brings the same to every node"
            )


def cached_path(uri: str) -> Path:
    """The local folder or file of weights of another host. Raises UsageError where this node has no copy."""
    record = read_cached(uri)
    if record is None and uri.startswith("hf://") and (revision := parse_hub_uri(uri).revision) in BRANCHES:
        raise UsageError(
            f"weights {uri}: {revision} is the name of a branch, and moves: pin a commit or a tag; "
            "`segdatagen prefetch FILE` says which commit it is now"
        )
    if record is None:
        raise UsageError(f"weights {uri} are not on this machine: `segdatagen prefetch FILE` brings them to its cache")
    return entry_path(uri) / record.path
