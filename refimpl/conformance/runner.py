"""Driving an engine over cases: several processes at once, each restarted when it has failed, and a log as it goes."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refimpl.conformance.case_judge import judge, result_of
from refimpl.conformance.handshake import check_keys, check_names
from refimpl.conformance.live_naming import LiveNames
from refimpl.conformance.log import ResultLog
from refimpl.conformance.process import EngineProcess, Limits, Reply
from refimpl.conformance.protocol import Capabilities, read_capabilities
from refimpl.conformance.requests import Requests, hello
from refimpl.conformance.results import FAILED, Result
from refimpl.conformance.suite import Case, Suite
from refimpl.errors import EngineError, shorten

#: An engine that could not be restarted so often in a row is given up.
GIVE_UP_AFTER = 3

#: So many cases of one model go to the same process one after the other, which then loads it once.
_GROUP = 25

OnResult = Callable[[Result], None]
OnWait = Callable[[str], None]


@dataclass
class Run:
    """What was measured.

    Attributes:
        engine: as it described itself.
        results: in the order of the cases.
        asked_for: how many cases there were; more than there are results where the run was stopped.
        stopped: whether it was.
        taken: how many results come from the log of an earlier run.
        notes: what a reader should know beside the results.
    """

    engine: Capabilities
    results: list[Result]
    asked_for: int
    stopped: bool = False
    taken: int = 0
    notes: list[str] = field(default_factory=list)


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
    stop: threading.Event | None = None,
    on_wait: OnWait | None = None,
) -> Run:
    """Run `cases` on the engine that `command` starts.

    What goes wrong in a case is its result; the run goes on.

    stop: once it is set (from a signal handler, say) the run ends, with the results that there are.
    on_wait: is told once, when the first handshake takes long.

    Raises: EngineError when the engine does not start or its first handshake fails; InputError when `log` is that of
        another engine or suite; KeyboardInterrupt when `stop` is set before the engine has said who it is.  However it
        ends, no process of the engine and no file of the run is left.
    """
    xfail = xfail or {}
    with tempfile.TemporaryDirectory(prefix="refimpl-conform-") as folder:
        session = _Session(
            suite, command, limits or Limits(), xfail, log, on_result, environment, Path(folder),
            stop or threading.Event(),
        )  # fmt: skip
        try:
            first = session.start(on_wait)
            notes = check_names(first.engine, suite)
            done = {} if log is None else log.begin(suite.identity, first.engine.identity)
            taken = [case["id"] for case in cases if case["id"] in done]
            left = [case for case in cases if case["id"] not in done]
            session.run(left, first, jobs)
        finally:
            session.close()
    results = {name: apply_xfail(done[name], xfail) for name in taken} | session.results
    found = [results[case["id"]] for case in cases if case["id"] in results]
    notes += [*session.names.notes(), *not_measured(found, xfail)]
    stopped = session.was_asked_to_stop() and len(found) < len(cases)
    return Run(first.engine, found, len(cases), stopped, len(taken), notes)


def apply_xfail(result: Result, reasons: Mapping[str, str]) -> Result:
    """The result with an expected failure as one, and a pass that was not expected as a failure."""
    reason = reasons.get(result.id)
    if reason is not None and result.status in {*FAILED, "pass"}:
        result.reason = reason
        result.status = "xpass" if result.status == "pass" else "xfail"
        if result.status == "xpass":
            result.message = f"is right, and was expected to fail: {reason}"
    return result


def not_measured(results: Iterable[Result], xfail: Mapping[str, str]) -> list[str]:
    """What is to be said of expected failures that were not asked."""
    names = [result.id for result in results if result.status == "unsupported" and result.id in xfail]
    if not names:
        return []
    cases = "case is" if len(names) == 1 else "cases are"
    return [f"{len(names)} {cases} expected to fail, and unsupported: {shorten(names, 200)}"]


def grouped(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of the same model or vocabulary side by side, in groups of bounded size; each where its first case is."""
    together: dict[str, list[Case]] = {}
    for case in cases:
        model = case.get("model") or case["inputs"].get("vocabulary") or case["operation"]
        together.setdefault(str(model), []).append(case)
    return [members[i : i + _GROUP] for members in together.values() for i in range(0, len(members), _GROUP)]


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
        stop: threading.Event,
    ):
        self.suite, self._command, self._limits, self._xfail = suite, command, limits, xfail
        self._log, self._on_result, self._environment, self._scratch = log, on_result, environment, scratch
        (scratch / "results").mkdir()
        self.requests = Requests(suite, scratch)
        self.results: dict[str, Result] = {}
        self._lock, self._number = threading.Lock(), 0
        self.names = LiveNames(suite)
        # `stop` is the caller's; this one is also set when a worker has failed, or everything is done.
        self._asked_to_stop, self._ended = stop, threading.Event()
        self._processes: set[EngineProcess] = set()
        self._error: BaseException | None = None

    def start(self, on_wait: OnWait | None = None) -> _Started:
        """A new process after its handshake.  Raises: EngineError; KeyboardInterrupt when the run is stopped."""
        process = self._new_process()
        try:
            limit = self._limits.start_seconds
            reply = process.ask(hello(self.suite, self._scratch), limit, on_wait)
            if reply.failure == "stopped":
                raise KeyboardInterrupt
            if reply.answer is None:
                raise EngineError(
                    f"the engine gave no answer to the handshake: {reply.message}",
                    hint="Give it longer with --start-timeout." if reply.failure == "timeout" else None,
                    stdout=reply.noise,
                    stderr=reply.stderr,
                )
            check_keys(reply.answer)
            return _Started(process, read_capabilities(reply.answer))
        except BaseException:
            self.end(process)
            raise

    def _new_process(self) -> EngineProcess:
        with self._lock:
            if self.stopped():
                raise KeyboardInterrupt
            process = EngineProcess(self._command, self._limits, self._environment, self._asked_to_stop)
            self._processes.add(process)
            return process

    def end(self, process: EngineProcess) -> None:
        """End a process, if it still runs."""
        process.close()
        with self._lock:
            self._processes.discard(process)

    def close(self) -> None:
        """End every process, and start none any more."""
        self._ended.set()
        with self._lock:
            left = list(self._processes)
        for process in left:
            self.end(process)

    def run(self, cases: Sequence[Case], first: _Started, jobs: int) -> None:
        """All cases, by `jobs` processes of which `first` is one."""
        work: queue.SimpleQueue[list[Case]] = queue.SimpleQueue()
        for group in grouped(cases):
            work.put(group)
        workers = [_Worker(self, work, first.engine, first if i == 0 else None) for i in range(max(1, jobs))]
        threads = [threading.Thread(target=self._guarded, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # in pieces, so that Ctrl-C comes through
                thread.join(timeout=0.5)
        if self._error is not None:
            raise self._error

    def _guarded(self, worker: _Worker) -> None:
        try:
            worker.work()
        except BaseException as error:
            if not self._asked_to_stop.is_set():
                self._error = self._error or error
            self._ended.set()

    def stopped(self) -> bool:
        """Whether the run is at its end, for whatever reason."""
        return self._asked_to_stop.is_set() or self._ended.is_set()

    def was_asked_to_stop(self) -> bool:
        return self._asked_to_stop.is_set()

    def namer(self, case: Case) -> LiveNames | None:
        """What names a mistake of this case; None where its failure has a reason already."""
        return None if case["id"] in self._xfail else self.names

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
                result = self._result(case)
                if self._session.stopped():  # what a process gives while it is ended is nobody's fault
                    return
                self._session.keep(result)

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
            scratch = session.requests.scratch
            result = judge(session.suite, case, reply.answer, self._engine, scratch, session.namer(case))
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
            self._session.end(self._process)
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
    stop: threading.Event | None = None,
) -> Run:
    """Judge outputs that lie in files already (see `refimpl.conformance.offline`).

    Raises: as `OfflineOutputs`.
    """
    from refimpl.conformance.offline import OfflineOutputs

    outputs = OfflineOutputs(suite, Path(folder), dtype)
    results, xfail = [], xfail or {}
    names = LiveNames(suite)
    for case in cases:
        if stop is not None and stop.is_set():
            break
        result = apply_xfail(outputs.result(case, None if case["id"] in xfail else names), xfail)
        results.append(result)
        if on_result is not None:
            on_result(result)
    notes = [*check_names(outputs.engine, suite), *names.notes(), *not_measured(results, xfail)]
    return Run(outputs.engine, results, len(cases), len(results) < len(cases), notes=notes)
