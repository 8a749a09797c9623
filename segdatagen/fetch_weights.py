"""Weights of another host brought to the cache of this node: the only code that asks a hub, for `prefetch` alone.

Of a repository or folder it takes what is loaded (safetensors, configurations, tokenizers), never a pickle. It does not
know jobs, nor other nodes.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from segdatagen.disk_files import sync_to_disk
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.hub import DOWNLOAD_NAME, HubSource
from segdatagen.storage import Entry, Folder
from segdatagen.weights import INDEX_NAME, check_tensors, fingerprint_of
from segdatagen.weights_cache import FILES_NAME, RECORD_NAME, CachedWeights, entry_path, parse_hub_uri, read_cached

LOADED = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Ends of names that are loaded: tensors, configurations, vocabularies."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
TWINS = (".fp16", ".non_ema")
"""In names of tensors that the same folder also holds whole."""
PIECE_BYTES = 64 * 2**20

Progress = Callable[[int], None]
"""Called with the bytes that came in since the last call."""


class Source(Protocol):
    """Where weights come from: a repository of the hub, or a folder of an object store."""

    uri: str
    revision: str
    """What the bytes are pinned by: a commit; of an object store a hash of names, sizes and versions of its objects."""
    single_file: bool
    """Whether the URI names one file: the only one of `entries`."""

    def entries(self) -> Sequence[Entry]:
        """Every file, with its size, by its name below the URI."""
        ...

    def read(self, name: str) -> bytes:
        """A small file."""
        ...

    def fetch(self, name: str, folder: Path, progress: Progress) -> None:
        """Bring a file below a local folder, under its name; what an earlier call left there may be of use."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Weights that exist and are not in the cache."""

    source: Source
    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size for entry in self.entries)


class StoreSource:
    """Weights below a folder of an object store, or one object."""

    def __init__(self, uri: str) -> None:
        """Raises UsageError where nothing lies there."""
        self.uri = uri.rstrip("/")
        self._folder, self._entries = Folder(self.uri), Folder(self.uri).entries()
        self.single_file = not self._entries
        if self.single_file:
            parent, _, name = self.uri.rpartition("/")
            self._folder = Folder(parent)
            try:
                self._entries = [self._folder.entry(name)]
            except OSError as error:
                raise UsageError(f"there are no weights at {uri}: no object, and none below it") from error
        known = [(entry.name, entry.size, entry.version) for entry in self._entries]
        self.revision = hashlib.blake2b(repr(known).encode(), digest_size=20).hexdigest()

    def entries(self) -> Sequence[Entry]:
        """Every object below the URI."""
        return self._entries

    def read(self, name: str) -> bytes:
        """All bytes of an object."""
        return self._folder.read(name)

    def fetch(self, name: str, folder: Path, progress: Progress) -> None:
        """Write an object to a file, a piece after the other."""
        size = next(entry.size for entry in self._entries if entry.name == name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for first in range(0, size, PIECE_BYTES):
                progress(file.write(self._folder.read_range(name, first, min(PIECE_BYTES, size - first))))


def survey(uri: str, token: str | None) -> Wanted | CachedWeights:
    """What is to fetch of the weights at a URI, or the record of what this node has of them. Writes nothing.

    What has changed in an object store since it was fetched is to be fetched again. Raises UsageError where weights do
    not exist, are not pinned, or have nothing that would be loaded; SegdatagenError where their host does not answer.
    """
    record = read_cached(uri)
    if uri.startswith("hf://"):
        if record:
            return record
        source: Source = HubSource(uri, parse_hub_uri(uri), token)
    else:
        source = StoreSource(uri)
        if record and record.revision == source.revision:
            return record
    found = source.entries()
    return Wanted(source, tuple(found) if source.single_file else _loaded(source, found))


def fetch(wanted: Wanted, progress: Progress) -> CachedWeights:
    """Bring weights to the cache, whole or not at all; what a killed call left is used, or thrown away.

    One process at a time: another one waits, and then finds them there. Raises SegdatagenError.
    """
    entry = entry_path(wanted.source.uri)
    try:
        with _locked(entry.parent / f".{entry.name}.lock"):
            record = read_cached(wanted.source.uri)
            if record and (record.uri.startswith("hf://") or record.revision == wanted.source.revision):
                progress(wanted.num_bytes)
                return record
            part = entry.parent / f".{entry.name}.{wanted.source.revision[:12]}.part"
            for other in entry.parent.glob(f".{entry.name}.*.part"):
                if other != part:
                    shutil.rmtree(other)
            return _bring(wanted, part, entry, progress)
    except OSError as error:
        raise SegdatagenError(f"{entry.parent}: weights cannot be written here ({error.strerror or error})") from error


def _bring(wanted: Wanted, part: Path, entry: Path, progress: Progress) -> CachedWeights:
    """Fetch into a folder beside the entry, and rename it once all of it is on the disk."""
    files, source = part / FILES_NAME, wanted.source
    files.mkdir(parents=True, exist_ok=True)
    for file in wanted.entries:
        source.fetch(file.name, files, progress)
        try:
            _check(source, files / file.name, file.size)
        except SegdatagenError:
            shutil.rmtree(part)  # or the next call would take it for fetched
            raise
    if (files / DOWNLOAD_NAME).exists():
        shutil.rmtree(files / DOWNLOAD_NAME)
    path = f"{FILES_NAME}/{wanted.entries[0].name}" if source.single_file else FILES_NAME
    pinned = fingerprint_of(str(part / path))
    record = CachedWeights(
        uri=source.uri,
        revision=source.revision,
        path=path,
        num_bytes=wanted.num_bytes,
        fingerprint=pinned,
    )
    (part / RECORD_NAME).write_text(record.model_dump_json(indent=1) + "\n")
    for written in [*part.rglob("*"), part]:
        sync_to_disk(written)
    if entry.exists():  # objects that have changed since: who has opened the old files goes on reading them
        old = entry.with_name(f".{entry.name}.old.part")
        entry.rename(old)
        part.rename(entry)
        shutil.rmtree(old)
    else:
        part.rename(entry)
    sync_to_disk(entry.parent)
    return record


def _check(source: Source, path: Path, size: int) -> None:
    """Raise SegdatagenError unless a file has the size that its host said, and tensors a header that fits it."""
    found = path.stat().st_size
    if found != size:
        raise SegdatagenError(f"{source.uri}: {path.name} came with {found} bytes of {size}: fetch it again")
    if path.suffix == ".safetensors":
        check_tensors(path)


def _loaded(source: Source, found: Sequence[Entry]) -> tuple[Entry, ...]:
    """Of the files of a folder those that are loaded. Raises UsageError where no tensors are among them."""
    kept = [entry for entry in found if entry.name.endswith(LOADED) and not _is_hidden(entry.name)]
    if any(entry.name == INDEX_NAME for entry in kept):
        parts = _components(source)
        kept = [entry for entry in kept if _is_of_pipeline(PurePosixPath(entry.name), parts)]
    whole = {PurePosixPath(e.name).parent for e in kept if PurePosixPath(e.name).name.startswith(WHOLE)}
    kept = [entry for entry in kept if not _is_twin(PurePosixPath(entry.name), whole)]
    if not any(entry.name.endswith(".safetensors") for entry in kept):
        pickles = sorted(entry.name for entry in found if entry.name.endswith(PICKLED))
        if pickles:
            raise UsageError(
                f"{source.uri} holds no safetensors, only {', '.join(pickles[:5])}: pickles are not fetched with a "
                "folder; take weights with safetensors, or name the one file if it is that of a prior"
            )
        if not any(entry.name == INDEX_NAME for entry in kept):  # a pipeline without tensors can be a base_config
            raise UsageError(f"{source.uri} holds no safetensors: {', '.join(e.name for e in found[:5]) or 'nothing'}")
    return tuple(kept)


def _components(source: Source) -> frozenset[str]:
    """Folders that a pipeline of diffusers is made of. Raises UsageError."""
    try:
        index = json.loads(source.read(INDEX_NAME))
    except ValueError as error:
        raise UsageError(f"{source.uri}: its {INDEX_NAME} is no JSON ({error})") from error
    if not isinstance(index, dict):
        raise UsageError(f"{source.uri}: its {INDEX_NAME} holds no mapping")
    return frozenset(name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None])


def _is_of_pipeline(name: PurePosixPath, parts: frozenset[str]) -> bool:
    """Whether a pipeline loads a file: tensors beside its index are the same once more, in one file."""
    return name.parts[0] in parts if len(name.parts) > 1 else name.suffix != ".safetensors"


def _is_twin(name: PurePosixPath, whole: set[PurePosixPath]) -> bool:
    return name.parent in whole and any(twin in name.name for twin in TWINS)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
