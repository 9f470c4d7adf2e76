"""`refimpl chat` at a terminal: Ctrl-C, Ctrl-D, long lines, and what a person sees."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refimpl.cli.interrupt import Interrupt
from tests.cli.conftest import write_model

pty = pytest.importorskip("pty")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")

# Nothing has to be compiled for it.
QUICK = ("--format", "line", "--backend", "numpy")

CTRL_C, CTRL_D = b"\x03", b"\x04"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("terminal") / "endless", eos_token_id=None, max_position_embeddings=1 << 16
    )


class Terminal:
    """A chat whose terminal is ours: everything that it writes is in `shown`."""

    def __init__(self, command: list[str], environment: dict[str, str], *arguments: str | Path):
        pid, self.end = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execvpe(command[0], [*command, "chat", *map(str, arguments)], {**environment, "TERM": "dumb"})
        self.pid, self.shown, self.code = pid, b"", -1

    def read_until(self, wanted: str, after: int = 0) -> None:
        deadline = time.monotonic() + 120
        while wanted.encode() not in self.shown[after:]:
            assert time.monotonic() < deadline, self.shown
            assert self._read(), self.shown

    def _read(self) -> bool:
        """Whether there is more, or may be; waits a moment for it."""
        if not select.select([self.end], [], [], 1.0)[0]:
            return True
        try:
            part = os.read(self.end, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.shown += part
        return bool(part)

    def type(self, text: bytes) -> int:
        """Returns: how much had been shown before."""
        before = len(self.shown)
        os.write(self.end, text)
        return before

    def ask(self, line: str) -> int:
        """As `type`, but a whole line, when it is asked for: a terminal may lose what comes between two states."""
        self.read_until("> ", self.shown.rfind(b"\n") + 1)
        return self.type(line.encode() + b"\r")

    def wait(self) -> int:
        deadline = time.monotonic() + 120
        while self._read():
            assert time.monotonic() < deadline, self.shown
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(command, environment, endless):
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(command, environment, "-m", endless, *QUICK, *arguments))
        opened[-1].read_until("> ")
        return opened[-1]

    yield start
    for one in opened:
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_conversation_at_a_terminal(terminal):
    chat = terminal("-n", "5", "--verbose")
    assert b"format line. /help lists the commands; /exit or Ctrl-D ends." in chat.shown
    before = chat.ask("abc")
    chat.read_until("new tokens, 0 reused", before)
    chat.read_until("> ", before)
    before = chat.ask("/nonsense")
    chat.read_until("refimpl: error: unknown command", before)
    before = chat.ask("abc\\")
    chat.read_until(". ", before)
    before = chat.type(b"c\r")
    chat.read_until("5 tokens", before)
    chat.read_until("> ", chat.shown.rfind(b"5 tokens"))
    chat.type(CTRL_D)
    assert chat.wait() == 0
    assert b"Traceback" not in chat.shown


def test_ctrl_c_stops_the_reply_and_not_the_program(terminal, tmp_path):
    chat = terminal("-n", "60000", "--temperature", "1", "--seed", "1", "--quiet", "--verbose")
    before = chat.ask("abc")
    while len(chat.shown) < before + 300:
        assert chat._read()
    before = chat.type(CTRL_C)
    chat.read_until(" tokens/s; ", before)
    # What there was of the reply is part of the conversation.
    before = chat.ask(f"/save {tmp_path / 'talk.json'}")
    chat.read_until("[1 turn saved in", before)
    before = chat.ask("/exit")
    assert chat.wait() == 0
    (turn,) = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["turns"]
    assert turn["finish_reason"] == "interrupted"
    assert len(turn["ids"]) > 50
    assert not turn["reply"].endswith("\ufffd")


def test_ctrl_c_at_the_prompt_gives_a_new_line(terminal):
    chat = terminal("-n", "5", "--verbose")
    chat.read_until("> ")
    before = chat.type(b"half a li")
    chat.read_until("half a li", before)
    before = chat.type(CTRL_C)
    while (
        b"> " not in chat.shown[before:]
    ):  # a terminal may lose what comes between two states: press it again
        for _ in range(5):
            assert chat._read(), chat.shown
        if b"> " not in chat.shown[before:]:
            chat.type(CTRL_C)
    before = chat.ask("/undo")
    chat.read_until("nothing was said yet", before)
    chat.read_until("> ", chat.shown.rfind(b"nothing"))
    chat.type(CTRL_D)
    assert chat.wait() == 0


def test_ctrl_c_in_a_pipe_ends_with_the_text_so_far(command, environment, endless):
    process = subprocess.Popen(
        [
            *command,
            "chat",
            "-m",
            endless,
            *QUICK,
            "-n",
            "60000",
            "--temperature",
            "1",
            "--seed",
            "1",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("吾輩は\n猫\n".encode())
    first = b""
    while len(first) < 100:
        first += process.stdout.read(100)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert error == b""


def test_a_program_that_goes_on_obeys_the_first_ctrl_c_only():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupt(is_last=False) as interrupt:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert interrupt.happened
        with Interrupt(is_last=False) as interrupt:
            interrupt.finish()
            signal.raise_signal(signal.SIGINT)
            assert interrupt.happened
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
