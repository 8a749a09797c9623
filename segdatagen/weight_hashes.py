"""Hashes of large files of weights, kept in the user's cache: gigabytes are read once, and not at every plan.

A hash holds for a path, a size and a time of change. Where it is damaged, or cannot be kept, the file is read, and that
is all it costs. It does not know what the files hold.
"""

import contextlib
import hashlib
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from segdatagen.config_files import read_stored
from segdatagen.errors import SegdatagenError
from segdatagen.storage import Folder
from segdatagen.weights_cache import cache_root

KEPT_FROM = 16 * 2**20
"""Bytes from which a hash is kept: what is smaller is read in some 20 ms."""
SETTLED_SECONDS = 2.0
"""A file that was written this recently may be written again at the same time of change, as some disks note it."""


class KeptHash(BaseModel):
    """One file of the cache: `digest` is that of the `size` bytes of `path` as of `changed`, in ns since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    changed: int
    digest: str = Field(pattern="^[0-9a-f]{128}$")


def content_hash(file: Path) -> bytes:
    """blake2b of the bytes of a file, 64 bytes; a large file that did not change is not read. Raises OSError."""
    before = file.stat()
    folder, path = cache_folder("weight_hashes"), str(file.absolute())
    if folder is None or before.st_size < KEPT_FROM:
        return _read(file)
    name = f"{hashlib.blake2b(path.encode(), digest_size=16).hexdigest()}.json"
    with contextlib.suppress(OSError, SegdatagenError):
        kept = read_stored(folder, name, KeptHash)
        if (kept.path, kept.size, kept.changed) == (path, before.st_size, before.st_mtime_ns):
            return bytes.fromhex(kept.digest)
    digest, after = _read(file), file.stat()
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if unchanged and time.time() - after.st_mtime > SETTLED_SECONDS:
        kept = KeptHash(path=path, size=after.st_size, changed=after.st_mtime_ns, digest=digest.hex())
        with contextlib.suppress(OSError, SegdatagenError):
            folder.put(name, kept.model_dump_json().encode())
    return digest


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def cache_folder(name: str) -> Folder | None:
    """A folder of the cache; None for a user without a home."""
    with contextlib.suppress(RuntimeError):
        return Folder(str(cache_root() / name))
    return None
