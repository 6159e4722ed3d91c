"""A hub on this machine: repositories in memory behind the part of Hugging Face's interface that its client asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlparse

from tests.answers import serve

LFS_BYTES = 1000
"""Files from this size on are stored by their SHA-256, others by git's SHA-1."""


class Hub:
    """Repositories by name: the files of their only commit, and what may be wrong with them."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.damaged: set[str] = set()
        self.sizes: dict[str, int] = {}
        """Sizes that the hub states of files, where not the true ones."""
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.status: int | None = None
        """Status of every answer, if set."""
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        """Answers in place of the hub's, by a pattern of method and path."""
        self.url = ""

    def commit(self, repo: str) -> str:
        text = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.repos[repo].items())})
        return hashlib.sha1(text.encode()).hexdigest()

    def describe(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.repos[repo].items():
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": self.sizes.get(name, len(data)),
                "blobId": git_digest(data),
            }
            if len(data) >= LFS_BYTES:
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        is_private = self.private.get(repo, False)
        return {"id": repo, "sha": self.commit(repo), "siblings": siblings, "private": is_private, "tags": []}


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port of this machine."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with serve(Handler) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        self.hub.requests.append(format % arguments)

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # a client that went away
            super().handle_one_request()

    def do_GET(self) -> None:
        self._answer_otherwise() or self._answer_reader(has_body=True)

    def do_HEAD(self) -> None:
        self._answer_otherwise() or self._answer_reader(has_body=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer_otherwise() or self._answer_writer(body)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._answer_otherwise():
            self.hub.uploads[self.path.rpartition("/")[2]] = data
            self._send(200, {})

    def _answer_otherwise(self) -> bool:
        asked = f"{self.command} {unquote(urlparse(self.path).path)}"
        answer = next((answer for pattern, answer in self.hub.answers.items() if re.search(pattern, asked)), None)
        if answer is not None:
            answer(self)
        return answer is not None

    def _answer_reader(self, *, has_body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        if self.hub.status is not None:
            return self._send(self.hub.status, {"error": "the hub is being mended"})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", path):
            found = self._find(match[1], match[3])
            return None if found is None else self._send(200, self.hub.describe(match[1]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self._find(match[1], match[2]) or {}
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": git_digest(data)}
                for name, data in files.items()
            ]
            return self._send(200, tree)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            return self._send(404, {"error": path})
        if (files := self._find(match[1], match[2])) is None:
            return None
        if match[3] not in files:
            return self._send(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound"})
        data = files[match[3]]
        is_large = len(data) >= LFS_BYTES
        digest = hashlib.sha256(data).hexdigest() if is_large else git_digest(data)
        body = data[:-1] + bytes([data[-1] ^ 1]) if match[3] in self.hub.damaged else data
        headers = {"X-Repo-Commit": self.hub.commit(match[1]), "ETag": f'"{digest}"', "Content-Length": str(len(data))}
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)
        return None

    def _find(self, repo: str, revision: str | None) -> dict[str, bytes] | None:
        """Return the files of a revision; None after the answer that there are none."""
        if repo not in self.hub.repos:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if revision not in (None, "main", self.hub.commit(repo)):
            return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return self.hub.repos[repo]

    def _answer_writer(self, body: bytes) -> None:
        path = unquote(urlparse(self.path).path)
        if not self.headers.get("Authorization"):
            return self._send(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization") or "me", asked["name"])))
            self.hub.repos.setdefault(repo, {})
            self.hub.private.setdefault(repo, asked.get("private") or asked.get("visibility") == "private")
            return self._send(200, {"url": f"{self.hub.url}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_BYTES else "regular", "shouldIgnore": False}
                for f in files
            ]
            return self._send(200, {"files": modes})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            actions = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}", "header": {}}}}
                for each in objects
            ]
            return self._send(200, {"transfer": "basic", "objects": actions}, kind="application/vnd.git-lfs+json")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._apply(self.hub.repos[match[1]], [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.url}/{match[1]}/commit/{self.hub.commit(match[1])}"
            return self._send(200, {"success": True, "commitOid": self.hub.commit(match[1]), "commitUrl": url})
        return self._send(404, {"error": path})

    def _apply(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]

    def _send(
        self, status: int, document: Any, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
