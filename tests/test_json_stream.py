"""The stream of a JSON object's elements is what the JSON library reads at once, whatever the size of a read."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.datasets import json_stream
from segdatagen.datasets.json_stream import elements
from segdatagen.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.integers(1, 40), st.booleans(), st.booleans())
@settings(max_examples=300)
def test_elements_are_those_of_the_whole_and_lie_where_they_say(
    document: dict[str, object], chunk: int, ascii_only: bool, spread: bool
) -> None:
    data = json.dumps(document, ensure_ascii=ascii_only, indent=2 if spread else None).encode()
    expected = [
        (key, element) for key, value in document.items() for element in (value if isinstance(value, list) else [value])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        found = list(elements(io.BytesIO(data), "here"))
    assert [(key, element) for key, element, _, _ in found] == expected
    for _, element, first, length in found:
        assert json.loads(data[first : first + length]) == element


def test_a_list_is_read_like_an_array_without_a_name_and_behind_a_byte_order_mark() -> None:
    data = b'\xef\xbb\xbf [{"a": 1}, 2]'
    assert list(elements(io.BytesIO(data), "here")) == [("", {"a": 1}, 5, 8), ("", 2, 15, 1)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "here: broken JSON at byte 0: expected '{', found the end"),
        ('[1, "a"', "here: broken JSON at byte 7: expected ',', found the end"),
        ("1", "here: broken JSON at byte 0: expected '{', found '1'"),
        ('{"a" 1}', "here: broken JSON at byte 5: expected ':', found '1'"),
        ('{"a": [1 2]}', "here: broken JSON at byte 9: expected ',', found '2'"),
        ('{"a": [1, {"b": ]}', "here: broken JSON at byte 10: Expecting value"),
        ('{"a": "never ends', "here: broken JSON at byte 6: Unterminated string"),
        ('{"a": 1', "here: broken JSON at byte 7: expected ',', found the end"),
        ('{"a": 1} x', "here: broken JSON at byte 9: more follows the end"),
        ('{"a": {"b":' + "[" * 100_000, "here: broken JSON at byte 6: it is nested too deeply"),
    ],
)
def test_what_is_broken_is_said_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(elements(io.BytesIO(text.encode()), "here"))
    assert problem in str(caught.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UsageError, match="broken JSON at byte"):
        list(elements(io.BytesIO(b'{"a": "\xff\xfe"}'), "here"))


def test_a_large_file_is_never_in_memory_whole(tmp_path: Path) -> None:
    row = {"segments_info": [{"id": number, "category_id": 1, "bbox": [0, 0, 9, 9]} for number in range(20)]}
    path = tmp_path / "large.json"
    with path.open("w") as file:
        file.write('{"annotations": [' + ", ".join([json.dumps(row)] * 20_000) + "]}")
    assert path.stat().st_size > 15e6
    tracemalloc.start()
    with path.open("rb") as file:
        count = sum(1 for _ in elements(file, "large"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 6e6
