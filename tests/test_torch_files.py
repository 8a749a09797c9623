"""Files of `torch.save`: the same tensors as torch reads, whatever stands beside them, and none of it runs."""

import contextlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from traps import sprung, traps

from segdatagen.errors import UsageError
from segdatagen.inert_pickle import Unbuilt
from segdatagen.torch_files import StoredTensor, TorchFile

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
TENSORS: dict[str, Tensor] = {
    "whole": BASE,
    "transposed": BASE.T,
    "strided": BASE[1:, ::2],
    "row": BASE[2],
    "expanded": torch.tensor([1.5, 2.5])[:, None].expand(2, 3),
    "scalar": torch.tensor(7.25),
    "empty": torch.empty(0, 3),
    "half": torch.linspace(-1, 1, 7, dtype=torch.float16),
    "brain": torch.linspace(-1, 1, 7, dtype=torch.bfloat16),
    "double": torch.linspace(-1, 1, 5, dtype=torch.float64),
    "mask": torch.tensor([True, False, True]),
    "long": torch.tensor([-(2**40), 2**40]),
    "byte": torch.tensor([0, 255], dtype=torch.uint8),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "parameter": nn.Parameter(torch.ones(3)),
}


def same(found: Any, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file that torch refuses, with one of each trap beside the tensors."""
    (tmp_path / "traces").mkdir()
    path = tmp_path / "file.ckpt"
    torch.save({"state_dict": TENSORS, "hyper_parameters": {"rate": 3e-4, **traps(tmp_path / "traces")}}, path)
    return path


def content(path: Path) -> Any:
    with contextlib.closing(TorchFile(path)) as file:
        return file.content


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        TorchFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch says how to run what is in the file: nobody should
    return str(caught.value)


def test_tensors_come_whole_and_nothing_runs(saved: Path) -> None:
    with contextlib.closing(TorchFile(saved)) as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, expected in TENSORS.items():
            stored = file.content["state_dict"][name]
            assert isinstance(stored, StoredTensor)
            assert stored.shape == tuple(expected.shape)
            assert same(file.load(stored), expected), name
        assert file.content["hyper_parameters"]["rate"] == 3e-4
        assert isinstance(file.content["hyper_parameters"]["reduce"], Unbuilt)
    assert not sprung(saved.parent / "traces")
    torch.load(saved, weights_only=False)
    assert sprung(saved.parent / "traces")  # with the pickle run as it was meant they go off


def test_file_of_tensors_alone_is_left_to_torch(tmp_path: Path) -> None:
    for new_format in (True, False):
        path = tmp_path / "file.pt"
        torch.save(TENSORS, path, _use_new_zipfile_serialization=new_format)
        with contextlib.closing(TorchFile(path)) as file:
            for name, expected in TENSORS.items():
                assert isinstance(file.content[name], Tensor)
                assert same(file.load(file.content[name]), expected), name


def test_what_torch_leaves_to_us_is_read_as_torch_would(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(2, 3, 6, 4)).sum().backward()
    optimizer.step()
    plain = {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 3, "loops": {}}
    alone, beside = tmp_path / "alone.pt", tmp_path / "beside.pt"
    torch.save(plain, alone)
    torch.save({**plain, "hyper_parameters": torch.nn.Linear(2, 2)}, beside)
    expected = torch.load(alone, weights_only=True)
    with contextlib.closing(TorchFile(beside)) as file:

        def compare(found: Any, wanted: Any) -> None:
            if isinstance(wanted, Tensor):
                assert same(file.load(found), wanted)
            elif isinstance(wanted, dict):
                assert list(found) == list(wanted)
                for key in wanted:
                    compare(found[key], wanted[key])
            elif isinstance(wanted, list | tuple):
                assert type(found) is type(wanted)
                for one, other in zip(found, wanted, strict=True):
                    compare(one, other)
            else:
                assert found == wanted

        assert isinstance(file.content.pop("hyper_parameters"), Unbuilt)
        compare(file.content, expected)


def test_old_format_with_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    path = tmp_path / "old.pt"
    torch.save({"a": BASE, **traps(tmp_path / "traces")}, path, _use_new_zipfile_serialization=False)
    assert "before torch 1.6 with objects beside its tensors" in refusal(path)
    assert not sprung(tmp_path / "traces")


@pytest.mark.parametrize("data", [b"", b"not a file of torch", b"PK\x03\x04" * 30, pickle.dumps([1, 2]), bytes(5000)])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    refusal(path)


def test_other_archives_are_refused(tmp_path: Path, saved: Path) -> None:
    other, packed, script = tmp_path / "other.zip", tmp_path / "packed.zip", tmp_path / "script.pt"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(str(script))
    assert "cannot be read as a file of torch.save" in refusal(other)
    assert "not stored as torch stores it" in refusal(packed)
    refusal(script)


def test_truncated_file_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole), 997):
        saved.write_bytes(whole[:length])
        refusal(saved)


@settings(max_examples=150)
@given(st.data())
def test_damaged_byte_is_noticed_or_has_no_effect(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    if not path.exists():
        torch.save({"state_dict": {"a": BASE, "b": BASE.T}, "hyper_parameters": nn.Linear(2, 2)}, path)
    whole = path.read_bytes()
    damaged = path.with_name("damaged-now.ckpt")
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged.write_bytes(whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :])
    with contextlib.suppress(UsageError), contextlib.closing(TorchFile(damaged)) as file:
        state = file.content["state_dict"]
        assert same(file.load(state["a"]), BASE)
        assert same(file.load(state["b"]), BASE.T)


class Described:
    """Pickles as the call of `_rebuild_tensor_v2` with these arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Unknown:
    """What torch refuses to read."""


class Outside:
    """A reference to a storage."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class StoragePickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Outside) else None


FOUR_FLOATS = Outside("storage", torch.FloatStorage, "0", "cpu", 4)


def forged(folder: Path, tensor: Any) -> Path:
    """A file of an object, so that torch refuses it, and a tensor as nobody saves one; storage 0 has 16 bytes."""
    path = folder / "forged.pt"
    pickled = folder / "data.pkl"
    with pickled.open("wb") as stream:
        StoragePickler(stream, 2).dump({"object": Unknown(), "x": tensor})
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(pickled, "archive/data.pkl")
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")
    return path


def test_forged_file_of_a_good_tensor_is_read(tmp_path: Path) -> None:
    path = forged(tmp_path, Described(FOUR_FLOATS, 0, (2, 2), (2, 1), False, {}))
    with contextlib.closing(TorchFile(path)) as file:
        assert same(file.load(file.content["x"]), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "tensor",
    [
        Described(FOUR_FLOATS, 1, (2, 2), (2, 1), False, {}),
        Described(FOUR_FLOATS, 0, (2, 2), (3, 1), False, {}),
        Described(FOUR_FLOATS, -1, (2,), (1,), False, {}),
        Described(FOUR_FLOATS, 0, (2,), (-1,), False, {}),
        Described(FOUR_FLOATS, 0, (2, 2), (1,), False, {}),
        Described(FOUR_FLOATS, 0, (True,), (1,), False, {}),
        Described("no storage", 0, (2,), (1,), False, {}),
        Described(FOUR_FLOATS),
        Outside("storage", torch.FloatStorage, "0", "cpu", -4),
        Outside("module", torch.FloatStorage, "0", "cpu", 4),
        Outside("storage", torch.FloatStorage, "0"),
    ],
)
def test_forged_descriptions_are_refused(tmp_path: Path, tensor: Any) -> None:
    assert "cannot be read as a file of torch.save" in refusal(forged(tmp_path, tensor))


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        (Outside("storage", torch.FloatStorage, "0", "cpu", 5), "has 16 bytes, not 20"),
        (Outside("storage", torch.FloatStorage, "../../secret", "cpu", 4), "no item named"),
        (Outside("storage", torch.ComplexFloatStorage, "0", "cpu", 4), "ComplexFloatStorage holds numbers"),
        (Outside("storage", nn.Linear, "0", "cpu", 4), "Linear holds numbers"),
    ],
)
def test_forged_storages_are_refused_when_read(tmp_path: Path, storage: Outside, reason: str) -> None:
    path = forged(tmp_path, Described(storage, 0, (2, 2), (2, 1), False, {}))
    with contextlib.closing(TorchFile(path)) as file, pytest.raises(UsageError, match=reason):
        file.load(file.content["x"])


def test_numbers_of_the_other_byte_order_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "big.ckpt"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    assert "byte order" in refusal(path)
    assert content(saved)["state_dict"].keys() == TENSORS.keys()
