"""`refimpl conform`: run any engine over the suite, or write the suite as one archive."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.cli.stopping import StopOnSignal
from refimpl.errors import EngineError, InputError, MissingFileError, quote

if TYPE_CHECKING:
    from refimpl.conformance.results import Result
    from refimpl.conformance.runner import Run
    from refimpl.conformance.suite import Case, Suite

_LEVELS = "op, layer, model, tokenizer, generation"
_SERVE = "refimpl.conformance.serve"


def parser(prog: str) -> common.Parser:
    examples = (
        f'{prog} run --cmd "./my-engine --float32" --markdown SCORECARD.md',
        f'{prog} run --cmd ./my-engine --level op --include "ops/layer-norm*"',
        f"{prog} run --backend numpy --dtype float64 --jobs 2",
        f"{prog} run --from-dir outputs --dtype float32",
        f"{prog} export DIR",
    )
    made = common.Parser(
        prog,
        examples,
        "Run an engine over the suite of cases, and say where it departs and which mistake that is.\n"
        "Exit code: 0 all is right, 1 a case failed (or none was measured), 2 the call, the suite or the start\n"
        "of the engine is wrong, 130 interrupted (Ctrl-C; 143: SIGTERM).",
    )
    made.add_argument(
        "action",
        choices=("run", "export"),
        metavar="{run,export}",
        help="run an engine; or write the suite as one archive",
    )
    made.add_argument("folder", nargs="?", metavar="DIR", help="export: where the archive goes")
    made.add_argument(
        "--suite", metavar="PATH", help="folder or zip archive (default: golden/ of the source checkout)"
    )
    engine = made.add_argument_group("the engine (one of these)")
    engine.add_argument(
        "--cmd", metavar="COMMAND", help="a program that speaks the protocol (docs/conformance/protocol.md)"
    )
    engine.add_argument("--from-dir", metavar="DIR", help="outputs that lie in files already")
    engine.add_argument("--python", metavar="MODULE:CALLABLE", help="a Python callable: request -> answer")
    engine.add_argument("--backend", metavar="NAME", help="this package itself: numpy, numba or cupy")
    engine.add_argument(
        "--dtype", choices=("float32", "float64"), help="of --backend (default float32) or --from-dir"
    )
    chosen = made.add_argument_group("which cases")
    chosen.add_argument(
        "--include", action="append", default=[], metavar="NAME",
        help="cases with this id (a glob) or tag: level, operation, feature, required, optional; repeatable",
    )  # fmt: skip
    chosen.add_argument(
        "--exclude", action="append", default=[], metavar="NAME", help="the opposite; repeatable"
    )
    chosen.add_argument(
        "--level", action="append", default=[], metavar="LEVEL", help=f"{_LEVELS}; repeatable"
    )
    chosen.add_argument("--list", action="store_true", help="list the cases and end")
    how = made.add_argument_group("how")
    how.add_argument("--xfail", metavar="FILE", help="cases that are known to fail, each with a reason")
    how.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds for one case (default 60)"
    )
    how.add_argument(
        "--start-timeout", type=_seconds, default=30.0, metavar="S",
        help="seconds until the engine has answered the handshake (default 30)",
    )  # fmt: skip
    how.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="so many processes at once (default 1)"
    )
    how.add_argument(
        "--resume", metavar="FILE", help="log every result there; what passed in it is not asked again"
    )
    out = made.add_argument_group("what is written")
    out.add_argument(
        "--json", metavar="FILE", help="all results as JSON; -: standard output, in place of the table"
    )
    out.add_argument("--junit", metavar="FILE", help="all results as JUnit XML")
    out.add_argument("--markdown", metavar="FILE", help="a scorecard for a README")
    out.add_argument(
        "--trained-model", action="store_true", help="export: with the trained model (17 MB more)"
    )
    out.add_argument("--all", action="store_true", help="show all failures, not only the first 20")
    out.add_argument("-q", "--quiet", action="store_true", help="no table and no progress, only the verdict")
    return made


def run(args: argparse.Namespace) -> int:
    """Returns: the exit code."""
    try:
        if args.action == "export":
            return _export(args)
        if args.folder is not None:
            raise InputError(f"unrecognized arguments: {args.folder}", hint="See: refimpl conform --help")
        return _run(args)
    except MissingFileError as error:
        error.exit_code = 2  # every file that can be missing is one that the call names
        raise
    except EngineError as error:
        for name in ("stdout", "stderr"):
            for line in getattr(error, name, ())[-10:]:
                terminal.note(f"{name} of the engine: {line}")
        raise


def _export(args: argparse.Namespace) -> int:
    from refimpl.conformance.export import export
    from refimpl.conformance.suite import Suite

    if args.folder is None:
        raise InputError("name the folder for the archive", hint="refimpl conform export DIR")
    with Suite(args.suite) as suite:
        path = export(suite, args.folder, trained_model=args.trained_model)
        terminal.write(f"{path}\n")
        if not args.quiet:
            terminal.note(
                f"suite {suite.version}, {len(suite.cases):,} cases, {common.readable_size(path.stat().st_size)}"
            )
    return 0


def _run(args: argparse.Namespace) -> int:
    from refimpl.conformance.selection import read_xfail, select
    from refimpl.conformance.suite import Suite

    command = None if args.list else _command(args)
    with StopOnSignal() as stopping, Suite(args.suite) as suite:
        cases = select(suite, args.include, args.exclude, args.level)
        if args.list:
            terminal.write("".join(f"{case['id']}\n" for case in cases))
            return 0
        xfail = read_xfail(args.xfail, suite.cases) if args.xfail is not None else {}
        for path in (args.json, args.junit, args.markdown):
            _check_target(path)
        try:
            measured = _measure(args, suite, cases, command, xfail, stopping)
        except KeyboardInterrupt:
            terminal.note("interrupted before the engine had answered: nothing was measured")
            return stopping.exit_code
        return _report(args, suite, measured, stopping)


def _measure(
    args: argparse.Namespace,
    suite: Suite,
    cases: list[Case],
    command: list[str] | None,
    xfail: dict[str, str],
    stopping: StopOnSignal,
) -> Run:
    from refimpl.conformance.log import ResultLog
    from refimpl.conformance.process import Limits
    from refimpl.conformance.runner import run_engine, run_offline

    with _Progress(len(cases), args.quiet) as progress, ExitStack() as stack:
        if command is None:
            return run_offline(
                suite, cases, args.from_dir, dtype=args.dtype, xfail=xfail, on_result=progress.add,
                stop=stopping.event,
            )  # fmt: skip
        log = stack.enter_context(ResultLog(args.resume)) if args.resume is not None else None
        return run_engine(
            suite,
            cases,
            command,
            limits=Limits(seconds=args.timeout, start_seconds=args.start_timeout),
            jobs=args.jobs,
            xfail=xfail,
            log=log,
            on_result=progress.add,
            stop=stopping.event,
            on_wait=None if args.quiet else terminal.note,
        )


def _report(args: argparse.Namespace, suite: Suite, measured: Run, stopping: StopOnSignal) -> int:
    """Write what came of a run.  One that was stopped is no measure: it gets no scorecard and no XML."""
    import json

    from refimpl.conformance.reports import as_json, as_junit, today
    from refimpl.conformance.scorecard import SHOWN_FAILURES, as_markdown, as_text, verdict
    from refimpl.conformance.summary import exit_code
    from refimpl.files import write_atomically

    date = today()
    code = stopping.exit_code if measured.stopped else exit_code(measured.results)
    if args.junit is not None and not measured.stopped:
        write_atomically(args.junit, as_junit(suite, measured))
    if args.markdown is not None and not measured.stopped:
        write_atomically(args.markdown, as_markdown(suite, measured, date, _shown_command(args)))
    if args.json is not None:
        report = as_json(suite, measured, date, code)
        if args.json == "-":
            terminal.write_json(report)
        else:
            write_atomically(args.json, json.dumps(report, ensure_ascii=True, indent=1) + "\n")
    if args.json != "-":
        shown = None if args.all else SHOWN_FAILURES
        terminal.write(verdict(measured) + "\n" if args.quiet else as_text(suite, measured, shown))
    elif not args.quiet:
        terminal.note(verdict(measured))
    if measured.stopped:
        _say_how_to_go_on(args)
    return code


def _say_how_to_go_on(args: argparse.Namespace) -> None:
    unwritten = [path for path in (args.markdown, args.junit) if path is not None]
    if unwritten:
        terminal.note(f"not written, because the run is not whole: {', '.join(unwritten)}")
    if args.resume is not None:
        terminal.note(f"go on with: --resume {shlex.quote(args.resume)}")
    elif args.from_dir is None:
        terminal.note("with --resume FILE a run can be taken up again")


def _command(args: argparse.Namespace) -> list[str] | None:
    """The command that starts the engine; None where outputs lie in files.  Raises: InputError."""
    given = [name for name in ("cmd", "from_dir", "python", "backend") if getattr(args, name) is not None]
    if len(given) != 1:
        raise InputError(
            "name one engine", found=", ".join(f"--{name.replace('_', '-')}" for name in given) or "none",
            allowed="one of --cmd, --from-dir, --python, --backend",
        )  # fmt: skip
    if args.dtype is not None and given[0] in ("cmd", "python"):
        raise InputError(
            f"--dtype does not go with --{given[0]}", hint="The engine says what it computes in."
        )
    # -P: a folder named refimpl in the current one is not this package.
    serve = [sys.executable, "-P", "-m", _SERVE]
    if args.cmd is not None:
        try:
            words = shlex.split(args.cmd)
        except ValueError as error:
            raise InputError(f"the command cannot be read ({error})", found=quote(args.cmd)) from error
        if not words:
            raise InputError("the command is empty", where="--cmd")
        return words
    if args.python is not None:
        return [*serve, args.python]
    if args.backend is not None:
        from refimpl.backends import get_backend

        dtype = args.dtype or "float32"
        get_backend(args.backend, dtype=dtype)  # a wrong name is an error of this call, not of the engine
        ours = "refimpl.conformance.our_engine:OurEngine"
        return [*serve, ours, "--option", f"backend={args.backend}", "--option", f"dtype={dtype}"]
    if args.resume is not None or args.jobs != 1:
        raise InputError("--from-dir runs nothing: --resume and --jobs do not go with it")
    return None


def _shown_command(args: argparse.Namespace) -> str:
    """The call, for the scorecard; without the folders of whoever made it."""
    words = ["refimpl", "conform", "run"]
    for name in ("cmd", "python", "backend", "dtype"):
        if getattr(args, name) is not None:
            words += [f"--{name}", getattr(args, name)]
    if args.from_dir is not None:
        words += ["--from-dir", os.path.basename(os.path.normpath(args.from_dir))]
    for name in ("include", "exclude", "level"):
        for value in getattr(args, name):
            words += [f"--{name}", value]
    if args.xfail is not None:
        words += ["--xfail", os.path.basename(args.xfail)]
    return shlex.join(words)


def _check_target(path: str | None) -> None:
    """A report that cannot be written is refused before the run, not after it."""
    if path is None or path == "-":
        return
    if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
        raise InputError("no file can be written there", where=quote(path))


class _Progress:
    """How far a run is, in one line on a terminal."""

    def __init__(self, total: int, quiet: bool):
        self._total, self._done, self._failed = total, 0, 0
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._write("\r\x1b[K")

    def add(self, result: Result) -> None:
        self._done += 1
        self._failed += result.failed
        name = terminal.one_line(result.id)[:50]
        self._write(f"\r\x1b[K{self._done:,} of {self._total:,}, {self._failed:,} failed  {name}")

    def _write(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(text)
            sys.stderr.flush()


def _seconds(text: str) -> float:
    """A positive number, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{quote(text)} is not a number of seconds")
    return number


def _count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= 256:
        raise argparse.ArgumentTypeError(f"{quote(text)} is not a whole number from 1 to 256")
    return number
