"""The feeding itself: the same inputs every time, and nothing that may not happen goes unnoticed."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refimpl.errors import TokenizerFileError
from tests.fuzz.breaking_readers import READERS as READERS_THAT_BREAK
from tests.fuzz.changes import change_bytes
from tests.fuzz.child import run_in_child
from tests.fuzz.harness import Failure, Reader, run
from tests.fuzz.readers import READERS


def fed(read: Any, use: Any = lambda value, folder, number: None) -> Reader:
    """A reader of one file; every input is a change of its bytes."""

    def reading(folder: Path, number: int) -> Any:
        return read((folder / "some.txt").read_bytes())

    def change(draw: Any, files: Any) -> Any:
        return {name: change_bytes(draw, content) for name, content in files.items()}

    valid = [{"some.txt": b"abcdefghijklmnopqrstuvwxyz"}]
    return Reader("some.txt", valid, change, reading, use, use_every=1)


@pytest.mark.parametrize("name", READERS)
def test_an_input_is_the_same_every_time(name: str) -> None:
    reader = READERS[name]
    inputs = [reader.input(number) for number in range(200)]
    assert inputs == [reader.input(number) for number in range(200)]
    assert len({str(files) for files in inputs}) > 150
    assert inputs[: len(reader.valid)] == list(reader.valid)


@pytest.mark.parametrize("name", READERS)
def test_what_the_changes_begin_with_is_accepted(name: str) -> None:
    count = len(READERS[name].valid)
    assert run(READERS[name], 0, count).accepted == count


def test_another_error_is_a_failure_and_made_small() -> None:
    def read(content: bytes) -> None:
        if b"f" in content and b"x" not in content:
            raise KeyError("x")

    with pytest.raises(Failure, match="KeyError escapes") as caught:
        run(fed(read), 0, 1000)
    assert caught.value.smallest == {"some.txt": b"f"}
    assert f"python -m tests.fuzz some.txt {caught.value.number}" in str(caught.value)


def test_another_error_in_use_is_a_failure() -> None:
    def use(value: object, folder: Path, number: int) -> None:
        assert number != 7

    with pytest.raises(Failure, match="AssertionError escapes") as caught:
        run(fed(len, use), 0, 1000)
    assert caught.value.number == 7


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer")
def test_what_takes_too_long_is_a_failure() -> None:
    def read(content: bytes) -> None:
        while b"f" not in content:
            try:
                time.sleep(0.01)
            except Exception:
                pytest.fail("the code under test must not be able to catch it")

    with pytest.raises(Failure, match="longer than") as caught:
        run(fed(read), 0, 1000, seconds_each=0.05)
    assert caught.value.smallest == {"some.txt": b""}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TokenizerFileError("it is wrong", where="elsewhere"), "names none of the files"),
        (TokenizerFileError("it is wrong " * 100, where="some.txt"), "characters"),
        (TokenizerFileError("it is\nwrong", where="some.txt"), "one printable line"),
        (TokenizerFileError("it is \x1b[2Jwrong", where="some.txt"), "one printable line"),
    ],
)
def test_an_error_that_does_not_help_is_a_failure(error: Exception, reason: str) -> None:
    def read(content: bytes) -> None:
        raise error

    with pytest.raises(Failure, match=reason):
        run(fed(read), 0, 1)


def test_errors_of_ours_that_help_are_counted() -> None:
    def read(content: bytes) -> None:
        if len(content) != 26:
            raise TokenizerFileError("not 26 letters", where="some.txt")

    tally = run(fed(read), 0, 500)
    assert tally.accepted + tally.refused == 500
    assert min(tally.accepted, tally.refused) > 20


def test_what_the_reader_needs_beside_is_there() -> None:
    def use(value: object, folder: Path, number: int) -> None:
        assert (folder / "beside.txt").read_bytes() == b"x"

    assert run(replace(fed(len, use), beside={"beside.txt": b"x"}), 0, 3).accepted == 3


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="the system has no such signals")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash", "exit code -9"),
        ("hang", "nothing for 1.0 s"),
        ("end", "said nothing"),
        ("escape", "exit code 1"),
    ],
)
def test_what_ends_a_process_is_a_failure(name: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=f"{reason}: input 5 of {name}"):
        run_in_child(READERS_THAT_BREAK[name], 3, 10, limit=1.0, module="tests.fuzz.breaking_readers")


def test_a_process_says_how_many_were_accepted() -> None:
    reader = READERS_THAT_BREAK["nothing"]
    assert run_in_child(reader, 3, 10, module="tests.fuzz.breaking_readers").accepted == 10
