"""Which files are opened at all: regular ones inside the model's folder, whatever links say and whoever meddles."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl.checkpoints import weight_file
from refimpl.checkpoints.weight_file import RegularFile, is_tensor_name, open_bytes, resolve_inside
from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    MissingFileError,
    RefimplError,
    ResourceLimitError,
    UnsafeCheckpointError,
)

posix = pytest.mark.skipif(os.name != "posix", reason="the system has no such files or links")
INSIDE, OUTSIDE = b"inside" * 100, b"outside" * 100


def written(path: Path, content: bytes = INSIDE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def linked(path: Path, target: str | Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("mmap", [True, False])
def test_the_bytes_of_a_file(tmp_path: Path, mmap: bool) -> None:
    data = open_bytes(written(tmp_path / "a.bin"), mmap)
    assert data.tobytes() == INSIDE
    assert (data.dtype, data.flags.writeable) == (np.uint8, False)


def test_owned_bytes_do_not_change_with_the_file_and_mapped_ones_do(tmp_path: Path) -> None:
    path = written(tmp_path / "a.bin")
    mapped, owned = open_bytes(path, True), open_bytes(path, False)
    path.write_bytes(OUTSIDE)
    assert owned.tobytes() == INSIDE
    assert mapped.tobytes() == OUTSIDE[: len(INSIDE)]
    assert owned.flags.owndata


def test_a_head_is_as_long_as_the_file_allows(tmp_path: Path) -> None:
    with RegularFile(written(tmp_path / "a.bin")) as file:
        assert (file.head(6), file.head(10_000), file.size) == (b"inside", INSIDE, len(INSIDE))


# --- not a regular file ------------------------------------------------------------------------------


def a_socket(path: Path) -> Path:
    before = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


IRREGULAR: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe": (a_pipe, "a named pipe"),
    "a link to a pipe": (lambda path: linked(path, a_pipe(path.with_name("pipe")).name), "a named pipe"),
    "zeros without end": (lambda path: Path("/dev/zero"), "a device"),
    "a terminal": (lambda path: Path("/dev/tty"), "a device"),
    "a folder": (a_folder, "a folder"),
    "a link to a folder": (lambda path: linked(path, a_folder(path.with_name("folder")).name), "a folder"),
    "the folder of the model": (lambda path: linked(path, "."), "a folder"),
    "a socket": (a_socket, "a socket"),
}


@posix
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("by_handle", [True, False])
@pytest.mark.parametrize("kind", IRREGULAR)
def test_only_regular_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, by_handle: bool
) -> None:
    monkeypatch.setattr(weight_file, "_BY_HANDLE", by_handle)
    make, found = IRREGULAR[kind]
    path = make(tmp_path / "model.safetensors")
    start = time.perf_counter()
    with pytest.raises(UnsafeCheckpointError, match="not a regular file") as caught:
        open_bytes(path, True)
    assert time.perf_counter() - start < 10  # a pipe is waited for without end
    assert caught.value.found == found


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.bin", b"", "empty"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer"),
        ("a.bin", b"<!DOCTYPE html><html>", "web page"),
        ("a.bin", b"\n <HTML lang=en>", "web page"),
        ("a.bin.incomplete", INSIDE, "not finished"),
        ("a.bin.part", INSIDE, "not finished"),
    ],
)
def test_placeholders(tmp_path: Path, name: str, content: bytes, what: str, mmap: bool) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(IncompleteCheckpointError, match=what) as caught:
        open_bytes(path, mmap)
    assert caught.value.path == path


@pytest.mark.parametrize("name", ["missing", "a.bin/b", "a\0b", "x" * 5000])
def test_what_cannot_be_opened(tmp_path: Path, name: str) -> None:
    written(tmp_path / "a.bin")
    with pytest.raises((MissingFileError, CheckpointFormatError)) as caught:
        open_bytes(tmp_path / name, True)
    assert str(caught.value).isprintable()


# --- links -------------------------------------------------------------------------------------------


def a_snapshot(cache: Path, target: str | Path = "../../blobs/4f2a") -> Path:
    """A file as the Hub's cache has it."""
    written(cache / "models--owner--name/blobs/4f2a")
    return linked(cache / "models--owner--name/snapshots/77ab/model.safetensors", target)


def by_a_link_to_the_snapshot(folder: Path) -> Path:
    snapshot = a_snapshot(folder / "cache").parent
    return linked(folder / "mine", snapshot) / "model.safetensors"


def in_a_moved_repository(folder: Path) -> Path:
    a_snapshot(folder / "disk")
    (folder / "cache").mkdir()
    linked(folder / "cache/models--owner--name", folder / "disk/models--owner--name")
    return folder / "cache/models--owner--name/snapshots/77ab/model.safetensors"


def by_a_folder_that_is_a_link(folder: Path) -> Path:
    linked(folder / "model/part", folder / "outside")
    return linked(folder / "model/model.safetensors", "part/secret")


def a_linked_revision(folder: Path) -> Path:
    written(folder / "cache/models--owner--name/blobs/4f2a")
    linked(folder / "cache/models--owner--name/snapshots/77ab", folder / "outside")
    return folder / "cache/models--owner--name/snapshots/77ab/secret"


def linked_blobs(folder: Path) -> Path:
    linked(folder / "cache/models--owner--name/blobs", folder / "outside")
    return linked(folder / "cache/models--owner--name/snapshots/77ab/x.safetensors", "../../blobs/secret")


def another_repository(folder: Path) -> Path:
    written(folder / "cache/models--evil--other/blobs/secret", OUTSIDE)
    return a_snapshot(folder / "cache", "../../../models--evil--other/blobs/secret")


def not_quite_the_cache(folder: Path) -> Path:
    written(folder / "models--owner--name/blobs/4f2a", OUTSIDE)
    return linked(folder / "models--owner--name/77ab/model.safetensors", "../blobs/4f2a")


def not_a_revision(folder: Path) -> Path:
    written(folder / "models--owner--name/blobs/4f2a", OUTSIDE)
    return linked(folder / "models--owner--name/refs/77ab/model.safetensors", "../../blobs/4f2a")


def in_a_circle(folder: Path) -> Path:
    linked(folder / "model/other", "model.safetensors")
    return linked(folder / "model/model.safetensors", "other")


def by_two_links(folder: Path) -> Path:
    linked(folder / "model/other", "../outside/secret")
    return linked(folder / "model/model.safetensors", "other")


#: Layout -> what opening gives: True for the file, or the error.
LAYOUTS: dict[str, tuple[Callable[[Path], Path], bool | type[RefimplError]]] = {
    "no link": (lambda f: written(f / "model/model.safetensors"), True),
    "a link beside": (lambda f: linked(f / "model/a.bin", written(f / "model/b.bin").name), True),
    "a link into a folder below": (
        lambda f: linked(f / "model/a", written(f / "model/b/c").relative_to(f / "model")),
        True,
    ),
    "the cache": (lambda f: a_snapshot(f / "cache"), True),
    "the cache with whole paths": (
        lambda f: a_snapshot(f / "cache", f / "cache/models--owner--name/blobs/4f2a"),
        True,
    ),
    "a link to a snapshot": (by_a_link_to_the_snapshot, True),
    "a moved repository": (in_a_moved_repository, True),
    "out": (lambda f: linked(f / "model/model.safetensors", "../outside/secret"), UnsafeCheckpointError),
    "out with the whole path": (
        lambda f: linked(f / "model/model.safetensors", f / "outside/secret"),
        UnsafeCheckpointError,
    ),
    "out by two links": (by_two_links, UnsafeCheckpointError),
    "out by a folder": (by_a_folder_that_is_a_link, UnsafeCheckpointError),
    "out of the cache": (
        lambda f: a_snapshot(f / "cache", "../../../../outside/secret"),
        UnsafeCheckpointError,
    ),
    "out of the repository": (another_repository, UnsafeCheckpointError),
    "a revision that is a link": (a_linked_revision, UnsafeCheckpointError),
    "blobs that are a link": (linked_blobs, UnsafeCheckpointError),
    "not quite the cache": (not_quite_the_cache, UnsafeCheckpointError),
    "not a revision": (not_a_revision, UnsafeCheckpointError),
    "a circle": (in_a_circle, UnsafeCheckpointError),
    "to itself": (
        lambda f: linked(f / "model/model.safetensors", "model.safetensors"),
        UnsafeCheckpointError,
    ),
    "to nothing": (lambda f: linked(f / "model/model.safetensors", "gone"), MissingFileError),
    "to a device": (lambda f: linked(f / "model/model.safetensors", "/dev/zero"), UnsafeCheckpointError),
}


@posix
@pytest.mark.parametrize("by_handle", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, by_handle: bool) -> None:
    monkeypatch.setattr(weight_file, "_BY_HANDLE", by_handle)
    make, expected = LAYOUTS[layout]
    written(tmp_path / "outside/secret", OUTSIDE)
    path = make(tmp_path)
    if expected is True:
        assert open_bytes(path, True).tobytes() == INSIDE
    else:
        assert isinstance(expected, type)
        with pytest.raises(expected) as caught:
            open_bytes(path, True)
        assert str(path) in str(caught.value)


_OPENING = """
import json, os, sys
from pathlib import Path
from refimpl.checkpoints.weight_file import open_bytes
from refimpl.errors import RefimplError

heard, opened, plain = [], [], os.open

def listen(event, arguments):
    if event == "open" and recording:
        heard.append(os.fspath(arguments[0]) if not isinstance(arguments[0], int) else "a handle")

def recorded(*arguments, **options):
    handle = plain(*arguments, **options)
    status = os.fstat(handle)
    opened.append([status.st_dev, status.st_ino])
    return handle

recording, os.open = False, recorded
sys.addaudithook(listen)
for path in sys.argv[1:]:
    for mmap in (True, False):
        recording = True
        try:
            open_bytes(Path(path), mmap)
        except RefimplError:
            pass
        recording = False
print(json.dumps([heard, opened]))
"""


@posix
def test_nothing_outside_is_opened(tmp_path: Path) -> None:
    """What the interpreter reports of every file that is opened, and which files these were."""
    forbidden, paths = [], []
    for number, (make, _) in enumerate(LAYOUTS.values()):
        folder = tmp_path / str(number)
        forbidden.append(written(folder / "outside/secret", OUTSIDE))
        paths.append(make(folder))
        forbidden += [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == OUTSIDE]
        forbidden.append(folder / "outside")
    forbidden += [tmp_path, Path("/dev/zero"), Path("/dev")]
    done = subprocess.run(
        [sys.executable, "-c", _OPENING, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    heard, opened = json.loads(done.stdout)
    assert len(heard) >= 2 * sum(expected is True for _, expected in LAYOUTS.values())
    # Each is a folder of a model by its whole path, one name in the folder before, or a handle.
    assert all(
        name.startswith(str(tmp_path)) or ("/" not in name and name not in ("..", "secret")) for name in heard
    )
    seen = {tuple(identity) for identity in opened}
    assert seen
    assert not seen & {(path.stat().st_dev, path.stat().st_ino) for path in forbidden}


# --- meddling ----------------------------------------------------------------------------------------


def exchange(path: Path, make: Callable[[Path], object]) -> None:
    """Puts what `make` makes in the place of `path`, at once."""
    new = path.with_name("new")
    make(new)
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name("old"))
    os.replace(new, path)


@posix
@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("model/sub/file", lambda new: new.symlink_to("../../outside/file")),
        ("model/sub", lambda new: new.symlink_to("../outside")),
        ("model", lambda new: new.symlink_to("outside_too")),
        ("model/sub/file", os.mkfifo),
        ("model/sub/file", lambda new: new.symlink_to("/dev/zero")),
    ],
)
def test_what_is_exchanged_after_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, make: Callable[[Path], object]
) -> None:
    written(tmp_path / "model/sub/file")
    written(tmp_path / "outside/file", OUTSIDE)
    written(tmp_path / "outside_too/sub/file", OUTSIDE)
    linked(tmp_path / "model/weights", "sub/file")

    def looked_at(path: Path) -> tuple[Path, Path]:
        found = resolve_inside(path)
        exchange(tmp_path / place, make)
        return found

    monkeypatch.setattr(weight_file, "resolve_inside", looked_at)
    with pytest.raises(UnsafeCheckpointError):
        open_bytes(tmp_path / "model/weights", True)


def a_pipe_that_opens_late(new: Path) -> None:
    """Whoever waits for it is freed after two seconds."""
    os.mkfifo(new)

    def free() -> None:
        with suppress(OSError):  # nobody waits
            os.close(os.open(new.with_name("file"), os.O_WRONLY | os.O_NONBLOCK))

    threading.Timer(2, free).start()


@posix
@pytest.mark.parametrize("make", [lambda new: new.symlink_to("../outside/file"), a_pipe_that_opens_late])
def test_what_is_exchanged_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    """After it was found to be a regular file, and before it is opened."""
    path = written(tmp_path / "model/file")
    written(tmp_path / "outside/file", OUTSIDE)
    refuse = weight_file._refuse_irregular

    def refuse_then_exchange(where: Path, status: os.stat_result) -> None:
        refuse(where, status)
        monkeypatch.setattr(weight_file, "_refuse_irregular", refuse)
        exchange(path, make)

    monkeypatch.setattr(weight_file, "_refuse_irregular", refuse_then_exchange)
    start = time.perf_counter()
    with pytest.raises(UnsafeCheckpointError):
        open_bytes(path, True)
    assert time.perf_counter() - start < 10  # a pipe is waited for without end


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list what is open")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_stays_open(tmp_path: Path, layout: str) -> None:
    written(tmp_path / "outside/secret", OUTSIDE)
    path = LAYOUTS[layout][0](tmp_path)
    gc.collect()  # what other tests have left
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with suppress(RefimplError):
            open_bytes(path, mmap=False)
        with suppress(RefimplError):
            open_bytes(path, mmap=True)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


@posix
def test_ten_thousand_exchanges(tmp_path: Path) -> None:
    """Another thread puts the file and links out of the folder in place by turns, as fast as it can."""
    path = written(tmp_path / "model/weights")
    written(tmp_path / "outside/weights", OUTSIDE)
    stop = threading.Event()

    def meddle() -> None:
        while not stop.is_set():
            exchange(path, lambda new: new.symlink_to("../outside/weights"))
            exchange(path, lambda new: new.write_bytes(INSIDE))

    thread = threading.Thread(target=meddle)
    thread.start()
    outcomes = {"opened": 0, "refused": 0}
    try:
        for _ in range(10_000):
            try:
                assert open_bytes(path, mmap=False).tobytes() == INSIDE
                outcomes["opened"] += 1
            except (UnsafeCheckpointError, MissingFileError, CheckpointFormatError):
                outcomes["refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_file_that_changes_after_it_was_opened(tmp_path: Path, size: int, mmap: bool) -> None:
    with RegularFile(written(tmp_path / "a.bin")) as file:
        os.truncate(tmp_path / "a.bin", size)
        with pytest.raises(IncompleteCheckpointError, match="changed") as caught:
            file.content(mmap)
        assert caught.value.found == f"{size} bytes"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("size", [10, 600])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, mmap: bool
) -> None:
    """It is made shorter, or touched, after its size was looked at."""
    path = written(tmp_path / "a.bin")
    with RegularFile(path) as file:
        way = "_mapped" if mmap else "_owned"
        read = getattr(file, way)

        def meddling() -> np.ndarray:
            os.truncate(path, size)
            os.utime(path, ns=(0, 0))
            return read()

        monkeypatch.setattr(file, way, meddling)
        with pytest.raises(IncompleteCheckpointError, match="changed") as caught:
            file.content(mmap)
        assert caught.value.found == f"{size} bytes"


def test_a_system_that_gives_less_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RegularFile(written(tmp_path / "a.bin")) as file:
        handle = file._file.fileno()
        stub = SimpleNamespace(fileno=lambda: handle, seek=lambda place: 0, readinto=lambda buffer: 0)
        with monkeypatch.context() as patch:
            patch.setattr(file, "_file", stub)
            with pytest.raises(CheckpointFormatError, match="only 0 of 600 bytes"):
                file.content(mmap=False)


def test_two_hundred_truncations_while_it_is_read(tmp_path: Path) -> None:
    """What is read into memory never ends the process, and is whole or refused."""
    path, content = tmp_path / "a.bin", bytes(1 << 20)
    for number in range(200):
        path.write_bytes(content)
        thread = threading.Thread(target=os.truncate, args=(path, number * 5000))
        thread.start()
        try:
            assert open_bytes(path, mmap=False).tobytes() in (content, content[: number * 5000])
        except CheckpointFormatError:
            pass
        finally:
            thread.join()


def test_no_memory_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with open(path, "wb") as file:
        file.write(b"x")
        try:
            file.truncate(1 << 43)
        except OSError:
            pytest.skip("no such large files here")
    with pytest.raises(ResourceLimitError, match="mmap=True"):
        open_bytes(path, mmap=False)


@posix
def test_no_more_open_files(tmp_path: Path) -> None:
    """A mapped file keeps its handle: thousands of parts are more than a system may allow."""
    import resource

    path, held = written(tmp_path / "a.bin"), []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 256), before[1]))
    try:
        with pytest.raises(ResourceLimitError, match="ulimit -n"):
            held += [open_bytes(path, mmap=True) for _ in range(300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert open_bytes(path, mmap=True).tobytes() == INSIDE


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("gpt_neox.layers.0.attention.dense.weight", True),
        ("猫", True),
        ("a b", True),
        ("../a", True),
        ("x" * 512, True),
        ("x" * 513, False),
        ("猫" * 171, False),
        ("", False),
        ("a\0", False),
        ("a\n", False),
        ("\x7f", False),
        ("\x85", False),
        ("\ud800", False),
        ("a\u202eb", False),
        ("a\u2028b", False),
    ],
)
def test_names_of_tensors(name: str, allowed: bool) -> None:
    assert is_tensor_name(name) == allowed
