"""An engine in a process of its own: asked one thing at a time, and never trusted to answer.

Two threads read what it writes, one writes what it is told; so nothing that it does or leaves undone stops the
runner.  The process leads a group of its own, which is killed as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from refimpl.errors import EngineError, quote

_PIECE = 1 << 16
_ENDED = b""

#: So long nothing is said while an answer is waited for.
_QUIET_SECONDS = 3.0
#: So often it is looked whether the run has been stopped.
_LOOK_SECONDS = 0.2

#: Keys that an object has only where it is meant as an answer.
_ANSWER_KEYS = ("outputs", "unsupported", "protocol")


@dataclass(frozen=True)
class Limits:
    """Attributes: `seconds` for one case, `start_seconds` for the handshake; `answer_bytes` of one answer, with all
    noise before it; `stderr_lines` and `noise_lines` that are kept of one request, cut at 400 and 160 characters."""

    seconds: float = 60.0
    start_seconds: float = 30.0
    answer_bytes: int = 64 << 20
    stderr_lines: int = 20
    noise_lines: int = 5


@dataclass
class Reply:
    """What came of a request.

    Attributes: `answer`, or None where `failure` (`crashed`, `timeout`, `invalid`, `stopped`) and `message` say why
        there is none; `noise`, lines on standard output that are no answer; `stderr`, the last lines there; `seconds`.
    """

    answer: dict[str, Any] | None = None
    failure: str | None = None
    message: str = ""
    noise: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    seconds: float = 0.0


class EngineProcess:
    """One running engine.

    stop: once it is set, `ask` waits no longer.
    Raises: EngineError when the program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        limits: Limits,
        environment: Mapping[str, str] | None = None,
        stop: threading.Event | None = None,
    ):
        self._limits, self._stop = limits, stop or threading.Event()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=None if environment is None else dict(environment),
            )
        except (OSError, ValueError) as error:
            raise _cannot_start(command[0], error) from error
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=64)
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        self._stderr: deque[str] = deque(maxlen=limits.stderr_lines)
        self._too_large = self._closing = False
        self._close_once = threading.Lock()
        self._threads = [
            threading.Thread(target=work, args=(stream,), daemon=True)
            for work, stream in (
                (self._write, self._process.stdin),
                (self._read, self._process.stdout),
                (self._read_stderr, self._process.stderr),
            )
        ]
        for thread in self._threads:
            thread.start()

    def ask(
        self,
        request: Mapping[str, Any],
        seconds: float | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> Reply:
        """Send a request and wait for the answer with its id.

        After any `failure` the process is ended: what it would say next belongs to nothing any more.
        on_wait: is told once, after a few seconds, what is waited for.
        """
        limit = self._limits.seconds if seconds is None else seconds
        reply, began = Reply(), time.monotonic()
        self._stderr.clear()
        self._requests.put(json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        read, noise = 0, 0
        while reply.answer is None and reply.failure is None:
            waited = time.monotonic() - began
            if self._stop.is_set():
                reply.failure, reply.message = "stopped", "the run was stopped"
                break
            if on_wait is not None and waited >= _QUIET_SECONDS:
                on_wait(_waiting(reply.noise, limit))
                on_wait = None
            try:
                line = self._lines.get(timeout=min(_LOOK_SECONDS, max(0.0, limit - waited)))
            except queue.Empty:
                if waited >= limit:
                    reply.failure, reply.message = "timeout", f"no answer within {limit:g} seconds"
                continue
            read += len(line)
            if self._too_large or read > self._limits.answer_bytes:
                reply.failure = "invalid"
                reply.message = f"more than {self._limits.answer_bytes:,} bytes on standard output"
            elif line is _ENDED:
                reply.failure, reply.message = "crashed", self._how_it_ended()
            else:
                answer, wrong = _parse(line)
                wrong = wrong or _wrong_id(answer, request["id"])
                if answer is not None and _is_id(answer.get("id"), request["id"]):
                    reply.answer = answer
                elif wrong:
                    reply.failure, reply.message = "invalid", wrong
                else:
                    noise += 1
                    if noise <= self._limits.noise_lines:
                        reply.noise.append(_shown(line, 160))
        if noise > self._limits.noise_lines:
            reply.noise.append(f"... and {noise - self._limits.noise_lines} lines more")
        reply.seconds = time.monotonic() - began
        if reply.failure is not None:
            self.close()
        reply.stderr = list(self._stderr)
        return reply

    def close(self) -> None:
        """End the process and all that it started.  A second call, in any thread, returns when the first has."""
        with self._close_once:
            if not self._closing:
                self._closing = True
                self._end()

    def _end(self) -> None:
        self._requests.put(None)
        _kill(self._process)
        with contextlib.suppress(queue.Empty):  # whoever waits to put a line may go on, and end
            while True:
                self._lines.get_nowait()
        for thread in self._threads:
            thread.join(timeout=1)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "closed its standard output"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _write(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (data := self._requests.get()) is not None:
                stream.write(data)
                stream.flush()

    def _read(self, stream: IO[bytes]) -> None:
        """Lines into the queue; after the last one, or one too many bytes without an end, `_ENDED`."""
        handle, rest = stream.fileno(), bytearray()
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(handle, _PIECE):
                *lines, last = piece.split(b"\n")
                for line in lines:
                    self._put(bytes(rest) + line + b"\n")
                    rest.clear()
                rest += last
                if len(rest) > self._limits.answer_bytes:
                    self._too_large = True
                    break
        self._put(_ENDED)

    def _put(self, line: bytes) -> None:
        while not self._closing:
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=0.2)
                return

    def _read_stderr(self, stream: IO[bytes]) -> None:
        handle, rest = stream.fileno(), b""
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(handle, _PIECE):
                *lines, rest = (rest + piece).split(b"\n")
                self._stderr.extend(_shown(line) for line in lines)
                rest = rest[-4096:]
        if rest:
            self._stderr.append(_shown(rest))


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The object that a line is; or what is wrong with one that begins as an object; or neither: noise."""
    text = line.strip()
    if not text.startswith(b"{"):
        return None, ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"the answer is not JSON ({error}): {_shown(text)}"
    return (value, "") if isinstance(value, dict) else (None, "")


def _is_id(found: Any, wanted: int) -> bool:
    return not isinstance(found, bool) and isinstance(found, int | float) and found == wanted


def _wrong_id(answer: dict[str, Any] | None, wanted: int) -> str:
    """What is wrong with an object that is meant as an answer, and has another id; "" for anything else."""
    if answer is None or _is_id(answer.get("id"), wanted):
        return ""
    error = "error" in answer and ("id" in answer or isinstance(answer["error"], dict))
    if not error and not any(key in answer for key in _ANSWER_KEYS):
        return ""
    has = f"the id {_shown(json.dumps(answer['id']).encode(), 40)}" if "id" in answer else "no id"
    return f"the answer has {has}, the request had the id {wanted}"


def _waiting(noise: list[str], limit: float) -> str:
    said = (
        f"it has written lines that are no answer, first: {noise[0]}" if noise else "it has written nothing"
    )
    return f"waiting for the engine's first answer, {limit:g} seconds at most; {said}"


def _cannot_start(program: str, error: Exception) -> EngineError:
    hint = None
    if isinstance(error, PermissionError) and os.path.isfile(program):
        hint = f"Make it a program (chmod +x {program}), or name what runs it: --cmd 'node {program}'."
    elif isinstance(error, OSError) and error.errno == errno.ENOEXEC:
        hint = f"Its first line has to name what runs it (#!...); or name that: --cmd 'node {program}'."
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return EngineError(f"the engine cannot be started ({reason})", where=quote(program), hint=hint)


def _shown(line: bytes, most: int = 400) -> str:
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    return text if len(text) <= most else text[: most - 1] + "…"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its group; what it started goes with it
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
