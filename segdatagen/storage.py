"""Folders on a disk or in an object store, and the four things that the rest relies on.

An object is put whole or not at all; a small object can be put only if nobody changed it meanwhile; a listing is
never cached; what is deleted stays deleted. The only module that touches fsspec. It does not know what the bytes
mean.
"""

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from segdatagen.disk_files import HALF_FILE, replace_file, scratch_file
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.file_locks import delete_lock, locked

ANY_NAME = re.compile(r".+")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
"""What an object store tells a browser. A disk has only the suffix."""
READ_AHEAD = 64 * 2**10
"""Bytes that an opened object is read past what was asked for. Parquet asks for whole columns: small ones that lie side
by side then cost one request; with s3fs's own 50 MiB some columns of a part cost as many bytes as all of it."""
CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class StorageError(SegdatagenError):
    """The store refused: no space, no permission, no such bucket."""


class NoSpaceError(StorageError):
    """The store is full: what is tried again fails again, until somebody makes room."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing: its name relative to the folder, its size in bytes, its ETag (empty on a disk)."""

    name: str
    size: int
    version: str = field(default="", compare=False)


class Folder:
    """A folder named by a URI: `/data/x`, `file:///data/x` or `s3://bucket/x`.

    Names are relative, with `/` between parts. Objects whose last part starts with a dot are not listed: they are
    what a killed process left of a `put`.
    """

    def __init__(self, uri: str) -> None:
        protocol, path = uri.split("://", 1) if "://" in uri else ("file", uri)
        if protocol not in ("file", "s3"):
            raise UsageError(f"{uri}: {protocol}:// is not supported, use a path or s3://bucket/folder")
        if CONTROL_CHARACTERS.search(uri):
            raise UsageError(f"{uri!r}: a path has no control characters")
        if not path or (protocol == "s3" and path.startswith("/")):
            what = "bucket" if protocol == "s3" else "folder"
            raise UsageError(f"{uri!r}: names no {what}, use a path or s3://bucket/folder")
        self.uri = uri.removesuffix(path) + (path.rstrip("/") or "/")
        # not url_to_fs, to which `::` in a name begins another address: all children would be one folder
        filesystem = fsspec.filesystem(protocol, **({"use_listings_cache": False} if protocol == "s3" else {}))
        self._root = filesystem._strip_protocol(self.uri).rstrip("/")  # empty for the root of the disk
        self._filesystem = filesystem if protocol == "file" else _Asked(filesystem, self.uri)

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.uri,)

    @property
    def is_local(self) -> bool:
        """True for a folder on a mounted file system."""
        return isinstance(self._filesystem, LocalFileSystem)

    @property
    def absolute_uri(self) -> str:
        """Where it lies, whatever the working folder: an absolute path on a disk, the URI in an object store."""
        return (self._root or "/") if self.is_local else self.uri

    def child(self, name: str) -> "Folder":
        """The folder `name` inside this one."""
        return Folder(self.uri_of(name))

    def uri_of(self, name: str) -> str:
        """Where an object lies, for messages."""
        return f"{self.uri.removesuffix('/')}/{name}"

    def is_within(self, other: "Folder") -> bool:
        """True if this is `other` or lies in it, whatever links lead there."""
        if self.is_local != other.is_local:
            return False
        here, there = (
            os.path.realpath(folder._path("")) if self.is_local else folder._root for folder in (self, other)
        )
        return f"{here}/".startswith(f"{there.rstrip('/')}/")

    def exists(self, name: str = "") -> bool:
        """True if the object, or any object below that name, exists. Raises StorageError where the store refuses."""
        try:
            return bool(self._filesystem.exists(self._path(name)))
        except OSError as error:
            raise StorageError(f"{self.uri_of(name)}: cannot be looked for ({error.strerror or error})") from error

    def read(self, name: str) -> bytes:
        """All bytes of an object. Raises FileNotFoundError."""
        return cast(bytes, self._filesystem.cat_file(self._path(name)))

    def read_range(self, name: str, first: int, length: int) -> bytes:
        """Some bytes of an object, from the byte `first` on, in one request. Raises FileNotFoundError."""
        return cast(bytes, self._filesystem.cat_file(self._path(name), start=first, end=first + length))

    def open(self, name: str, read_ahead: int = READ_AHEAD) -> BinaryIO:
        """An object opened for random access reading; one that is read from end to end is better read further ahead."""
        if self.is_local:
            return open(self._path(name), "rb")
        return cast(BinaryIO, self._filesystem.open(self._path(name), "rb", read_ahead, cache_type="readahead"))

    def entries(self, suffix: str = "") -> list[Entry]:
        """Every object below this folder whose name ends in `suffix`, sorted by name. Empty if there is no folder."""
        if self.is_local:
            found = list(_scan(self._path(""), ""))
        else:
            try:
                details = self._filesystem.find(self._root, detail=True)
            except FileNotFoundError:
                return []
            skip = len(self._root) + 1
            found = [_entry(path[skip:], info) for path, info in details.items() if len(path) > skip]
        visible = (e for e in found if e.name.endswith(suffix) and not e.name.rsplit("/", 1)[-1].startswith("."))
        return sorted(visible, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry:
        """One object, looked at anew. Raises FileNotFoundError or another OSError."""
        return _entry(name, self._filesystem.info(self._path(name)))

    def put(self, name: str, data: bytes) -> None:
        """Store an object whole or not at all, replacing one of that name.

        One request on an object store; temporary file, fsync and rename on a disk. Raises StorageError.
        """
        path = self._path(name)
        try:
            if self.is_local:
                replace_file(path, lambda file: file.write(data))
            else:
                kind = CONTENT_TYPES.get(os.path.splitext(name)[1])
                self._filesystem.pipe_file(path, data, **({"ContentType": f"{kind}; charset=utf-8"} if kind else {}))
        except OSError as error:
            raise _explain(error, self.uri_of(name)) from error

    def put_file(self, name: str, source: Path) -> None:
        """`put` of a file of this machine that is not empty, without reading it into memory. Raises StorageError."""
        path = self._path(name)
        try:
            if self.is_local:
                with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    replace_file(path, lambda file: file.write(data))
            else:
                self._filesystem.put_file(str(source), path)
        except OSError as error:
            raise _explain(error, self.uri_of(name)) from error

    def put_written(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """`put` of what `write` writes, of which nothing stays in memory. Raises StorageError.

        To an object store by way of a temporary file of this machine.
        """
        if not self.is_local:
            with scratch_file() as path:
                try:
                    with path.open("wb") as file:
                        write(file)
                except OSError as error:
                    raise _explain(error, str(path)) from error
                return self.put_file(name, path)
        try:
            replace_file(self._path(name), write)
        except OSError as error:
            raise _explain(error, self.uri_of(name)) from error

    @contextlib.contextmanager
    def as_file(self, name: str) -> Iterator[Path]:
        """An object as a file of this machine: of an object store a copy, for a while. Raises OSError."""
        if self.is_local:
            yield Path(self._path(name))
            return
        with scratch_file() as path:
            self._filesystem.get_file(self._path(name), str(path))
            yield path

    def read_versioned(self, name: str) -> tuple[bytes, str] | None:
        """Bytes and version of a small object, or None if there is none. For `put_if_unchanged`."""
        try:
            if self.is_local:
                data = self.read(name)
                return data, hashlib.blake2b(data, digest_size=16).hexdigest()
            bucket, key, _ = self._filesystem.split_path(self._path(name))
            response = self._call("get_object", Bucket=bucket, Key=key)
            return self._filesystem.read_body(response["Body"]), response["ETag"]
        except FileNotFoundError:
            return None

    def put_if_unchanged(self, name: str, data: bytes, version: str | None) -> bool:
        """Put a small object only if its version is still `version` (None: only if it does not exist).

        Atomic between processes and hosts: a conditional request on S3, a file lock on a disk. Returns whether it
        was put. Raises StorageError.
        """
        try:
            if self.is_local:
                return self._put_locked(name, data, version)
            if version is None:
                return self._put_if(name, data, {"IfNoneMatch": "*"})
            # Amazon takes an ETag with and without its quotes, some gateways only one of the two.
            return any(self._put_if(name, data, {"IfMatch": tag}) for tag in (version.strip('"'), version))
        except OSError as error:
            raise _explain(error, self.uri_of(name)) from error

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are already gone are no error. On a disk, folders that become empty go too."""
        for name in names:
            try:
                self._filesystem.rm_file(self._path(name))
            except FileNotFoundError:
                continue
            if self.is_local:
                path = Path(self._path(name))
                delete_lock(path)
                self._prune(path.parent)

    def sweep(self, leave: str | None = None, names: re.Pattern[str] = ANY_NAME) -> None:
        """Remove what killed processes left of a `put`, for who alone writes here. An object store has no halves.

        `leave` names a folder in this one that another process may be writing; only files are removed that were to
        have one of `names`.
        """
        if self.is_local:
            for parent, folders, files in os.walk(self._path("")):
                if leave in folders and parent == self._path(""):
                    folders.remove(leave)
                for found in filter(None, map(HALF_FILE.fullmatch, files)):
                    if names.fullmatch(found[1]):
                        Path(parent, found[0]).unlink(missing_ok=True)

    def require_writable(self) -> None:
        """Raise UsageError if nothing can be put here. Writes nothing."""
        if not self.is_local:
            bucket = self._root.split("/", 1)[0]
            if not self._filesystem.exists(bucket):
                raise UsageError(f"{self.uri}: bucket {bucket} does not exist or cannot be read: create it first")
            return
        ancestor = Path(self._path(""))
        while not os.path.lexists(ancestor) and ancestor != ancestor.parent:  # a dead link is there, and no folder
            ancestor = ancestor.parent
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
            raise UsageError(f"{self.uri}: cannot write here, {ancestor} is not a writable folder")
        longest = os.pathconf(ancestor, "PC_NAME_MAX")
        for name in Path(self._path("")).relative_to(ancestor).parts:
            if len(os.fsencode(name)) > longest:
                raise UsageError(f"{self.uri}: cannot write here, a name in it is longer than {longest} bytes")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name or not self._root else self._root

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._filesystem.call_s3(method, **arguments)

    def _put_if(self, name: str, data: bytes, condition: dict[str, str]) -> bool:
        """A conditional request; False if the condition does not hold."""
        bucket, key, _ = self._filesystem.split_path(self._path(name))
        try:
            self._call("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except OSError as error:
            # Amazon answers If-Match of an object that is gone by 404, other stores by 412.
            is_other = isinstance(error, FileNotFoundError if "IfMatch" in condition else FileExistsError)
            if is_other or any(code in f"{error} {error.__cause__}" for code in CONDITION_FAILED):
                return False
            raise
        return True

    def _put_locked(self, name: str, data: bytes, version: str | None) -> bool:
        path = Path(self._path(name))
        with locked(path):
            current = self.read_versioned(name)
            if (current[1] if current else None) != version:
                return False
            replace_file(str(path), lambda file: file.write(data))
            return True

    def _prune(self, parent: Path) -> None:
        """Remove folders that became empty, up to and including this one."""
        root = Path(self._path(""))
        while parent == root or root in parent.parents:
            try:
                parent.rmdir()
            except OSError:
                return
            parent = parent.parent


class _Asked:
    """An object store whose failures to answer are StorageErrors: no credentials, no access, nobody at the address."""

    def __init__(self, filesystem: Any, uri: str) -> None:
        self._filesystem = filesystem
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._filesystem, name)
        return functools.partial(self._ask, attribute) if callable(attribute) else attribute

    def read_body(self, body: Any) -> bytes:
        """All bytes of an answer, which may break off."""

        async def whole() -> bytes:
            async with body:  # the connection of one that broke off would never be given back
                return cast(bytes, await body.read())

        return cast(bytes, self._ask(sync, self._filesystem.loop, whole))

    def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        from aiohttp import ClientError  # 0.1 s, which a folder on a disk need not wait for

        try:
            return function(*arguments, **options)
        except (BotoCoreError, ClientError, PermissionError) as error:
            raise StorageError(f"{self._uri}: the object store does not serve this ({error})") from error


def read_any(uri: str) -> bytes:
    """All bytes of the object at a URI. Raises FileNotFoundError."""
    parent, slash, name = uri.rstrip("/").rpartition("/")
    return Folder(parent + slash or ".").read(name)


def _entry(name: str, info: dict[str, Any]) -> Entry:
    return Entry(name, info["size"], str(info.get("ETag", "")))


def _scan(root: str, prefix: str) -> Iterable[Entry]:
    try:
        found = os.scandir(root)
    except (FileNotFoundError, NotADirectoryError):
        return
    with found:
        for item in found:
            if item.is_dir():
                if item.is_symlink() and f"{os.path.realpath(root)}/".startswith(f"{os.path.realpath(item.path)}/"):
                    raise StorageError(f"{item.path} links to a folder that it lies in: remove the link")
                yield from _scan(item.path, f"{prefix}{item.name}/")
            elif (size := _size(item)) is not None:
                yield Entry(prefix + item.name, size)


def _size(item: os.DirEntry[str]) -> int | None:
    """Bytes of a file; 0 for a link to nothing, which whoever reads it will name; None if it is gone by now."""
    try:
        return item.stat().st_size
    except FileNotFoundError:
        return 0 if item.is_symlink() else None


def _explain(error: OSError, uri: str) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"{uri}: no space left, free some and run the same command again")
    return StorageError(f"{uri}: cannot be written ({error.strerror or error})")
