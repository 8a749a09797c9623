"""Pickles read as data: equal to `pickle` where that is harmless, and nothing runs where it is not."""

import contextlib
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traps import OnReduce, spring, sprung, traps

from segdatagen.inert_pickle import BrokenPickle, Named, Unbuilt, evaluate

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.just(b"x" * 300)
)
KEYS = st.text() | st.integers() | st.none()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner) | inner.map(lambda x: [x, x, (x,)])
    ),
    max_leaves=30,
)


def read(data: bytes) -> Any:
    return evaluate(data, {}, lambda identity: identity)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_as_pickle_would_bring_them(value: Any, protocol: int) -> None:
    bytes_before_protocol_3 = {"_codecs.encode": lambda given: given[0].encode(given[1]), "__builtin__.bytes": bytes}
    assert evaluate(pickle.dumps(value, protocol), bytes_before_protocol_3, lambda identity: identity) == value


def test_sets_come_as_lists_and_tuples() -> None:
    assert sorted(read(pickle.dumps({3, 1, 2}))) == [1, 2, 3]
    assert sorted(read(pickle.dumps(frozenset({3, 1})))) == [1, 3]
    assert isinstance(read(pickle.dumps(frozenset({3, 1}))), tuple)


def test_a_list_that_holds_itself_does() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    found = read(pickle.dumps(loop))
    assert found[1] is found


def test_what_is_shared_stays_shared() -> None:
    inner = ["a"]
    found = read(pickle.dumps({"first": inner, "second": (inner, inner)}))
    assert found["first"] is found["second"][0] is found["second"][1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "here").mkdir()
    objects = traps(tmp_path / "here")
    if protocol < 2:
        del objects["items"]  # whose keywords need protocol 2
    data = pickle.dumps(objects, protocol)
    found = read(data)
    assert not sprung(tmp_path / "here")
    assert found["reduce"].name == "traps.spring"
    assert isinstance(found["state"], Unbuilt)
    assert isinstance(found["class"], Named)
    assert [type(key) for key in found["key"]] == [Unbuilt]
    pickle.loads(data)  # the traps are real
    assert sprung(tmp_path / "here") >= {"reduce", "state", "inner", "key"}


def test_nothing_is_imported() -> None:
    for data in (b"cabsent_module\nThing\n(tR.", b"(iabsent_module\nThing\n.", b"(cabsent_module\nThing\no."):
        assert read(data).name == "absent_module.Thing"
    assert read(b"\x80\x04\x8c\x0dabsent_module\x8c\x05Thing\x93.").name == "absent_module.Thing"
    assert read(b"\x80\x02\x82\x07.").name == "extension 7"
    assert "absent_module" not in sys.modules


def test_only_the_calls_that_are_named_are_made(tmp_path: Path) -> None:
    data = pickle.dumps([OrderedDict(a=1), OnReduce(tmp_path / "trap")], 2)
    made = evaluate(data, {"collections.OrderedDict": lambda arguments: {"made": arguments}}, lambda identity: identity)
    assert made[0] == {"made": (), "a": 1}
    assert isinstance(made[1], Unbuilt)
    assert not sprung(tmp_path)
    assert spring.__module__ == "traps"


def test_objects_outside_come_from_the_caller() -> None:
    for data in (b"Pkey\n.", b"\x80\x02U\x03keyQ."):
        assert evaluate(data, {}, lambda identity: [identity]) == ["key"]


def test_keys_of_any_depth_are_not_hashed() -> None:
    deep = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."  # a tuple in a tuple in a tuple: hashing it ends the process
    (key,) = read(deep)
    assert isinstance(key, Unbuilt)
    assert [type(key) for key in read(b"\x80\x02}(]K\x01]K\x02u.")] == [Unbuilt, Unbuilt]


def test_names_are_text_and_nothing_is_written_out_to_make_one() -> None:
    """Thirty lists, each twice in the next, would be a text of a billion characters."""
    doubled = b"\x80\x04]" + b"".join(b"\x94]h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(30))
    with pytest.raises(BrokenPickle, match="no text"):
        read(doubled + b"\x8c\x05Thing\x93.")


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.data())
def test_no_bytes_do_more_than_be_refused(source: Any) -> None:
    """Random bytes, and whole pickles with a byte changed or the end cut off."""
    if isinstance(source, bytes):
        data = source
    else:
        whole = bytearray(pickle.dumps([{"a": (1.5, "b", None)}, OrderedDict(c=[b"d"]), OnReduce(Path("/nowhere/x"))]))
        whole[source.draw(st.integers(0, len(whole) - 1))] = source.draw(st.integers(0, 255))
        data = bytes(whole[: source.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(BrokenPickle):
        read(data)
