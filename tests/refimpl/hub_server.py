"""A Hub on a port of this machine, with repositories of our own, that can also fail in every way that networks know.

It answers as https://huggingface.co does what `hf_hub_download`, `model_info` and `snapshot_download` ask: small files
by way of a relative redirect, large ones (`LARGE`) from a second host that must not be shown the token, both with the
commit and the hash in the headers; the list of a repository; and the error codes from which `huggingface_hub` tells a
missing file from a missing revision, repository or permission.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar, Self
from urllib.parse import quote, unquote

#: The ends of names that the Hub keeps outside of git.
LARGE = (".safetensors", ".bin", ".gguf", ".h5")

PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>to use this network</body></html>"


@dataclass
class Repository:
    """Versions of a folder: {commit: {name: content}}, and the branches and tags that name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    #: Who may read it: everyone, or whoever shows this token.
    token: str | None = None
    #: Whether its author lets in whom he likes; `token` is then that of a guest.
    gated: bool = False
    disabled: bool = False


@dataclass
class Request:
    """What was asked: `file` is the name in the repository, empty for a list."""

    method: str
    host: str  # "hub", or "cdn": where large files lie
    path: str
    file: str
    range: str | None
    authorization: str | None


#: (handler, content of the file) -> nothing; it writes the answer, or does not
Fault = Callable[["_Handler", bytes], None]


class HubServer:
    """The Hub; `with HubServer() as hub` starts and stops it.  `hub.url` is what HF_ENDPOINT should say."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[Request] = []
        self._faults: dict[tuple[str, str], list[Fault]] = {}
        self._hosts = [_Host(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for host, name in zip(self._hosts, ("hub", "cdn"), strict=True):
            host.hub, host.name = self, name
        self.url, self.cdn_url = (f"http://127.0.0.1:{host.server_port}" for host in self._hosts)

    def __enter__(self) -> Self:
        for host in self._hosts:
            Thread(target=host.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.shutdown()
            host.server_close()

    def add(
        self, repo_id: str, files: Path | dict[str, bytes], revision: str = "main", **options: Any
    ) -> str:
        """A new version of a repository, which `revision` names from now on.  Returns: its commit."""
        if isinstance(files, Path):
            found = (path for path in sorted(files.rglob("*")) if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        repository = self.repositories.setdefault(repo_id, Repository())
        for name, value in options.items():
            setattr(repository, name, value)
        content = b"".join(name.encode() + b"\0" + data for name, data in files.items())
        commit = hashlib.sha1(f"{repo_id} {len(repository.commits)}".encode() + content).hexdigest()
        repository.commits[commit] = dict(files)
        repository.refs[revision] = commit
        return commit

    def fail(self, file: str, *faults: Fault, method: str = "GET", times: int = 1) -> None:
        """Answer the next requests for `file` so, one fault for each, and the whole of it `times` times."""
        self._faults[method, file] = list(faults) * times

    def forget(self) -> None:
        """Empty the log and forget the faults that nobody asked for."""
        self.log.clear()
        self._faults.clear()

    def asked(self, method: str = "GET", host: str | None = None) -> list[str]:
        """The files that were asked for, each once, in the order of the first request."""
        hits = (r for r in self.log if r.method == method and (host is None or r.host == host))
        return list(dict.fromkeys(r.file for r in hits if r.file))

    def take_fault(self, method: str, file: str) -> Fault | None:
        waiting = self._faults.get((method, file))
        return waiting.pop(0) if waiting else None


class _Host(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: HubServer
    name: str

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone away: nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Host
    #: Which file it is about, for faults and the log.
    file: str = ""

    routes: ClassVar[list[tuple[str, str]]] = [
        (r"/api/resolve-cache/models/(?P<repo>.+)/(?P<commit>[0-9a-f]{40})/(?P<file>[^?]+)", "small_file"),
        (r"/api/models/(?P<repo>[^?]+?)/revision/(?P<revision>[^/?]+)(\?.*)?", "information"),
        (r"/api/models/(?P<repo>[^?]+?)/tree/(?P<revision>[^/?]+)(\?.*)?", "tree"),
        (r"/api/models/(?P<repo>[^?]+)(\?.*)?", "information"),
        (r"/large/(?P<repo>.+)/(?P<commit>[0-9a-f]{40})/(?P<file>[^?]+)", "large_file"),
        (r"/(?P<repo>[^?]+?)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)(\?.*)?", "resolve"),
    ]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error; `HubServer.log` has it all."""

    def _answer(self) -> None:
        hub = self.server.hub
        match, action = next(
            ((m, action) for pattern, action in self.routes if (m := re.fullmatch(pattern, self.path))),
            (None, ""),
        )
        parts = {} if match is None else {name: unquote(part) for name, part in match.groupdict().items()}
        self.file = parts.get("file", "")
        asked = (self.headers.get(name) for name in ("Range", "Authorization"))
        hub.log.append(Request(self.command, self.server.name, self.path, self.file, *asked))
        if not parts:
            return self.send(404, b"no such page")
        if self.server.name == "cdn":
            # A storage host refuses what is signed twice; above all the token is none of its business.
            if self.headers.get("Authorization"):
                return self.send(400, b"only one way to log in is allowed")
        elif not self._may_read(parts["repo"]):
            return None
        getattr(self, f"_{action}")(**parts)
        return None

    def _may_read(self, repo_id: str) -> bool:
        repository = self.server.hub.repositories.get(repo_id)
        shown = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        known = {r.token for r in self.server.hub.repositories.values() if r.token} | {"hf_a_stranger"}
        if shown and shown not in known:
            message = "Invalid credentials in Authorization header"
            self.send(401, b"", {"X-Error-Message": message})
        elif repository is None or (repository.token not in (None, shown) and not repository.gated):
            self.refuse(404 if shown else 401, "RepoNotFound", "Repository not found")
        elif repository.disabled:
            self.send(403, b"", {"X-Error-Message": "Access to this resource is disabled."})
        elif repository.token not in (None, shown):
            self.refuse(403 if shown else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        else:
            return True
        return False

    def _commit(self, repo_id: str, revision: str) -> str | None:
        repository = self.server.hub.repositories[repo_id]
        commit = repository.refs.get(revision, revision)
        if commit in repository.commits:
            return commit
        self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        """Where a file lies, and which version it is."""
        commit = self._commit(repo, revision)
        if commit is None:
            return
        content = self.server.hub.repositories[repo].commits[commit].get(file)
        found = {"X-Repo-Commit": commit}
        if self.command == "HEAD" and (fault := self.server.hub.take_fault("HEAD", file)):
            fault(self, content or b"")
        elif content is None:
            self.refuse(404, "EntryNotFound", "Entry not found", found)
        elif file.endswith(LARGE):
            found |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{large_name(content)}"'}
            place = f"{self.server.hub.cdn_url}/large/{repo}/{commit}/{quote(file)}"
            self.send(302, b"Found. Redirecting", {**found, "Location": place})
        else:
            found |= {"X-Linked-Size": str(len(content)), "ETag": f'"{small_name(content)}"'}
            place = f"/api/resolve-cache/models/{repo}/{commit}/{quote(file)}"
            self.send(307, b"Temporary Redirect", {**found, "Location": place})

    def _small_file(self, repo: str, commit: str, file: str) -> None:
        content = self.server.hub.repositories[repo].commits[commit][file]
        self.deliver(content, {"X-Repo-Commit": commit, "ETag": f'"{small_name(content)}"'})

    def _large_file(self, repo: str, commit: str, file: str) -> None:
        self.deliver(
            self.server.hub.repositories[repo].commits[commit][file], {"ETag": '"of-the-storage-host"'}
        )

    def _information(self, repo: str, revision: str = "main") -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        found = self.server.hub.repositories[repo]
        fields = {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": found.token is not None,
            "gated": found.gated,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in found.commits[commit]],
        }
        self.send(200, json.dumps(fields).encode(), {"Content-Type": "application/json"})

    def _tree(self, repo: str, revision: str) -> None:
        commit = self._commit(repo, revision)
        if commit is not None:
            entries = map(_tree_entry, self.server.hub.repositories[repo].commits[commit].items())
            self.send(200, json.dumps(list(entries)).encode(), {"Content-Type": "application/json"})

    # --- answers -------------------------------------------------------------------------------

    def deliver(self, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that was asked for, unless a fault is due."""
        fault = self.server.hub.take_fault(self.command, self.file) if self.command == "GET" else None
        if fault is not None:
            fault(self, content)
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, content, {**headers, "Accept-Ranges": "bytes"})
        elif (start := int(asked[1])) >= len(content):
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            part = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], {**headers, "Content-Range": part})

    def refuse(self, status: int, code: str, message: str, headers: Iterable = ()) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message, **dict(headers)})

    def send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        """One answer; `length` is what it announces, if that is not the truth."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(2)


def small_name(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def large_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tree_entry(item: tuple[str, bytes]) -> dict[str, Any]:
    name, content = item
    entry = {"type": "file", "path": name, "size": len(content), "oid": small_name(content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": large_name(content), "size": len(content), "pointerSize": 134}
    return entry


# --- faults ------------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Fault:
    """An answer that is nothing but a status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, content: handler.send(code, b"", named)


def cut(share: float = 0.5) -> Fault:
    """The connection ends after this share of the file."""

    def fault(handler: _Handler, content: bytes) -> None:
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        rest = content[start:]
        code, place = (206, f"bytes {start}-{len(content) - 1}/{len(content)}") if start else (200, "")
        headers = {"Content-Range": place} if place else {}
        handler.send(code, rest[: int(len(rest) * share)], headers, length=len(rest))
        handler.hang_up()

    return fault


def short(share: float = 0.5) -> Fault:
    """Less of the file than there is, as if that were all."""
    return lambda handler, content: handler.send(200, content[: int(len(content) * share)])


def page(handler: _Handler, content: bytes) -> None:
    """A page of the network's own, which says that all is well."""
    handler.send(200, PAGE, {"Content-Type": "text/html"})


def page_as_long(handler: _Handler, content: bytes) -> None:
    """The same, as long as the file by chance."""
    handler.send(200, PAGE.ljust(len(content))[: len(content)], {"Content-Type": "text/html"})


def flipped(handler: _Handler, content: bytes) -> None:
    """The file with one bit changed."""
    middle = len(content) // 2
    handler.send(200, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def silence(seconds: float) -> Fault:
    """Nothing at all for a while, and then the end."""

    def fault(handler: _Handler, content: bytes) -> None:
        time.sleep(seconds)
        handler.hang_up()

    return fault


def slow(seconds: float, parts: int = 4) -> Fault:
    """The whole file, a part at a time."""

    def fault(handler: _Handler, content: bytes) -> None:
        size = -(-len(content) // parts)
        handler.send(200, content[:size], length=len(content))
        for start in range(size, len(content), size):
            handler.wfile.flush()
            time.sleep(seconds)
            handler.wfile.write(content[start : start + size])

    return fault
