"""Arrays of a large JSON object, or a large array, element by element, and where each lies in the file.

COCO's annotation files have hundreds of megabytes; parsed whole they take gigabytes. Knows nothing of COCO.
"""

import codecs
import json
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO

from segdatagen.errors import UsageError

CHUNK = 1 << 20
READ_AHEAD = 16 << 20
"""Bytes for `Folder.open` of such a file: in an object store each look into it costs a request."""
_SPACE = " \t\n\r"
_MARK = codecs.BOM_UTF8.decode("latin-1")


class _Window:
    """A moving piece of a file as text of one character per byte, so that places in it are places in the file."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file = file
        self._place = place
        self._begin = 0
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()
        self.ended = False

    @property
    def position(self) -> int:
        """Bytes before the next character."""
        return self._begin + self._at

    def fail(self, problem: str) -> UsageError:
        """What is wrong at the current place."""
        return UsageError(f"{self._place}: broken JSON at byte {self.position}: {problem}")

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip_mark(self) -> None:
        """Step over the byte order mark with which some editors begin a file."""
        self.peek()
        if self._text.startswith(_MARK):
            self._at = len(_MARK)

    def take(self, character: str) -> None:
        """Step over the character that must come next. Raises UsageError."""
        found = self.peek()
        if found != character:
            raise self.fail(f"expected {character!r}, found {repr(found) if found else 'the end'}")
        self._at += 1

    def value(self) -> tuple[Any, int, int]:
        """The next value, the byte at which it begins, and its length. Raises UsageError."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                if not self._more():
                    raise self.fail(error.msg) from error
                continue
            except RecursionError as error:
                raise self.fail("it is nested too deeply") from error
            if end > len(self._text) - 3 and self._more():
                continue  # a number may go on: 1, 1. and 1e+ are all read as 1
            break
        first, text = self.position, self._text[self._at : end]
        self._at = end
        try:
            return (value if text.isascii() else json.loads(text.encode("latin-1"))), first, len(text)
        except ValueError as error:
            raise self.fail(str(error)) from error

    def _more(self) -> bool:
        """Read on, twice as far each time that a value does not end."""
        chunk = self._file.read(max(CHUNK, len(self._text) - self._at))
        if not chunk:
            return False
        self._text = self._text[self._at :] + chunk.decode("latin-1")
        self._begin += self._at
        self._at = 0
        return True


def elements(file: BinaryIO, place: str) -> Iterator[tuple[str, Any, int, int]]:
    """Each element of each array of the object in `file`: the array's key, the element, its first byte and its length.

    A value that is no array comes as one element; the elements of a file that is one array have the key "". `place`
    begins the errors. Raises UsageError where it is neither.
    """
    window = _Window(file, place)
    window.skip_mark()
    if window.peek() == "[":
        yield from _array(window, "")
    else:
        yield from _object(window)
    if window.peek():
        raise window.fail("more follows the end")


def _object(window: _Window) -> Iterator[tuple[str, Any, int, int]]:
    window.take("{")
    while window.peek() != "}":
        key, _, _ = window.value()
        window.take(":")
        if window.peek() == "[":
            yield from _array(window, key)
        else:
            yield (key, *window.value())
        if window.peek() != "}":
            window.take(",")
    window.take("}")


def _array(window: _Window, key: str) -> Iterator[tuple[str, Any, int, int]]:
    window.take("[")
    while window.peek() != "]":
        yield (key, *window.value())
        if window.peek() != "]":
            window.take(",")
    window.take("]")
