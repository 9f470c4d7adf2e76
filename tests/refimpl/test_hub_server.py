"""The Hub of the tests answers as the real one does: seen by a plain client, and by `huggingface_hub` itself."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.refimpl.hub_server import cut, page, short, slow, status

MODEL = Path(__file__).resolve().parents[2] / "golden/models/gpt_neox/tiny-plain"
CONFIG, WEIGHTS = (MODEL / "config.json").read_bytes(), (MODEL / "model.safetensors").read_bytes()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def ask(url: str, method: str = "GET", **headers: str) -> HTTPResponse | HTTPError:
    """The first answer, whatever its status; redirects are not followed."""
    request = urllib.request.Request(url, method=method, headers=headers)
    opener = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            answer.content = answer.read()
            return answer
    except HTTPError as error:
        with error:
            error.content = error.read()  # type: ignore[attr-defined]
            return error


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_small_file_is_behind_a_relative_redirect(hub_server, method):
    commit = hub_server.add("owner/name", MODEL)
    first = ask(f"{hub_server.url}/owner/name/resolve/main/config.json", method)
    assert first.status == 307
    name = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert (first.headers["X-Repo-Commit"], first.headers["ETag"]) == (commit, f'"{name}"')
    second = ask(hub_server.url + first.headers["Location"], method)
    assert second.status == 200
    assert second.headers["X-Repo-Commit"] == commit
    assert second.headers["Content-Length"] == str(len(CONFIG))
    assert second.content == (CONFIG if method == "GET" else b"")


def test_a_large_file_lies_on_another_host(hub_server):
    commit = hub_server.add("owner/name", MODEL)
    first = ask(f"{hub_server.url}/owner/name/resolve/{commit}/model.safetensors", "HEAD")
    assert first.status == 302
    assert first.headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert first.headers["X-Linked-Size"] == str(len(WEIGHTS))
    place = first.headers["Location"]
    assert place.startswith(hub_server.cdn_url)
    assert ask(place).content == WEIGHTS
    part = ask(place, Range="bytes=70000-")
    assert (part.status, part.content) == (206, WEIGHTS[70000:])
    assert part.headers["Content-Range"] == f"bytes 70000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    assert ask(place, Range=f"bytes={len(WEIGHTS)}-").status == 416
    assert ask(place, Authorization="Bearer hf_mine").status == 400


def test_branches_tags_and_pull_requests(hub_server):
    first = hub_server.add("owner/name", {"a": b"1"})
    second = hub_server.add("owner/name", {"a": b"2"}, revision="refs/pr/3")
    assert first != second
    for revision, commit in (("main", first), ("refs%2Fpr%2F3", second), (second, second)):
        answer = ask(f"{hub_server.url}/owner/name/resolve/{revision}/a", "HEAD")
        assert answer.headers["X-Repo-Commit"] == commit
    found = json.loads(ask(f"{hub_server.url}/api/models/owner/name/revision/refs%2Fpr%2F3").content)
    assert (found["sha"], found["siblings"]) == (second, [{"rfilename": "a"}])
    assert json.loads(ask(f"{hub_server.url}/api/models/owner/name").content)["sha"] == first


@pytest.mark.parametrize(
    ("path", "token", "code", "error"),
    [
        ("no/one/resolve/main/a", None, 401, "RepoNotFound"),
        ("no/one/resolve/main/a", "hf_mine", 404, "RepoNotFound"),
        ("my/private/resolve/main/a", None, 401, "RepoNotFound"),
        ("my/private/resolve/main/a", "hf_a_stranger", 404, "RepoNotFound"),
        ("my/private/resolve/main/a", "hf_wrong", 401, None),
        ("my/private/resolve/main/a", "hf_mine", 307, None),
        ("the/gated/resolve/main/a", None, 401, "GatedRepo"),
        ("the/gated/resolve/main/a", "hf_mine", 403, "GatedRepo"),
        ("the/gated/resolve/main/a", "hf_guest", 307, None),
        ("open/one/resolve/main/b", None, 404, "EntryNotFound"),
        ("open/one/resolve/v9/a", None, 404, "RevisionNotFound"),
        ("api/models/open/one/revision/v9", None, 404, "RevisionNotFound"),
        ("disabled/one/resolve/main/a", "hf_mine", 403, None),
        ("nonsense", None, 404, None),
    ],
)
def test_what_is_refused(hub_server, path, token, code, error):
    hub_server.add("my/private", {"a": b"1"}, token="hf_mine")
    hub_server.add("the/gated", {"a": b"1"}, token="hf_guest", gated=True)
    commit = hub_server.add("open/one", {"a": b"1"})
    hub_server.add("disabled/one", {"a": b"1"}, disabled=True)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = ask(f"{hub_server.url}/{path}", "HEAD", **headers)
    assert (answer.status, answer.headers["X-Error-Code"]) == (code, error)
    if error == "EntryNotFound":  # what is not there is a fact of this version
        assert answer.headers["X-Repo-Commit"] == commit


def test_faults_come_in_their_order_and_end(hub_server):
    hub_server.add("owner/name", {"a.bin": b"0123456789"})
    place = ask(f"{hub_server.url}/owner/name/resolve/main/a.bin").headers["Location"]
    hub_server.fail("a.bin", status(503, Retry_After="7"), short(0.3), page, slow(0.0))
    first = ask(place)
    assert (first.status, first.headers["Retry-After"]) == (503, "7")
    assert ask(place).content == b"012"
    assert b"<html>" in ask(place).content
    assert ask(place).content == b"0123456789"
    hub_server.fail("a.bin", cut(0.5))
    with pytest.raises(Exception, match="IncompleteRead"):
        ask(place)
    assert ask(place).content == b"0123456789"
    assert hub_server.asked() == ["a.bin"]
    assert [r.host for r in hub_server.log] == ["hub"] + ["cdn"] * 6


def test_huggingface_hub_takes_it_for_the_real_one(hub_server, hub_child, tmp_path):
    hub_server.add("owner/name", MODEL, token="hf_mine")
    hub_server.log.clear()
    options = {"cache_dir": str(tmp_path), "token": "hf_mine"}
    folder = Path(hub_child.call("huggingface_hub:snapshot_download", "owner/name", **options))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
    }
    listed = hub_child.call("huggingface_hub:list_repo_files", "owner/name", token="hf_mine")
    assert sorted(listed) == ["config.json", "model.safetensors"]
    shown = {(r.host, r.authorization) for r in hub_server.log}
    assert shown == {("hub", "Bearer hf_mine"), ("cdn", None)}
