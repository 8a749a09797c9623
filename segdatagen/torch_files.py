"""Files of `torch.save`: their tensors, and nothing that a pickle would call.

What `torch.load(weights_only=True)` takes is left to torch. A file that it refuses for the objects in it (a Lightning
checkpoint with its hyper-parameters) is read by name: tensors and plain values as they are, each object as an
`Unbuilt`. Tensors are read from the file one at a time. This module does not know what the tensors are of.
"""

from __future__ import annotations

import math
import pickle
import struct
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdatagen.errors import UsageError
from segdatagen.inert_pickle import BrokenPickle, Named, evaluate, into

if TYPE_CHECKING:
    from torch import Tensor

STORAGE_TYPES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
"""Type of the elements by the name of the storage's class."""
UNREADABLE = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError)
"""What torch and zipfile raise for files that are damaged, or of no kind that they know."""
UNREADABLE_ZIP = (*UNREADABLE, zipfile.BadZipFile, struct.error)


@dataclass(frozen=True)
class Storage:
    """Elements that lie in one entry of the file."""

    key: str
    dtype: str
    num_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage that has not been read: offset and strides in elements, as in torch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """A file of `torch.save`, open for reading: `content` holds it with its tensors still unread, `load` reads one."""

    def __init__(self, path: Path) -> None:
        """Open and understand. Raises UsageError where the file is missing, damaged, or of a form that is not read."""
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._is_zip = True
        try:
            self._is_zip = zipfile.is_zipfile(path)
            self._archive = _checked_archive(path) if self._is_zip else None
            self.content: Any = _load_tensors_only(path, mapped=self._is_zip)
        except (pickle.UnpicklingError, *UNREADABLE_ZIP) as error:
            if self._archive is None or not isinstance(error, pickle.UnpicklingError):
                self.close()
                raise self._unreadable(error) from error
            self.content = self._read_by_name(self._archive)

    def close(self) -> None:
        """Tensors that were not loaded cannot be any more."""
        if self._archive is not None:
            self._archive.close()

    def load(self, tensor: StoredTensor | Tensor) -> Tensor:
        """Read a tensor of `content`. Raises UsageError where the file does not hold what it says."""
        if not isinstance(tensor, StoredTensor):
            return tensor
        try:
            return self._view(tensor)
        except UNREADABLE_ZIP as error:
            raise self._unreadable(error) from error

    def _read_by_name(self, archive: zipfile.ZipFile) -> Any:
        try:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            self._root = name.removesuffix("data.pkl")
            order = f"{self._root}byteorder"
            if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
                raise ValueError("its numbers have the other byte order")
            return evaluate(archive.read(name), BUILDERS, _storage)
        except (*UNREADABLE_ZIP, BrokenPickle) as error:
            self.close()
            raise self._unreadable(error) from error

    def _view(self, tensor: StoredTensor) -> Tensor:
        import torch

        assert self._archive is not None
        if tensor.storage.dtype not in STORAGE_TYPES.values():
            raise ValueError(f"a {tensor.storage.dtype} holds numbers that are not read here")
        dtype: torch.dtype = getattr(torch, tensor.storage.dtype)
        if math.prod(tensor.shape) == 0:
            return torch.empty(tensor.shape, dtype=dtype)
        entry = self._archive.getinfo(f"{self._root}data/{tensor.storage.key}")
        num_bytes = tensor.storage.num_elements * dtype.itemsize
        if entry.file_size != num_bytes:
            raise ValueError(f"{entry.filename} has {entry.file_size} bytes, not {num_bytes}")
        data = bytearray(self._archive.read(entry))  # writable, or torch warns
        elements = torch.frombuffer(data, dtype=dtype)
        return elements.as_strided(tensor.shape, tensor.strides, tensor.offset)

    def _unreadable(self, error: BaseException) -> UsageError:
        if self._is_zip or isinstance(error, OSError):
            return UsageError(f"{self.path}: cannot be read as a file of torch.save ({_reason(error)})")
        return UsageError(
            f"{self.path}: no whole file of torch.save, or one from before torch 1.6 with objects beside its tensors: "
            "if it is the latter, save its state_dict again with a newer torch"
        )


def _checked_archive(path: Path) -> zipfile.ZipFile:
    """The zip file, with every checksum compared: a file that was cut or damaged says so before anything is made of it.

    torch stores entries as they are; one that is packed, or says that it is larger than the file, is not torch's.
    """
    archive, size = zipfile.ZipFile(path), path.stat().st_size
    try:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"{entry.filename} is not stored as torch stores it")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged: its checksum is another")
    except UNREADABLE_ZIP:
        archive.close()
        raise
    return archive


def _load_tensors_only(path: Path, mapped: bool) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual files, which are read or refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _storage(identity: Any) -> Storage:
    """What `torch.save` says of a storage: ("storage", class, key, device, number of elements)."""
    kind, storage_type, key, _, num_elements = identity
    if kind != "storage" or not isinstance(storage_type, Named) or not isinstance(key, str):
        raise BrokenPickle("it refers to something that is no storage")
    if not isinstance(num_elements, int) or num_elements < 0:
        raise BrokenPickle("it has a storage without a size")
    return Storage(key, STORAGE_TYPES.get(storage_type.name, storage_type.name), num_elements)


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)`."""
    storage, offset, shape, strides, *_ = arguments
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise BrokenPickle("it describes a tensor in another way than torch does")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise BrokenPickle("it has a tensor with a negative size")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.num_elements:
        raise BrokenPickle("it has a tensor that reaches past its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`collections.OrderedDict()`, or of a list of pairs."""
    pairs = arguments[0] if arguments else ()
    return into({}, [part for key, value in pairs for part in (key, value)])


BUILDERS = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda arguments: arguments[0],
    "torch._utils._rebuild_parameter_with_state": lambda arguments: arguments[0],
}
"""The calls of a pickle of `torch.save` that are understood."""


def _reason(error: BaseException) -> str:
    """The first sentence: torch goes on with advice, which is not ours to give."""
    return str(error).strip().split(". ")[0].split("\n")[0] or type(error).__name__
