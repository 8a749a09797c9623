"""A server on the loopback that speaks as much of the hub's HTTP API as its library asks for, for small repositories.

Commits are hashes of what they hold. It notes every request, may ask for a token, and may stop in the middle of a file.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from local_server import serving

Files = dict[str, bytes]


@dataclass
class Repository:
    """Files by commit, and commits by the names of branches and tags."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    token: str | None = None

    def commit(self, files: Mapping[str, bytes], tag: str | None = None) -> str:
        """Add files as the newest commit of `main`."""
        whole = hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items())))
        self.branches["main"] = whole.hexdigest()
        self.commits[whole.hexdigest()] = dict(files)
        if tag is not None:
            self.tags[tag] = whole.hexdigest()
        return whole.hexdigest()

    def resolve(self, revision: str) -> str | None:
        return (
            self.tags.get(revision) or self.branches.get(revision) or (revision if revision in self.commits else None)
        )


@dataclass
class Hub:
    """What is served, what was asked for, and the file whose second half is held back until it is released."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, and the range that was asked for."""
    held: str = ""
    half_sent: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    def downloads(self) -> list[str]:
        """Files that were sent, in order."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for verb, path, _ in self.requests
            if verb == "GET" and "/resolve/" in path
        ]


def files_below(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub of its server."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree|refs)(?:/(.+))?", path):
            self.api(found[1], found[2], found[3])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(found[1], found[2], found[3], with_body)
        else:
            self.refuse(404, "EntryNotFound")

    def repository(self, name: str) -> Repository | None:
        """A private one does not show itself: 401, as on the hub."""
        found = self.hub.repositories.get(name)
        if found is None or found.token not in (
            None,
            self.headers.get("Authorization", "").removeprefix("Bearer "),
        ):
            self.refuse(401, "RepoNotFound")
            return None
        return found

    def api(self, name: str, what: str, revision: str | None) -> None:
        if (repository := self.repository(name)) is None:
            return
        if what == "refs":
            kinds = {"branches": repository.branches, "tags": repository.tags, "converts": {}}
            self.send(
                json.dumps(
                    {
                        kind: [{"name": n, "ref": f"refs/{n}", "targetCommit": c} for n, c in refs.items()]
                        for kind, refs in kinds.items()
                    }
                ).encode()
            )
            return
        commit = repository.resolve(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound")
        elif what == "revision":
            self.send(json.dumps({"id": name, "sha": commit, "siblings": []}).encode())
        else:
            files = repository.commits[commit].items()
            listing = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for p, d in files
            ]
            self.send(json.dumps(listing).encode())

    def file(self, name: str, revision: str, path: str, with_body: bool) -> None:
        if (repository := self.repository(name)) is None:
            return
        commit = repository.resolve(revision)
        data = repository.commits.get(commit or "", {}).get(path)
        if data is None:
            self.refuse(404, "EntryNotFound")
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", str(commit))
        self.send_header("Content-Length", str(len(data) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not with_body:
            return
        if self.hub.held and path.endswith(self.hub.held) and not self.hub.released.is_set():
            self.wfile.write(data[first : len(data) // 2])
            self.wfile.flush()
            self.hub.half_sent.set()
            self.hub.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data[first:])

    def send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Requests are noted, not printed."""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    with serving(type("HandlerOfHub", (Handler,), {"hub": hub})) as hub.endpoint:
        try:
            yield hub
        finally:
            hub.released.set()
