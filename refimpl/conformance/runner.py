"""Driving an engine over cases: several processes at once, each restarted when it has failed, and a log as it goes."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from refimpl.conformance.case_judge import judge, result_of
from refimpl.conformance.log import ResultLog
from refimpl.conformance.process import EngineProcess, Limits, Reply
from refimpl.conformance.protocol import Capabilities, read_capabilities
from refimpl.conformance.requests import Requests, hello
from refimpl.conformance.results import FAILED, Result
from refimpl.conformance.suite import Case, Suite
from refimpl.errors import EngineError

#: An engine that could not be restarted so often in a row is given up.
GIVE_UP_AFTER = 3

#: So many cases of one model go to the same process one after the other, which then loads it once.
_GROUP = 25

OnResult = Callable[[Result], None]


@dataclass
class Run:
    """What was measured: the engine as it described itself, and the results in the order of the suite."""

    engine: Capabilities
    results: list[Result]


def run_engine(
    suite: Suite,
    cases: Sequence[Case],
    command: Sequence[str],
    *,
    limits: Limits | None = None,
    jobs: int = 1,
    xfail: Mapping[str, str] | None = None,
    log: ResultLog | None = None,
    on_result: OnResult | None = None,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run `cases` on the engine that `command` starts.

    What goes wrong in a case is its result; the run goes on.
    Raises: EngineError when the engine does not start or its first handshake fails; InputError when `log` is that of
        another engine or suite.
    """
    with tempfile.TemporaryDirectory(prefix="refimpl-conform-") as folder:
        session = _Session(
            suite, command, limits or Limits(), xfail or {}, log, on_result, environment, Path(folder)
        )
        first = session.start()
        done = {} if log is None else log.begin(suite.identity, first.engine.identity)
        left = [case for case in cases if case["id"] not in done]
        session.run(left, first, jobs)
    results = {name: apply_xfail(result, xfail or {}) for name, result in done.items()} | session.results
    return Run(first.engine, [results[case["id"]] for case in cases if case["id"] in results])


def apply_xfail(result: Result, reasons: Mapping[str, str]) -> Result:
    """The result with an expected failure as one, and a pass that was not expected as a failure."""
    reason = reasons.get(result.id)
    if reason is not None and result.status in {*FAILED, "pass"}:
        result.reason = reason
        result.status = "xpass" if result.status == "pass" else "xfail"
        if result.status == "xpass":
            result.message = f"is right, and was expected to fail: {reason}"
    return result


def grouped(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of the same model or vocabulary side by side, in groups of bounded size."""

    def model(case: Case) -> str:
        return str(case.get("model") or case["inputs"].get("vocabulary") or case["operation"])

    groups = []
    for _, members in groupby(sorted(cases, key=model), key=model):
        together = list(members)
        groups += [together[i : i + _GROUP] for i in range(0, len(together), _GROUP)]
    return groups


@dataclass
class _Started:
    process: EngineProcess
    engine: Capabilities


class _Session:
    """One run: what all of its threads share."""

    def __init__(
        self,
        suite: Suite,
        command: Sequence[str],
        limits: Limits,
        xfail: Mapping[str, str],
        log: ResultLog | None,
        on_result: OnResult | None,
        environment: Mapping[str, str] | None,
        scratch: Path,
    ):
        self.suite, self._command, self._limits, self._xfail = suite, command, limits, xfail
        self._log, self._on_result, self._environment, self._scratch = log, on_result, environment, scratch
        (scratch / "results").mkdir()
        self.requests = Requests(suite, scratch)
        self.results: dict[str, Result] = {}
        self._lock, self._number = threading.Lock(), 0
        self._stop = threading.Event()
        self._error: BaseException | None = None

    def start(self) -> _Started:
        """A new process after its handshake.  Raises: EngineError."""
        process = EngineProcess(self._command, self._limits, self._environment)
        reply = process.ask(hello(self.suite, self._scratch), self._limits.start_seconds)
        try:
            if reply.answer is None:
                said = "".join(f"\n  {line}" for line in [*reply.noise, *reply.stderr])
                raise EngineError(f"the engine gave no answer to the handshake: {reply.message}{said}")
            return _Started(process, read_capabilities(reply.answer))
        except BaseException:
            process.close()
            raise

    def run(self, cases: Sequence[Case], first: _Started, jobs: int) -> None:
        """All cases, by `jobs` processes of which `first` is one."""
        work: queue.SimpleQueue[list[Case]] = queue.SimpleQueue()
        groups = grouped(cases)
        for group in groups:
            work.put(group)
        workers = [_Worker(self, work, first.engine, first if i == 0 else None) for i in range(max(1, jobs))]
        threads = [threading.Thread(target=self._guarded, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # in pieces, so that Ctrl-C comes through
                    thread.join(timeout=0.5)
        finally:
            self._stop.set()
            for worker in workers:
                worker.close()
        if self._error is not None:
            raise self._error

    def _guarded(self, worker: _Worker) -> None:
        try:
            worker.work()
        except BaseException as error:
            self._error = self._error or error
            self._stop.set()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def number(self) -> int:
        """A number that no other request has."""
        with self._lock:
            self._number += 1
            return self._number

    def keep(self, result: Result) -> None:
        """Log and report a result."""
        with self._lock:
            if self._log is not None:
                self._log.write(result)
            result = apply_xfail(result, self._xfail)
            self.results[result.id] = result
            if self._on_result is not None:
                self._on_result(result)


class _Worker:
    """One process after the other, and the cases that it takes from the queue."""

    def __init__(
        self,
        session: _Session,
        work: queue.SimpleQueue[list[Case]],
        engine: Capabilities,
        started: _Started | None,
    ):
        self._session, self._work, self._engine = session, work, engine
        self._process = started.process if started else None
        self._failed_starts, self._why = 0, ""

    def work(self) -> None:
        while not self._session.stopped():
            try:
                group = self._work.get_nowait()
            except queue.Empty:
                return
            for case in group:
                if self._session.stopped():
                    return
                self._session.keep(self._result(case))

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def _result(self, case: Case) -> Result:
        session = self._session
        folder = session.suite.lacks_files(case)
        if folder is not None:
            return result_of(case, "unsupported", f"{folder} did not come with the suite")
        lacking = self._engine.why_not(case)
        if lacking is not None:
            return result_of(case, "unsupported", lacking)
        if not self._ready():
            return result_of(case, "crashed", f"the engine does not start any more: {self._why}")
        seconds = 0.0
        if "after" in case:
            reply, _ = self._ask(session.suite.case(case["after"]))
            seconds += reply.seconds
            if reply.answer is None:
                message = f"{reply.message}, in {case['after']}, which goes before"
                return result_of(case, reply.failure or "crashed", message, stderr=reply.stderr)
        reply, number = self._ask(case)
        if reply.answer is None:
            result = result_of(case, reply.failure or "crashed", reply.message)
        else:
            result = judge(session.suite, case, reply.answer, self._engine, session.requests.scratch)
        session.requests.results(number).unlink(missing_ok=True)
        result.seconds, result.noise = round(seconds + reply.seconds, 4), reply.noise
        if result.failed:
            result.stderr = reply.stderr
        return result

    def _ask(self, case: Case) -> tuple[Reply, int]:
        assert self._process is not None
        number = self._session.number()
        reply = self._process.ask(self._session.requests.request(case, number, self._engine))
        if reply.failure is not None:
            self._process = None
        return reply, number

    def _ready(self) -> bool:
        """Whether a process runs; starts one if need be, but not for ever."""
        while self._process is None and self._failed_starts < GIVE_UP_AFTER:
            try:
                self._process = self._session.start().process
                self._failed_starts = 0
            except EngineError as error:
                self._failed_starts, self._why = self._failed_starts + 1, str(error)
        return self._process is not None


def run_offline(
    suite: Suite,
    cases: Sequence[Case],
    folder: str | Path,
    *,
    dtype: str | None = None,
    xfail: Mapping[str, str] | None = None,
    on_result: OnResult | None = None,
) -> Run:
    """Judge outputs that lie in files already (see `refimpl.conformance.offline`).

    Raises: as `OfflineOutputs`.
    """
    from refimpl.conformance.offline import OfflineOutputs

    outputs = OfflineOutputs(suite, Path(folder), dtype)
    results = []
    for case in cases:
        result = apply_xfail(outputs.result(case), xfail or {})
        results.append(result)
        if on_result is not None:
            on_result(result)
    return Run(outputs.engine, results)
