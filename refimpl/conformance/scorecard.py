"""The results of a run for people: tables and failures on a terminal, and a page of Markdown for a README."""

from __future__ import annotations

from collections.abc import Sequence

from refimpl.cli import terminal
from refimpl.conformance.results import Result
from refimpl.conformance.runner import Run
from refimpl.conformance.suite import Suite
from refimpl.conformance.summary import (
    exit_code,
    explained,
    in_part,
    one_line,
    plural,
    rows_by_operation,
    unsupported,
)

#: So many failures are shown in full on a terminal; all of them are in --json.
SHOWN_FAILURES = 20


def as_text(suite: Suite, run: Run, shown: int | None = SHOWN_FAILURES) -> str:
    """A table by level and operation, the failures (the first `shown`; None: all), and what explains them."""
    head, rows = rows_by_operation(run.results)
    parts = [f"{title(run)}, suite {suite.version}\n"]
    parts += [f"note: {terminal.one_line(note)}\n" for note in run.notes]
    parts += ["\n", terminal.table([head, *rows], right=tuple(range(2, len(head))))]
    failures = [result for result in run.results if result.failed]
    for result in failures[:shown]:
        parts.append("\n" + failure(result))
    if shown is not None and len(failures) > shown:
        parts.append(f"\n… and {len(failures) - shown:,} failures more; --all shows them\n")
    named = explained(result for result in run.results if result.failed)
    if named:
        parts.append("\nOutputs that are those of a known mistake:\n")
        parts += [f"  {entry}\n    {meaning(entry.mistake)}".rstrip() + "\n" for entry in named]
    lacking = in_part(run.results)
    if lacking:
        listed = ", ".join(f"{name} ({number})" for name, number in lacking.items())
        parts.append(f"\nNot compared, because the engine does not give them: {listed}\n")
    noisy = sum(bool(result.noise) for result in run.results)
    if noisy:
        first = next(result for result in run.results if result.noise)
        parts.append(
            f"\nThe engine wrote other lines than answers to standard output in {noisy} "
            f"{plural('case', noisy)}, first in {first.id}: {first.noise[0]}\n"
        )
    parts.append("\n" + verdict(run) + "\n")
    return "".join(parts)


def title(run: Run) -> str:
    """The engine: name, version, dtype and what else it says of itself."""
    engine = run.engine
    details = [f"{name} {value}" for name, value in engine.details.items()]
    return ", ".join([f"{engine.name} {engine.version}".strip(), engine.dtype, *details])


def failure(result: Result) -> str:
    """One failing case: what is wrong, which mistake it is, and the last that the engine said."""
    lines = [f"{result.id}: {result.status}: {result.message}"]
    lines += [f"  {named}" for named in result.mistakes]
    lines += [f"  stdout: {line}" for line in result.noise[:3]]
    lines += [f"  stderr: {line}" for line in result.stderr[-5:]]
    return "\n".join(lines) + "\n"


def verdict(run: Run) -> str:
    """The last line: whether the run has failed, the counts, and how many results are from a log."""
    word = "passed" if exit_code(run.results) == 0 else "failed"
    if all(result.status == "unsupported" for result in run.results):
        word = "failed: nothing was measured"
    if run.stopped:
        word = f"interrupted after {len(run.results):,} of {run.asked_for:,}"
    counts = one_line(run.results)
    taken = f" ({run.taken:,} of them from the log of an earlier run)" if run.taken else ""
    return (f"{word}: {counts}" if counts else word) + taken


def meaning(mistake: str) -> str:
    """A mistake in words, or "" where the name of the suite has none here."""
    from refimpl.conformance.variants import VARIANTS
    from refimpl.conformance.wrong_operations import MEANINGS

    words = []
    for name in mistake.split(" + "):
        variant = VARIANTS.get(name)
        words.append(MEANINGS.get(name, "") if variant is None else variant.what)
    return "; ".join(word for word in words if word)


def as_markdown(suite: Suite, run: Run, date: str, command: str) -> str:
    """The scorecard: engine, versions, date, counts, and every departure with its reason."""
    head, rows = rows_by_operation(run.results)
    required = [result for result in run.results if result.required]
    right = sum(result.status == "pass" for result in required)
    rows[-1] = [f"**{cell}**" if cell else "" for cell in rows[-1]]
    engine = _cell(f"{run.engine.name} {run.engine.version}".strip())
    details = "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in run.engine.details.items())
    parts = [
        f"# {engine}\n\n",
        "| | |\n|---|---|\n",
        f"| engine | {engine} |\n",
        f"| computed in | {run.engine.dtype} |\n",
        details,
        f"| suite | {suite.version} (manifest sha256 `{suite.sha256[:16]}…`) |\n",
        f"| date | {date} |\n",
        f"| command | `{_cell(command)}` |\n",
        f"| required cases | {right} of {len(required)} pass |\n",
        f"| result | {verdict(run)} |\n\n",
        _table(head, rows),
    ]
    parts += _departures(run.results)
    for heading, found in (
        ("Not supported", unsupported(run.results)),
        ("Outputs that the engine does not give", in_part(run.results)),
    ):
        if found:
            parts.append(f"\n## {heading}\n\n")
            parts.append(
                _table(["what", "cases"], [[_cell(key), str(value)] for key, value in found.items()])
            )
    return "".join(parts)


def _departures(results: Sequence[Result]) -> list[str]:
    parts: list[str] = []
    named = explained(results)
    if named:
        parts.append("\n## Known mistakes that its outputs match\n\n")
        parts.append(
            _table(
                ["mistake", "cases", "such as"], [[e.mistake, str(len(e.cases)), e.cases[0]] for e in named]
            )
        )
    expected = [result for result in results if result.status == "xfail"]
    if expected:
        parts.append("\n## Known deviations\n\n")
        parts.append(_table(["case", "reason", "what came"], [_row(r, r.reason or "") for r in expected]))
    failures = [result for result in results if result.failed]
    if failures:
        parts.append("\n## Failures\n\n")
        parts.append(_table(["case", "result", "what came"], [_row(r, r.status) for r in failures]))
    return parts


def _row(result: Result, middle: str) -> list[str]:
    said = "; ".join([result.message, *map(str, result.mistakes)])
    return [f"`{result.id}`", _cell(middle), _cell(said[:240])]


def _cell(text: str) -> str:
    return terminal.one_line(text).replace("|", "\\|")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
