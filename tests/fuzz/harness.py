"""Feeding a reader of files with broken input, by number, so that every input can be made again.

Input `n` of a reader is the same in every run and on every machine: a small valid set of files, changed at random.
What may happen: the files are refused with an error of this package that names the file, or they are accepted,
and what was read can be used.  Anything else, or taking too long, is a failure; its input is then made smaller.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError

Files = dict[str, bytes]

SECONDS_EACH = 5.0  # nothing here takes a hundredth of it
LONGEST_MESSAGE = 1000  # besides the path of the file
SHRINKING_SECONDS = 20.0


@dataclass(frozen=True)
class Reader:
    """What is fed: `read` takes the folder with the files and gives what `use` then works with.

    Both get the number of the input too, so that something dear can be done with some inputs only; for what was
    accepted, `use` is called for one number in `use_every`.
    `beside` are files that lie in the folder too and stay as they are.  `prepare` does once, without a time limit,
    what would make some first input slow.  What is `native` may end the whole process, or not return at all:
    `child.py` feeds it.
    """

    name: str
    valid: Sequence[Files]
    change: Callable[[random.Random, Files], Files]
    read: Callable[[Path, int], Any]
    use: Callable[[Any, Path, int], None]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    prepare: Callable[[], Any] = lambda: None
    native: bool = False
    use_every: int = 4

    def input(self, number: int) -> Files:
        """Input `number`; the first ones are the valid files as they are."""
        if number < len(self.valid):
            return dict(self.valid[number])
        draw = random.Random(f"{self.name} {number}")
        return self.change(draw, dict(draw.choice(self.valid)))


@dataclass
class Tally:
    """How many inputs were accepted, and how many refused with a good error."""

    accepted: int = 0
    refused: int = 0


class Escaped(Exception):
    """What may not happen; the cause is the exception, if there was one."""


class Failure(AssertionError):
    """An input with which something happened that may not; `smallest` is as much of it as is needed for that."""

    def __init__(self, reader: Reader, number: int, escaped: Escaped, smallest: Files):
        self.reader, self.number, self.smallest = reader, number, smallest
        cause = escaped.__cause__
        trace = "".join(traceback.format_exception(cause)[-6:]) if cause else ""
        shown = "\n".join(f"{name}: {content!r:.2000}" for name, content in smallest.items())
        super().__init__(f"{escaped}\n{where(reader, number)}\n{shown}\n{trace}")


def where(reader: Reader, number: int) -> str:
    """The input, and how to feed it again."""
    return f"input {number} of {reader.name}; again with: python -m tests.fuzz {reader.name} {number}"


class _TooSlow(BaseException):
    """Not an Exception, so that nothing under test takes it for its own."""


_TICKS = 5  # of the clock, in the time that an input may take


class _Clock:
    """Raises _TooSlow in what runs longer than `seconds`.  Where the system has no such signal, nothing is limited.

    It counts ticks, so that watching costs next to nothing, and a machine that was stopped for a while loses one.
    """

    def __init__(self, seconds: float):
        self.seconds, self._left = seconds, 0

    def start(self) -> None:
        self._left = _TICKS + 1

    def stop(self) -> None:
        self._left = 0

    def _tick(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            raise _TooSlow

    @contextmanager
    def ticking(self) -> Iterator[None]:
        if not hasattr(signal, "setitimer"):
            yield
            return
        before = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, self.seconds / _TICKS, self.seconds / _TICKS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A new folder, where there is one in memory, which is gone afterwards."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(
        prefix="refimpl-fuzz-", dir=shared if os.access(shared, os.W_OK) else None
    ) as folder:
        yield Path(folder)


def try_files(reader: Reader, files: Files, number: int, folder: Path, clock: _Clock) -> bool:
    """Whether the files were accepted.  Raises: Escaped."""
    for name, content in files.items():
        with open(f"{folder}/{name}", "wb", buffering=0) as file:
            file.write(content)
    try:
        clock.start()
        try:
            value = reader.read(folder, number)
        except RefimplError as error:
            _check_message(error, [*files, *reader.beside], folder)
            return False
        if number % reader.use_every == 0:
            with suppress(RefimplError):
                reader.use(value, folder, number)
        return True
    except Escaped:
        raise
    except _TooSlow as error:
        raise Escaped(f"it takes longer than {clock.seconds} s") from error
    except Exception as error:
        raise Escaped(f"{type(error).__name__} escapes: {error!s:.200}") from error
    finally:
        clock.stop()


def _check_message(error: RefimplError, names: list[str], folder: Path) -> None:
    message = str(error)
    if not any(name in message for name in names):
        raise Escaped(f"the error names none of the files: {message:.300}") from error
    if len(message.replace(str(folder), "")) > LONGEST_MESSAGE:
        raise Escaped(f"the message of the error has {len(message)} characters") from error
    if not message.isprintable():
        raise Escaped(f"the message of the error is not one printable line: {message!r:.300}") from error


def run(
    reader: Reader,
    first: int,
    count: int,
    seconds_each: float = SECONDS_EACH,
    begins: Callable[[int], None] = lambda number: None,
) -> Tally:
    """Feeds the inputs from number `first`; `begins` is told each number before.  Raises: Failure."""
    tally, clock = Tally(), _Clock(seconds_each)
    reader.prepare()
    with memory_folder() as folder, clock.ticking(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in reader.beside.items():
            (folder / name).write_bytes(content)
        for number in range(first, first + count):
            begins(number)
            files = reader.input(number)
            try:
                if try_files(reader, files, number, folder, clock):
                    tally.accepted += 1
                else:
                    tally.refused += 1
            except Escaped as escaped:
                again = partial(try_files, reader, number=number, folder=folder, clock=clock)
                raise Failure(
                    reader, number, escaped, shrink(files, _fails_alike(again, escaped))
                ) from escaped
    return tally


def _fails_alike(again: Callable[..., object], escaped: Escaped) -> Callable[[Files], bool]:
    """Whether other files fail at the same place in the same way."""

    def kind(failure: Escaped) -> tuple[object, ...]:
        cause = failure.__cause__
        if cause is None or isinstance(cause, _TooSlow):
            return (str(failure)[:20],)
        last = traceback.extract_tb(cause.__traceback__)[-1]
        return type(cause), last.filename, last.lineno

    def fails(files: Files) -> bool:
        try:
            again(files=files)
        except Escaped as other:
            return kind(other) == kind(escaped)
        return False

    return fails


def shrink(files: Files, fails: Callable[[Files], bool]) -> Files:
    """The files with everything cut out without which it still `fails`, as far as time allows."""
    end = time.monotonic() + SHRINKING_SECONDS
    for name in files:
        size = max(len(files[name]) // 2, 1)
        while size:
            place = 0
            while place < len(files[name]) and time.monotonic() < end:
                shorter = {**files, name: files[name][:place] + files[name][place + size :]}
                if fails(shorter):
                    files = shorter
                else:
                    place += size
            size //= 2
    return files
