"""What `refimpl bench tokenizer` found: tables while it runs, or one JSON object at the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from refimpl import __version__
from refimpl.cli import common, terminal
from refimpl.cli.bench.pairs import Against, Result, Spread, rounded

_HEADINGS = {
    "short": "Short strings, one call each",
    "batch": "Short strings, one call for all",
    "long": "One long string",
    "first": "The first call in a new process",
    "linear": "One string of growing length",
    "hostile": "Hostile families",
}


@dataclass(frozen=True)
class FirstCall:
    """Seconds in new processes; `ratio` is how many times as long as ours `total` is, pair by pair."""

    text: str
    bytes: int
    name: str
    import_s: Spread | None
    load_s: Spread | None
    call_s: Spread | None
    total_s: Spread | None
    ratio: Spread | None = None
    failed: str | None = None


@dataclass
class Report:
    """Collects what is found, and shows it as it comes."""

    model: str
    options: dict[str, Any]
    machine: dict[str, Any]
    settings: dict[str, Any]
    texts: list[dict[str, Any]]
    unavailable: dict[str, str]
    quiet: bool
    as_json: bool
    _participants: list[dict[str, Any]] = field(default_factory=list)
    _results: list[Result] = field(default_factory=list)
    _first_calls: list[FirstCall] = field(default_factory=list)
    _differences: int = 0

    def begin(self) -> None:
        """What is known before anything is measured."""
        where = self.machine
        lines = [
            f"tokenizer of {self.model}" + "".join(f", {key}={value}" for key, value in self.options.items()),
            f"{where['cpu']}, {where['usable_cores']} of {where['cores']} cores; {where['python']}; "
            f"load average {where['load_average']}",
            *(
                f"text {text['name']}: {text['source']}, {common.readable_size(text['bytes'])}"
                for text in self.texts
            ),
        ]
        self._show("\n".join(lines) + "\n")
        for name, why in self.unavailable.items():
            self._show(f"{name}: not compared: {terminal.one_line(why)}\n")

    def joined(self, name: str, threads: int, said: dict[str, Any]) -> None:
        """A participant is ready; `said` is its own description."""
        known: dict[str, Any] = {"name": name, "threads_asked": threads}
        known |= {key: said.get(key) for key in ("threads", "what", "versions")}
        self._participants.append(known)
        versions = ", ".join(f"{package} {version}" for package, version in known["versions"].items())
        count = known["threads"]
        self._show(
            f"{name}: {known['what']}; {versions}; {count} thread{'s' if count != 1 else ''}"
            + (f" ({threads} would be there)\n" if count != threads else "\n")
        )

    def left_out(self, name: str, why: str) -> None:
        self.unavailable[name] = why
        self._show(f"{name}: not compared: {terminal.one_line(why)}\n")

    def progress(self, case: str, threads: int) -> None:
        if not self.quiet:
            terminal.note(f"measuring: {_heading(case, threads)} ...")

    def results(self, case: str, found: Iterable[Result]) -> None:
        rows = []
        threads = 1
        for result in found:
            self._results.append(result)
            threads = result.threads
            rows += list(_rows(result))
            self._warn(result)
        self._show(f"\n{_heading(case, threads)}\n" + terminal.table([_columns(case), *rows], _RIGHT))

    def _warn(self, result: Result) -> None:
        what = f"{result.case}, {result.text}, {result.action}, {_count(result.threads)}"
        if result.failed:
            terminal.show_warning(f"{what}: {result.failed}")
        for peer in result.against:
            if peer.failed:
                terminal.show_warning(f"{what}: {peer.name}: {peer.failed}")
            if peer.difference:
                self._differences += 1
                noun = "IDS" if result.action == "encode" else "TEXTS"
                terminal.show_warning(
                    f"THE {noun} DIFFER from those of {peer.name}: {what}: {peer.difference}"
                )

    def first_calls(self, found: list[FirstCall]) -> None:
        self._first_calls += found
        rows = [["text", "bytes", "who", "import", "load", "call", "together", "ratio", "quartiles"]]
        for call in found:
            parts = (call.import_s, call.load_s, call.call_s, call.total_s)
            rows.append(
                [
                    call.text,
                    f"{call.bytes:,}",
                    call.name,
                    *(_seconds(part) for part in parts),
                    *_ratio_cells(call.ratio),
                ]
            )
            if call.failed:
                terminal.show_warning(f"first call, {call.text}: {call.name}: {call.failed}")
        self._show(f"\n{_heading('first', 1)}\n" + terminal.table(rows, (1, 3, 4, 5, 6, 7, 8)))

    def finish(self) -> int:
        """Writes the JSON object where it is wanted. Returns: the exit code."""
        if self.as_json:
            terminal.write_json(self.as_dict())
        if self._differences:
            terminal.show_warning(
                f"{self._differences} comparisons were not made, because the results differ (see above)"
            )
        return 1 if self._differences else 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "benchmark": "tokenizer",
            "refimpl": __version__,
            "model": self.model,
            "options": self.options,
            "machine": self.machine,
            "settings": self.settings,
            "texts": self.texts,
            "participants": self._participants,
            "unavailable": self.unavailable,
            "results": [rounded(asdict(result)) for result in self._results],
            "first_calls": [rounded(asdict(call)) for call in self._first_calls],
            "differences": self._differences,
        }

    def _show(self, text: str) -> None:
        if not self.as_json:
            terminal.write(text)


_RIGHT = (2, 3, 4, 6, 7, 8)


def _columns(case: str) -> list[str]:
    last = "t(2n)/t(n)" if case == "hostile" else ""
    return ["text", "action", "bytes", "seconds", "MB/s", "against", "MB/s", "ratio", "quartiles", last]


def _rows(result: Result) -> Iterable[list[str]]:
    ours = [result.text, result.action, f"{result.bytes:,}"]
    middle = Spread.of(result.seconds)
    ours += [_seconds(middle), "failed" if result.failed else _number(result.mb_per_s)]
    grown = "" if result.growth is None else f"{result.growth.median:.2f}"
    if not result.against:
        return [[*ours, "", "", "", "", grown]]
    rows = [[*ours, *_peer_cells(peer), ""] for peer in result.against]
    rows[0][-1] = grown
    return [rows[0], *(["", "", "", "", "", *row[5:]] for row in rows[1:])]


def _peer_cells(peer: Against) -> list[str]:
    if peer.difference:
        return [peer.name, "DIFFERS", "", ""]
    if peer.failed:
        return [peer.name, "failed", "", ""]
    return [peer.name, _number(peer.mb_per_s), *_ratio_cells(peer.ratio)]


def _ratio_cells(ratio: Spread | None) -> list[str]:
    return ["", ""] if ratio is None else [f"{ratio.median:.2f}", f"{ratio.q1:.2f} - {ratio.q3:.2f}"]


def _number(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.3g}" if spread.median < 100 else f"{spread.median:.0f}"


def _seconds(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.3g}"


def _heading(case: str, threads: int) -> str:
    return f"{_HEADINGS[case]} ({_count(threads)})"


def _count(threads: int) -> str:
    return f"{threads} thread{'s' if threads != 1 else ''}"
