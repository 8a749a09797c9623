"""A server on the loopback that answers as Amazon's S3 does where the server of `test_s3` does not, and may fail.

Objects lie in memory. `If-Match` of a key that is gone is answered by 404 NoSuchKey (API reference of PutObject). It
fails as it is told: requests of a verb and a name that get a status, or a body that ends too early.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from local_server import serving

BUCKET = "bucket"
CUT = 0
"""As a status: the first half of the body, and then the connection ends."""


@dataclass
class Store:
    """Objects by key, what fails (verb and end of the key, times and status), and what was asked for."""

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    endpoint: str = ""

    def fail(self, verb: str, key: str, status: int, times: int = 1_000_000) -> None:
        """Answer so many requests of this verb for keys that end in `key` by a status."""
        self.faults[verb, key] = (times, status)

    def fault(self, verb: str, key: str) -> int | None:
        """The status of one that fails now."""
        for (failing, end), (times, status) in self.faults.items():
            if times and verb == failing and key.endswith(end):
                self.faults[failing, end] = (times - 1, status)
                return status
        return None


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    """Answers for the store of its server."""

    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()

    def answer(self) -> None:
        address = urlsplit(self.path)
        _, bucket, *rest = unquote(address.path).split("/", 2)
        key = rest[0] if rest else ""
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.store.lock:
            self.store.requests.append((self.command, key))
            fault, found = self.store.fault(self.command, key), self.store.objects.get(key)
            if fault:
                self.send(fault, error("SlowDown"))
            elif bucket != BUCKET:
                self.send(404, error("NoSuchBucket"))
            elif not key:
                self.send(200, listing(self.store, parse_qs(address.query)) if address.query else b"")
            elif self.command == "PUT":
                self.put(key, data, found)
            elif self.command == "DELETE":
                self.store.objects.pop(key, None)
                self.send(204, b"")
            elif found is None:
                self.send(404, error("NoSuchKey"))
            else:
                self.get(found, is_cut=fault == CUT)

    def put(self, key: str, data: bytes, found: bytes | None) -> None:
        asked = self.headers.get("If-Match")
        if asked is not None and found is None:
            self.send(404, error("NoSuchKey"))
        elif (asked is not None and asked.strip('"') != etag(found or b"").strip('"')) or (
            self.headers.get("If-None-Match") == "*" and found is not None
        ):
            self.send(412, error("PreconditionFailed"))
        else:
            self.store.objects[key] = data
            self.send(200, b"", ETag=etag(data))

    def get(self, data: bytes, is_cut: bool) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        part = data[int(first) : int(last or len(data)) + 1] if asked else data
        changed = {"Last-Modified": "Mon, 02 Nov 2026 00:00:00 GMT"}
        self.send(206 if asked else 200, part, is_cut, ETag=etag(data), **changed)

    def send(self, status: int, body: bytes, is_cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        self.close_connection = is_cut

    def log_message(self, *_: object) -> None:
        """Requests are noted, not printed."""


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def listing(store: Store, query: dict[str, list[str]]) -> bytes:
    """ListObjectsV2, all keys of a prefix at once."""
    prefix = query.get("prefix", [""])[0]
    found = {key: data for key, data in sorted(store.objects.items()) if key.startswith(prefix)}
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>{etag(data)}</ETag>"
        "<LastModified>2026-11-02T00:00:00.000Z</LastModified></Contents>"
        for key, data in found.items()
    )
    counted = f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
    return f"<ListBucketResult><Name>{BUCKET}</Name>{counted}{contents}</ListBucketResult>".encode()


@contextmanager
def serve(store: Store) -> Iterator[Store]:
    with serving(type("HandlerOfStore", (Handler,), {"store": store})) as store.endpoint:
        yield store
