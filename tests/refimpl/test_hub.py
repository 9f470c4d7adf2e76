"""Files of a folder, and of a Hub: one that runs on this machine, and for what it cannot do a stand-in for the library.

The Hub is asked by a process of its own (`hub_child`), as `huggingface_hub` reads its environment once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub import errors

from refimpl import GPTNeoXJapaneseForCausalLM
from refimpl.errors import InputError, MissingFileError, SaveError
from refimpl.hub import ModelFiles, pin, resolve
from tests.refimpl.hub_child import Child, Failure
from tests.refimpl.hub_server import PAGE, cut, flipped, page, page_as_long, short, silence, slow, status
from tests.tiny import save_tiny

RESOLVE = "refimpl.hub:resolve"
WEIGHTS = b"0123456789abcdef" * 4096  # several parts of a download

# What older versions mend, keep and try again differs; what they give us is right in the end all the same.
NEWEST = int(huggingface_hub.__version__.split(".")[0]) >= 2

FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}


def content(path: str | Failure) -> bytes:
    assert isinstance(path, str), path
    return Path(path).read_bytes()


def has_begun(cache: Path) -> bool:
    """Whether a part of a file has arrived."""
    return any(path.stat().st_size for path in cache.rglob("*.incomplete"))


# --- a folder ----------------------------------------------------------------------------------------


def test_a_folder_needs_no_hub(tmp_path, library):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("x")
    (folder / "sub" / "b.txt").write_text("y")
    assert resolve(folder, "a.txt") == folder / "a.txt"
    assert resolve(folder, "b.txt", required=False) is None
    assert resolve(folder, "b.txt", subfolder="sub") == folder / "sub" / "b.txt"
    with pytest.raises(MissingFileError, match=r"no file b\.txt; found a\.txt, sub/b\.txt$") as caught:
        resolve(folder, "b.txt")
    assert caught.value.reason == "absent"
    with pytest.raises(MissingFileError, match="an empty folder"):
        resolve(folder, "b.txt", subfolder="not there")
    with pytest.raises(InputError, match="not a file"):
        resolve(folder / "a.txt", "b.txt")
    assert pin(folder, revision="v1") == {"revision": "v1"}
    assert library.calls == []


@pytest.mark.parametrize("question", ["is_dir", "is_file"])
def test_a_folder_that_nobody_may_look_into(library, tmp_path, monkeypatch, question):
    """Simulated: whoever runs the tests may be allowed everything."""

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, question, refuse)
    with pytest.raises(MissingFileError, match=r"it cannot be read \(Permission denied\)") as caught:
        resolve(tmp_path, "config.json", required=False)
    assert (caught.value.reason, library.calls) == ("failed", [])
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["no such/folder/here", "../up", "a b", "/absolute", "owner/..", "a/b/c", "x\0y", "x" * 5000 + "/"],
)
def test_names_that_cannot_be_on_the_hub(library, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "repository")
    with pytest.raises(MissingFileError, match="no folder"):
        resolve(name, "config.json")
    with pytest.raises(InputError, match="empty"):
        resolve("", "config.json")
    assert library.calls == []


# --- the Hub -----------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(hub_server, hub_child, tmp_path):
    commit = hub_server.add("owner/name", FILES)
    path = hub_child.call(RESOLVE, "owner/name", "model.safetensors", cache_dir=tmp_path)
    assert content(path) == WEIGHTS
    assert Path(path) == tmp_path / "models--owner--name" / "snapshots" / commit / "model.safetensors"
    assert hub_server.asked("GET") == ["model.safetensors"]
    hub_server.log.clear()
    assert hub_child.call(RESOLVE, "owner/name", "model.safetensors", cache_dir=tmp_path) == path
    assert hub_server.asked("GET") == []
    assert hub_server.asked("HEAD") == ["model.safetensors"]


def test_versions(hub_server, hub_child, tmp_path):
    contents = {"main": b"1", "v1.0": b"2", "step3000": b"3", "refs/pr/3": b"4"}
    commits = {name: hub_server.add("o/n", {"a.bin": data}, name) for name, data in contents.items()}
    for name, data in contents.items():
        for revision in (name, commits[name]):
            path = hub_child.call(RESOLVE, "o/n", "a.bin", cache_dir=tmp_path, revision=revision)
            assert content(path) == data
            assert f"/{commits[name]}/" in path
    assert content(hub_child.call(RESOLVE, "o/n", "a.bin", cache_dir=tmp_path)) == b"1"
    newer = hub_server.add("o/n", {"a.bin": b"5"})
    assert content(hub_child.call(RESOLVE, "o/n", "a.bin", cache_dir=tmp_path)) == b"5"
    old = hub_child.call(RESOLVE, "o/n", "a.bin", cache_dir=tmp_path, revision=commits["main"])
    assert newer != commits["main"]
    assert content(old) == b"1"


def test_a_commit_that_is_cached_needs_no_request(hub_server, hub_child, tmp_path):
    commit = hub_server.add("o/n", FILES)
    options = {"cache_dir": tmp_path, "revision": commit}
    hub_child.call(RESOLVE, "o/n", "config.json", **options)
    assert hub_child.call(RESOLVE, "o/n", "absent.json", required=False, **options) is None
    hub_server.log.clear()
    assert content(hub_child.call(RESOLVE, "o/n", "config.json", **options)) == b"{}"
    assert hub_child.call(RESOLVE, "o/n", "absent.json", required=False, **options) is None
    failure = hub_child.call(RESOLVE, "o/n", "absent.json", **options)
    assert "o/n/absent.json: the repository has no such file at this revision" in failure.text
    assert hub_server.log == []


def test_pinned_options_name_the_commit(hub_server, hub_child, tmp_path):
    commit = hub_server.add("o/n", FILES, "v1")
    hub_server.add("o/tokenizer", {"vocab.txt": b"a"})
    options = {"cache_dir": str(tmp_path), "revision": "v1"}
    assert hub_child.call("refimpl.hub:pin", "o/n", **options) == {**options, "revision": commit}
    # An answer that says "no such file" names the commit as well.
    pinned = hub_child.call("refimpl.hub:pin", "o/tokenizer", cache_dir=str(tmp_path))
    assert pinned["revision"] == hub_server.repositories["o/tokenizer"].refs["main"]
    assert hub_child.call("refimpl.hub:pin", "o/n", **options, local_files_only=True)["revision"] == commit


def test_force_download(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    path = Path(hub_child.call(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path))
    path.resolve().write_bytes(b"damaged on this disk")
    assert content(hub_child.call(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path)) != WEIGHTS
    options = {"cache_dir": tmp_path, "force_download": True}
    assert content(hub_child.call(RESOLVE, "o/n", "model.safetensors", **options)) == WEIGHTS
    hub_server.fail("model.safetensors", flipped)
    assert hub_child.call(RESOLVE, "o/n", "model.safetensors", **options).reason == "damaged"
    assert hub_child.call(
        RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path, local_files_only=True
    ).reason
    hub_child.call(RESOLVE, "o/n", "absent", required=False, **options)
    hub_server.log.clear()
    revision = hub_server.repositories["o/n"].refs["main"]
    hub_child.call(RESOLVE, "o/n", "absent", required=False, revision=revision, **options)
    assert hub_server.asked("HEAD") == ["absent"]
    failure = hub_child.call(RESOLVE, "o/n", "config.json", local_files_only=True, **options)
    assert failure.names[0] == "InputError"


def test_a_private_repository(hub_server, hub_child, tmp_path):
    hub_server.add("my/own", FILES, token="hf_mine")
    failure = hub_child.call(RESOLVE, "my/own", "model.safetensors", cache_dir=tmp_path)
    assert (failure.names[0], failure.reason) == ("MissingFileError", "refused")
    assert "my/own/model.safetensors: no such folder, and no such repository" in failure.text
    assert "HF_TOKEN" in failure.text
    options = {"cache_dir": tmp_path, "token": "hf_mine"}
    assert content(hub_child.call(RESOLVE, "my/own", "model.safetensors", **options)) == WEIGHTS
    assert {r.authorization for r in hub_server.log if r.host == "cdn"} == {None}
    for token, name in (
        ("hf_wrong", "MissingFileError"),
        ("hf_wrong\n", "InputError"),
        ("hf_é", "InputError"),
    ):
        failure = hub_child.call(RESOLVE, "my/own", "config.json", cache_dir=tmp_path / "new", token=token)
        assert failure.names[0] == name
        assert token.strip() not in failure.text


def test_a_token_of_the_environment(hub_server, tmp_path):
    hub_server.add("my/own", FILES, token="hf_mine")
    with Child(hub_server.url, tmp_path / "home", HF_TOKEN="hf_mine") as child:
        path = child.call(RESOLVE, "my/own", "config.json")
        assert content(path) == b"{}"
        assert Path(path).is_relative_to(tmp_path / "home" / "hub")
        denied = child.call(RESOLVE, "my/own", "config.json", token=False, cache_dir=tmp_path / "new")
        assert denied.reason == "refused"


@pytest.mark.parametrize(
    ("repository", "token", "text"),
    [
        ({"token": "hf_guest", "gated": True}, None, "must be granted on the Hub first"),
        ({"token": "hf_guest", "gated": True}, "hf_a_stranger", "this account has none yet"),
        ({"token": "hf_guest"}, "hf_a_stranger", "no such repository on the Hub"),
        ({"token": "hf_guest"}, "hf_nobody", "the Hub does not know this token"),
        ({"disabled": True}, None, "Access to this resource is disabled"),
    ],
)
def test_what_the_hub_refuses(hub_server, hub_child, tmp_path, repository, token, text):
    hub_server.add("o/n", FILES, **repository)
    failure = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path, token=token, required=False)
    assert (failure.names[0], failure.reason) == ("MissingFileError", "refused")
    assert failure.text.startswith("o/n/config.json: ")
    assert text in failure.text


def test_what_is_not_there(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    failure = hub_child.call(RESOLVE, "o/n", "absent.json", cache_dir=tmp_path)
    assert failure.text == "o/n/absent.json: the repository has no such file at this revision"
    assert failure.reason == "absent"
    assert hub_child.call(RESOLVE, "o/n", "absent.json", cache_dir=tmp_path, required=False) is None
    failure = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path, revision="v9")
    assert failure.reason == "refused"
    assert "o/n/config.json (revision 'v9'): the repository has no revision 'v9'" in failure.text
    failure = hub_child.call(RESOLVE, "o/nothing", "config.json", cache_dir=tmp_path, required=False)
    assert "o/nothing/config.json: no such folder, and no such repository" in failure.text


def test_a_simple_server_without_error_codes(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    hub_server.fail("absent.json", status(404), method="HEAD", times=2)
    assert hub_child.call(RESOLVE, "o/n", "absent.json", cache_dir=tmp_path, required=False) is None


# --- damage on the way -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [short(0.9), short(0), page, page_as_long, flipped, status(404), status(416), status(500)]
)
@pytest.mark.parametrize("file", ["model.safetensors", "vocab.txt"])
def test_nothing_that_is_damaged_is_returned_or_kept(hub_server, hub_child, tmp_path, fault, file):
    files = {"model.safetensors": WEIGHTS, "vocab.txt": WEIGHTS[:5000]}
    hub_server.add("o/n", files)
    hub_server.fail(file, fault)
    failure = hub_child.call(RESOLVE, "o/n", file, cache_dir=tmp_path, required=False)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    if NEWEST or isinstance(failure, Failure):
        assert (failure.names[0], failure.reason in ("damaged", "failed")) == ("MissingFileError", True)
        assert failure.text.startswith(f"o/n/{file}: the ")
        assert "not in the local cache" in hub_child.call(RESOLVE, "o/n", file, **options).text
    assert content(in_the_end(hub_child, file, tmp_path)) == files[file]
    assert content(hub_child.call(RESOLVE, "o/n", file, **options)) == files[file]


def in_the_end(child: Child, file: str, cache: Path) -> str | Failure:
    """The file after some attempts: older versions of the library go on where a damaged download ended."""
    attempts = 1 if NEWEST else 3
    found = (child.call(RESOLVE, "o/n", file, cache_dir=cache) for _ in range(attempts))
    return next((path for path in found if path), Failure([], "never", None, None))


def test_a_wrong_beginning_is_not_gone_on_with(hub_server, hub_child, tmp_path):
    """The rest of a page and the rest of a file are together as long as the file."""
    hub_server.add("o/n", FILES)

    def mixed(handler, data):
        handler.send(200, PAGE + data[len(PAGE) :])

    for file in ("model.safetensors", "vocab.txt"):
        hub_server.add("o/n", {**FILES, "vocab.txt": WEIGHTS})
        hub_server.fail(file, mixed)
        failure = hub_child.call(RESOLVE, "o/n", file, cache_dir=tmp_path)
        assert failure.reason == "damaged"
        assert content(in_the_end(hub_child, file, tmp_path)) == WEIGHTS


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        (hashlib.sha1(b"vocabulary").hexdigest(), True),
        (hashlib.md5(b"vocabulary").hexdigest(), True),
        ("version-3", True),
        ("0" * 40, False),
        ("0" * 64, False),
    ],
)
def test_names_of_small_files_on_other_servers(hub_server, hub_child, tmp_path, monkeypatch, name, taken):
    """Some call them by their plain SHA-1, some by what means nothing to us; a hash of the Hub must be right."""
    monkeypatch.setattr("tests.refimpl.hub_server.small_name", lambda content: name)
    hub_server.add("o/n", {"vocab.txt": b"vocabulary"})
    path = hub_child.call(RESOLVE, "o/n", "vocab.txt", cache_dir=tmp_path)
    assert content(path) == b"vocabulary" if taken else path.reason == "damaged"


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ([cut(0.5)], [None, "bytes=32768-"]),
        ([cut(0.5), cut(0.5)], [None, "bytes=32768-", "bytes=49152-"]),
        ([cut(0)], [None, None]),
        ([status(429)], [None, None]),
        ([slow(0.05)], [None]),
    ],
)
def test_what_the_library_mends(hub_server, hub_child, tmp_path, faults, requests):
    hub_server.add("o/n", FILES)
    hub_server.fail("model.safetensors", *faults)
    assert content(in_the_end(hub_child, "model.safetensors", tmp_path)) == WEIGHTS
    if NEWEST:
        assert [r.range for r in hub_server.log if r.host == "cdn"] == requests


def test_a_connection_that_always_breaks(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    hub_server.fail("model.safetensors", cut(0), times=20)
    failure = hub_child.call(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path)
    assert "o/n/model.safetensors: the download " in failure.text
    assert "Try again." in failure.text
    assert not hub_child.call(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    ("fault", "reason", "text"),
    [
        (status(500), "unreachable", "the Hub is out of order (HTTP status 500). Try again later."),
        (status(503), "unreachable", "the Hub is out of order (HTTP status 503)"),
        (status(429), "unreachable", "too many requests"),
        (page, "unreachable", "what answered is no Hub"),
        (status(403), "refused", "the Hub refuses access"),
        (status(418), "failed", "the download failed"),
    ],
)
def test_a_hub_that_is_out_of_order(hub_server, hub_child, tmp_path, fault, reason, text):
    hub_server.add("o/n", FILES)
    hub_server.fail("config.json", fault, method="HEAD", times=20)
    failure = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path, required=False)
    assert (failure.names[0], failure.reason) == ("MissingFileError", reason)
    assert failure.text.startswith("o/n/config.json: ")
    assert text in failure.text
    hub_server.forget()
    path = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path)
    for file in ("config.json", "absent.json"):
        hub_server.fail(file, fault, method="HEAD", times=20)
    assert hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path) == path
    # What may be absent is taken as absent when nobody can say, but not when somebody says something else.
    found = hub_child.call(RESOLVE, "o/n", "absent.json", cache_dir=tmp_path, required=False)
    assert found is None if reason == "unreachable" else found.reason == reason


def test_a_silent_hub(hub_server, tmp_path):
    hub_server.add("o/n", FILES)
    with Child(hub_server.url, tmp_path, timeout=0.3) as child:
        hub_server.fail("config.json", silence(2), method="HEAD", times=20)
        failure = child.call(RESOLVE, "o/n", "config.json")
        assert failure.reason == "unreachable"
        assert "HF_HUB_ETAG_TIMEOUT" in failure.text
        hub_server.fail("model.safetensors", silence(2), times=20)
        failure = child.call(RESOLVE, "o/n", "model.safetensors")
        assert failure.reason == "failed"
        assert "HF_HUB_DOWNLOAD_TIMEOUT" in failure.text


def test_a_killed_download_leaves_nothing_to_be_used(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    hub_server.fail("model.safetensors", slow(5))
    with Child(hub_server.url, tmp_path / "home") as victim:
        victim.ask(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path / "cache")
        until(lambda: has_begun(tmp_path / "cache"))
        victim.kill()
    options = {"cache_dir": tmp_path / "cache"}
    assert not hub_child.call(RESOLVE, "o/n", "model.safetensors", local_files_only=True, **options)
    assert content(hub_child.call(RESOLVE, "o/n", "model.safetensors", **options)) == WEIGHTS


def test_two_processes_at_once(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    hub_server.fail("model.safetensors", slow(0.1), slow(0.1))
    with Child(hub_server.url, tmp_path / "home") as other:
        for child in (hub_child, other):
            child.ask(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path / "cache")
        paths = {child.answer() for child in (hub_child, other)}
    assert content(paths.pop()) == WEIGHTS
    assert not paths
    assert [r.host for r in hub_server.log].count("cdn") == 1


def until(question, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- without a connection ----------------------------------------------------------------------------


def test_offline(hub_server, hub_child, offline_child, tmp_path):
    hub_server.add("o/n", FILES)
    path = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path)
    hub_server.log.clear()
    options = {"cache_dir": tmp_path, "local_files_only": True}
    for child, given in ((hub_child, options), (offline_child, {"cache_dir": tmp_path})):
        assert child.call(RESOLVE, "o/n", "config.json", **given) == path
        assert child.call(RESOLVE, "o/n", "a.json", required=False, **given) is None
        for name in ("o/n", "o/other"):
            failure = child.call(RESOLVE, name, "a.json", **given)
            assert failure.reason == "not cached"
            assert failure.text.startswith(f"{name}/a.json: not in the local cache")
            assert "HF_HUB_OFFLINE" in failure.text
        failure = child.call(RESOLVE, "o/n", "config.json", **given, force_download=True)
        assert failure.names[0] == "InputError"
    assert offline_child.call("tests.refimpl.test_hub:names_of", "o/n", str(tmp_path)) == ["config.json"]
    assert hub_server.log == []


def names_of(name: str, cache_dir: str) -> list[str]:
    return ModelFiles(name, cache_dir=cache_dir).names()


def test_a_hub_that_cannot_be_reached(hub_server, hub_child, lonely_child, tmp_path):
    hub_server.add("o/n", FILES)
    path = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path)
    given = {"cache_dir": str(tmp_path)}
    assert lonely_child.call(RESOLVE, "o/n", "config.json", **given) == path
    assert lonely_child.call(RESOLVE, "o/n", "a.json", required=False, **given) is None
    for name, options in (
        ("o/n", {"required": True}),
        ("o/n", {"force_download": True, "required": False}),
        ("o/other", {"required": False}),
    ):
        failure = lonely_child.call(RESOLVE, name, "a.json", **given, **options)
        assert failure.reason == "unreachable", (name, options)
        assert failure.text.startswith(f"{name}/a.json: the Hub cannot be reached")
        assert "HF_ENDPOINT" in failure.text
    pinned = {**given, "revision": Path(path).parent.name}
    assert lonely_child.call("refimpl.hub:pin", "o/n", **given) == pinned
    # Where only the cache can answer, it is not asked by way of the Hub again.
    hub_server.add("o/weights", FILES)
    hub_child.call(RESOLVE, "o/weights", "model.safetensors", cache_dir=tmp_path)
    assert lonely_child.call("refimpl.hub:pin", "o/weights", **given) == {**given, "local_files_only": True}


def test_a_warning_when_the_cache_has_to_do(hub_server, hub_child, lonely_child, tmp_path):
    hub_server.add("o/n", FILES)
    hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path)
    warned = lonely_child.call("tests.refimpl.test_hub:find_twice", "o/n", str(tmp_path))
    assert len(warned) == 1
    assert "cannot be reached" in warned[0]
    assert "going on with what is in the cache" in warned[0]


def find_twice(name: str, cache_dir: str) -> list[str]:
    """The warnings that two optional files give."""
    import logging

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("refimpl").addHandler(handler)
    files = ModelFiles(name, cache_dir=cache_dir)
    assert (files.find("a.json"), files.find("b.json"), files.offline) == (None, None, True)
    assert files.unreachable is not None
    return said


# --- this machine ------------------------------------------------------------------------------------


def test_a_full_disk(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    with Child(hub_server.url, tmp_path / "home") as child:
        assert content(child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path / "cache")) == b"{}"
        # No file may be longer: for the one who writes it that is the same.
        child.call("resource:setrlimit", 1, [20000, 20000])
        failure = child.call(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path / "cache")
    assert failure.names[0] == "SaveError"
    assert failure.text.startswith("o/n/model.safetensors: the file cannot be stored")
    assert "HF_HOME" in failure.text
    assert not hub_child.call(
        RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path / "cache", local_files_only=True
    )
    assert content(in_the_end(hub_child, "model.safetensors", tmp_path / "cache")) == WEIGHTS


def test_a_cache_that_cannot_be_written(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    (tmp_path / "file").write_text("in the way")
    failure = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path / "file" / "cache")
    assert failure.names[0] == "SaveError"
    assert "the file cannot be stored" in failure.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_only_be_read(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", FILES)
    path = hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path / "cache")
    folders = [tmp_path / "cache", *(p for p in (tmp_path / "cache").rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert hub_child.call(RESOLVE, "o/n", "config.json", cache_dir=tmp_path / "cache") == path
        failure = hub_child.call(RESOLVE, "o/n", "model.safetensors", cache_dir=tmp_path / "cache")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert failure.names[0] == "SaveError"


# --- what the library may raise ----------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A stand-in for `hf_hub_download`; `library.calls` records what was asked of it, `library.failure` is raised."""
    folder = save_tiny(tmp_path / "repository")

    class Library:
        calls: list = []  # noqa: RUF012
        failure: Exception | None = None

    def download(repo_id, filename, **options):
        Library.calls.append((repo_id, filename, options))
        if Library.failure is not None:
            raise Library.failure
        if not (folder / filename).is_file():
            raise errors.EntryNotFoundError("404")
        return str(folder / filename)

    Library.calls = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return Library


def response(status):
    return MagicMock(status_code=status, headers={})


def test_options_reach_the_library(library, tmp_path):
    options = {"revision": "refs/pr/3", "cache_dir": tmp_path, "token": "t", "force_download": True}
    model = GPTNeoXJapaneseForCausalLM.from_pretrained("owner/name", backend="numpy", **options)
    assert model.num_parameters() > 0
    assert {"config.json", "model.safetensors"} <= {name for _, name, _ in library.calls}
    for repo_id, _, given in library.calls:
        assert repo_id == "owner/name"
        assert given == options
    library.calls.clear()
    with pytest.raises(MissingFileError, match="not in the local cache"):
        resolve("owner/name", "config.json", cache_dir=tmp_path, local_files_only=True)
    assert library.calls == []


@pytest.mark.parametrize("content", [WEIGHTS, WEIGHTS[:-1] + b"!"])
def test_files_that_repositories_share(tmp_path, monkeypatch, content):
    """With Xet one link leads to the next, and the last name is a hash of another kind."""
    name, commit = hashlib.sha256(WEIGHTS).hexdigest(), "c" * 40
    shared = tmp_path / "blobs" / "ab" / ("ab" * 32)
    blob = tmp_path / "models--o--n" / "blobs" / name
    path = tmp_path / "models--o--n" / "snapshots" / commit / "model.safetensors"
    for one, target in (
        (shared, None),
        (blob, f"../../blobs/ab/{shared.name}"),
        (path, f"../../blobs/{name}"),
    ):
        one.parent.mkdir(parents=True)
        one.write_bytes(content) if target is None else one.symlink_to(target)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    if content == WEIGHTS:
        assert resolve("o/n", "model.safetensors") == path
    else:
        with pytest.raises(MissingFileError, match="arrived damaged"):
            resolve("o/n", "model.safetensors")
        assert not path.is_symlink()


@pytest.mark.parametrize(
    ("failure", "reason", "message"),
    [
        (errors.EntryNotFoundError("x"), "absent", "no such file"),
        (errors.LocalEntryNotFoundError("x"), "not cached", "not in the local cache"),
        (errors.OfflineModeIsEnabled("x"), "not cached", "not in the local cache"),
        (errors.RevisionNotFoundError("x", response=response(404)), "refused", "no revision 'v9'"),
        (errors.RepositoryNotFoundError("x", response=response(404)), "refused", "no such repository"),
        (errors.GatedRepoError("x", response=response(403)), "refused", "granted"),
        (errors.HfHubHTTPError("x", response=response(500)), "failed", "out of order"),
        (errors.FileMetadataError("no etag"), "unreachable", "no Hub"),
        (OSError("Consistency check failed: 3 bytes"), "damaged", "not complete"),
        (ConnectionResetError(104, "Connection reset"), "failed", "download failed"),
        (TimeoutError(110, "Connection timed out"), "failed", "HF_HUB_DOWNLOAD_TIMEOUT"),
        (RuntimeError("of the library"), "failed", "RuntimeError: of the library"),
        (AssertionError(), "failed", "AssertionError"),
    ],
)
def test_what_can_go_wrong_is_one_class(library, failure, reason, message):
    library.failure = failure
    with pytest.raises(MissingFileError, match=message) as caught:
        resolve("owner/name", "config.json", revision="v9")
    assert caught.value.__cause__ is failure
    assert caught.value.reason == reason
    assert str(caught.value).startswith("owner/name/config.json (revision 'v9'): ")


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EACCES", "EROFS", "EPERM", "EIO"])
def test_what_the_system_refuses(library, number):
    library.failure = OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
    with pytest.raises(SaveError, match=os.strerror(getattr(errno, number))) as caught:
        resolve("owner/name", "config.json", required=False)
    assert "HF_HOME" in caught.value.hint


@pytest.mark.parametrize(
    "failure", [TypeError("revision"), errors.HFValidationError("repo"), ValueError("offline")]
)
def test_options_that_the_hub_cannot_take(library, failure):
    library.failure = failure
    with pytest.raises(InputError, match="cannot be asked so"):
        resolve("owner/name", "config.json")


@pytest.mark.parametrize("failure", [MemoryError(), KeyboardInterrupt()])
def test_what_is_no_failure_of_a_download(library, failure):
    library.failure = failure
    with pytest.raises(type(failure)):
        resolve("owner/name", "config.json")


def test_an_optional_file_may_be_absent(library):
    assert resolve("owner/name", "absent.json", required=False) is None
    library.failure = errors.LocalEntryNotFoundError("x")
    assert resolve("owner/name", "absent.json", required=False) is None


def test_a_long_answer_is_cut_and_has_no_token(library):
    library.failure = RuntimeError("hf_secret\n" * 1000)
    with pytest.raises(MissingFileError) as caught:
        resolve("owner/name", "config.json", token="hf_secret")
    assert "hf_secret" not in str(caught.value)
    assert "RuntimeError: <token> <token>" in str(caught.value)
    assert len(str(caught.value)) < 400
