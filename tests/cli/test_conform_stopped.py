"""`refimpl conform run`, stopped by a signal: nothing is left behind, and what was measured is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.refimpl.conformance_engines import FEW, engine, small_suite

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

#: The engine says where it is, and works for ever.
BUSY = "Path({pids!r}, f'{{os.getpid()}}').write_text('', encoding='utf-8')\n        while {when}: pass"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_suite(tmp_path_factory.mktemp("suite"))


class Running:
    """A run in a process of its own, with folders of its own for what it writes and for the ids of engines."""

    def __init__(self, suite: Path, folder: Path, command: Callable[[str], list[str]], *more: str):
        self.scratch, self.pids = folder / "tmp", folder / "pids"
        self.scratch.mkdir()
        self.pids.mkdir()
        words = command(str(self.pids))
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "refimpl", "conform", "run", "--suite", str(suite), "--cmd", " ".join(words),
                *more,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(self.scratch)},
        )  # fmt: skip

    def wait_for_engine(self) -> None:
        deadline = time.monotonic() + 30
        while not list(self.pids.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(self.pids.iterdir()), "the engine did not start"

    def stop(self, number: signal.Signals, times: int = 1) -> tuple[int, str, str]:
        """Exit code and output of the run, which leaves no process and no folder."""
        for _ in range(times):
            self.process.send_signal(number)
            time.sleep(0.05)
        try:
            output, error = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        left = [path.name for path in self.pids.iterdir() if _runs(path.name)]
        for pid in left:
            os.kill(int(pid), signal.SIGKILL)
        assert (left, list(self.scratch.iterdir())) == ([], [])
        return self.process.returncode, output, error


def _runs(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def busy_at_start(tmp_path: Path) -> Callable[[str], list[str]]:
    return lambda pids: engine(tmp_path, hello=BUSY.format(pids=pids, when=True))


def busy_in_a_case(tmp_path: Path) -> Callable[[str], list[str]]:
    return lambda pids: engine(tmp_path, BUSY.format(pids=pids, when=True))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_stopped_in_the_handshake(
    number: signal.Signals, code: int, times: int, suite: Path, tmp_path: Path
) -> None:
    running = Running(suite, tmp_path, busy_at_start(tmp_path))
    running.wait_for_engine()
    returned, output, error = running.stop(number, times)
    # A second signal may come when everything has been cleared away: then it has its usual effect.
    assert returned == code or (times > 1 and returned == -number)
    assert output == ""
    assert "interrupted before the engine had answered: nothing was measured" in error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_a_case(number: signal.Signals, code: int, suite: Path, tmp_path: Path) -> None:
    """The case before it, in the order of the suite, has been measured; the log has it, and the run can go on."""
    log, card, report = tmp_path / "log.jsonl", tmp_path / "card.md", tmp_path / "report.json"
    more = ["--resume", str(log), "--markdown", str(card), "--json", str(report)]
    running = Running(suite, tmp_path, busy_in_a_case(tmp_path), *more)
    running.wait_for_engine()
    returned, output, error = running.stop(number)
    assert returned == code
    assert output.splitlines()[-1] == f"interrupted after 1 of {len(FEW)}: 1 pass"
    assert ["op", "layer_norm", "1", "1"] in [line.split() for line in output.splitlines()]
    assert error.splitlines()[-2:] == [
        f"not written, because the run is not whole: {card}",
        f"go on with: --resume {log}",
    ]
    assert not card.exists()
    told = json.loads(report.read_text(encoding="utf-8"))
    assert (told["interrupted"], told["cases"], told["exit_code"]) == (True, len(FEW), code)
    assert [entry["status"] for entry in told["results"]] == ["pass"]
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
    assert [(entry["id"], entry["status"]) for entry in entries] == [("ops/layer-norm", "pass")]


def test_stopped_with_several_processes(suite: Path, tmp_path: Path) -> None:
    running = Running(suite, tmp_path, busy_in_a_case(tmp_path), "--jobs", "3")
    running.wait_for_engine()
    returned, output, error = running.stop(signal.SIGTERM)
    assert (returned, "crashed" in output) == (143, False)
    assert "with --resume FILE a run can be taken up again" in error


def test_a_signal_that_is_ignored_stays_so(suite: Path, tmp_path: Path) -> None:
    """As of a program that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        slow = "Path({!r}, str(os.getpid())).write_text(''); time.sleep(1)"
        running = Running(suite, tmp_path, lambda pids: engine(tmp_path, hello=slow.format(pids)))
    finally:
        signal.signal(signal.SIGINT, before)
    running.wait_for_engine()
    returned, output, _ = running.stop(signal.SIGINT)
    assert (returned, output.splitlines()[-1]) == (0, f"passed: {len(FEW)} pass")
