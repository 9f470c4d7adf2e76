"""What `refimpl bench model` found: a table as llama-bench has it, the same in Markdown, or one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from refimpl import __version__
from refimpl.cli import terminal
from refimpl.cli.bench.model_cases import Against, Combination, Joined, Measured, Rate
from refimpl.cli.bench.model_limits import Limits
from refimpl.cli.bench.pairs import rounded
from refimpl.memory import readable

_HEAD = ["model", "size", "params", "backend", "threads", "test", "t/s", "best", "achieved", "of limit"]
_PEER_HEAD = ["against", "t/s", "ratio", "quartiles"]
_RIGHT = (1, 2, 4, 6, 7, 8, 9)


@dataclass
class ModelReport:
    """Everything that goes into a record."""

    model: str
    name: str
    random: bool
    machine: dict[str, Any]
    date: str
    command: list[str]
    settings: dict[str, Any]
    limits: list[Limits] = field(default_factory=list)
    combinations: list[Combination] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "benchmark": "model",
            "refimpl": __version__,
            "date": self.date,
            "command": self.command,
            "machine": self.machine,
            "model": self.model,
            "random_weights": self.random,
            "settings": self.settings,
            "limits": [rounded(one.as_dict()) for one in self.limits],
            "results": [_combination(one) for one in self.combinations],
        }

    def text(self, markdown: bool) -> str:
        """The tables, for a terminal or as Markdown."""
        show = _markdown if markdown else terminal.table
        compared = any(measured.against for one in self.combinations for measured in one.tests)
        rows = [_HEAD + (_PEER_HEAD if compared else [])]
        for one in self.combinations:
            for measured in one.tests:
                rows += _rows(self.name, one, measured, compared)
        parts = [self._where(markdown), show(rows, (*_RIGHT, 11, 12) if compared else _RIGHT)]
        parts.append(show(*self._loading()))
        starts = self._starts()
        if len(starts) > 1:
            parts.append(show(starts, (2, 3, 4, 5, 6)))
        for one in self.combinations:
            for test, profile in one.profiles.items():
                title = f"{_form(one)}, {thread_count(one.threads)}, {test}: where the time goes"
                parts.append(f"{title}\n" + ("\n" if markdown else "") + show(*_profile(profile)))
        return "\n".join(parts)

    def _where(self, markdown: bool) -> str:
        where = self.machine
        lines = [
            f"{self.model}" + (", random weights" if self.random else ""),
            f"{where['cpu']}, {where['usable_cores']} of {where['cores']} cores; {where['python']}; "
            f"load average {where['load_average']}; {self.date}",
        ]
        lines += [_limits(one) for one in self.limits if one.best_read and one.best_gemm]
        for joined in _everyone(self.combinations):
            versions = ", ".join(f"{name} {version}" for name, version in joined.said["versions"].items())
            lines.append(f"{joined.name}: {versions}")
        lines = list(dict.fromkeys(lines))
        return "".join(f"- {line}\n" if markdown else f"{line}\n" for line in lines)

    def _loading(self) -> tuple[list[list[str]], tuple[int, ...]]:
        on_gpu = any(one.on_gpu for one in self.combinations)
        rows = [["program", "weights", "threads", "import s", "load s", "first token s", "memory"]]
        if on_gpu:
            rows[0].append("GPU memory")
        for one in self.combinations:
            for joined in ([one.ours] if one.ours else []) + one.peers:
                said, facts = joined.said, joined.said["facts"]
                rows.append(
                    [
                        joined.name,
                        f"{facts['weight_dtype']}{_products(facts)}",
                        str(said["threads"]),
                        *(_seconds(said.get(key)) for key in ("import_seconds", "load_seconds")),
                        _seconds(joined.first_token_s),
                        "" if joined.memory is None else readable(joined.memory),
                        *([_device_memory(joined)] if on_gpu else []),
                    ]
                )
        return rows, (2, 3, 4, 5, 6, 7)[: 6 if on_gpu else 5]

    def _starts(self) -> list[list[str]]:
        """New processes: how soon they write, beside a copy of just the weights to the device."""
        rows = [["program", "weights", "started", "import s", "load s", "first token s", "x pinned copy"]]
        for one in self.combinations:
            ours = one.ours
            if ours is None or not ours.starts:
                continue
            facts = ours.said["facts"]
            middle = {key: median(start[key] for start in ours.starts) for key in ours.starts[0]}
            rows.append(
                [
                    ours.name,
                    f"{facts['weight_dtype']}{_products(facts)}",
                    f"{len(ours.starts)} times",
                    *(_seconds(middle[key]) for key in ("import_s", "load_s", "first_token_s")),
                    "" if ours.start_ratio is None else f"{ours.start_ratio:.2f}",
                ]
            )
        return rows


def _everyone(combinations: Sequence[Combination]) -> list[Joined]:
    return [
        joined for one in combinations for joined in ([one.ours] if one.ours else []) + one.peers if joined
    ]


def _rows(name: str, one: Combination, measured: Measured, compared: bool) -> list[list[str]]:
    assert one.ours is not None
    facts = one.ours.said["facts"]
    rate = measured.tokens_per_s
    ours = [
        f"{name} {facts['weight_dtype']}{_products(facts)}",
        readable(facts["weight_bytes"]),
        _count(facts["parameters"]),
        facts["backend"] + ("" if one.graph else ", no graph"),
        str(one.threads),
        measured.test,
        _rate(rate),
        "" if rate is None else _number(rate.best),
        _achieved(measured),
        _share(one, measured),
    ]
    if not compared:
        return [ours]
    rows = [ours + _peer_cells(peer) for peer in measured.against] or [ours + [""] * 4]
    return [rows[0], *([""] * len(ours) + row[len(ours) :] for row in rows[1:])]


def _peer_cells(peer: Against) -> list[str]:
    if peer.failed:
        return [peer.name, "failed", "", ""]
    ratio = peer.ratio
    if ratio is None:
        return [peer.name, "", "", ""]
    return [peer.name, _rate(peer.tokens_per_s), f"{ratio.median:.2f}", f"{ratio.q1:.2f} - {ratio.q3:.2f}"]


def _limits(one: Limits) -> str:
    """One line: what a device can do."""
    assert one.best_read
    assert one.best_gemm
    if one.device == "cpu":
        return (
            f"{thread_count(one.threads)}: reading memory {one.best_read / 1e9:.1f} GB/s, "
            f"multiplying float32 matrices {one.best_gemm / 1e9:.0f} GFLOP/s"
        )
    said = [f"{name} {rate / 1e9:.1f} GB/s" for name, rate in _transfers(one) if rate]
    return (
        f"{one.device}, {one.name}: {', '.join(said)}, "
        f"multiplying {one.gemm_dtype} matrices {one.best_gemm / 1e12:.1f} TFLOP/s"
    )


def _transfers(one: Limits) -> tuple[tuple[str, float | None], ...]:
    return (
        ("copying (read + written)", one.best_copy),
        ("reading", one.best_read),
        ("from the host, pinned", one.best_pinned),
        ("pageable", one.best_pageable),
    )


def _achieved(measured: Measured) -> str:
    """A prompt is a matter of multiplying, decoding one of reading."""
    rate = measured.flop_per_s if measured.action == "prefill" else measured.bytes_per_s
    if rate is None:
        return ""
    unit = "FLOP/s" if measured.action == "prefill" else "B/s"
    scale, prefix = (1e12, "T") if rate >= 1e12 else (1e9, "G")
    return f"{rate / scale:.3g} {prefix}{unit}"


def _share(one: Combination, measured: Measured) -> str:
    """Of what limits it: multiplying, or reading; a GPU is compared with a copy, whose bytes count twice."""
    shares = {
        "GEMM": measured.gemm_share if measured.action == "prefill" else None,
        "copy": measured.copy_share if measured.action == "decode" and one.on_gpu else None,
        "reading": measured.read_share if measured.action == "decode" and not one.on_gpu else None,
    }
    return next((f"{share:.0%} of {name}" for name, share in shares.items() if share is not None), "")


def _device_memory(joined: Joined) -> str:
    held = joined.device_memory or {}
    size = held.get("device_bytes") or held.get("pool_bytes")
    return "" if size is None else readable(size)


def _profile(profile: dict[str, Any]) -> tuple[list[list[str]], tuple[int, ...]]:
    rows = [["operation", "calls", "ms", "share"]]
    rows += [
        [one["name"], f"{one['calls']:,}", f"{one['seconds'] * 1000:.2f}", f"{one['share']:.1%}"]
        for one in profile["operations"]
    ]
    rest = profile["rest"]
    rows.append(["rest", "", f"{rest['seconds'] * 1000:.2f}", f"{rest['share']:.1%}"])
    rows.append(["together", "", f"{profile['seconds'] * 1000:.2f}", ""])
    return rows, (1, 2, 3)


def _form(one: Combination) -> str:
    facts = one.ours.said["facts"] if one.ours else {}
    weights = facts.get("weight_dtype", one.weight_dtype)
    return f"{facts.get('backend', one.backend)} {weights}{_products(facts)}"


def _products(facts: dict[str, Any]) -> str:
    return f", products {facts['matmul_dtype']}" if facts.get("matmul_dtype") else ""


def thread_count(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _rate(rate: Rate | None) -> str:
    return "failed" if rate is None else f"{_number(rate.mean)} ± {_number(rate.deviation)}"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _count(parameters: float) -> str:
    """2606000000 -> "2.61 B", as llama-bench does."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2f} B"
    return f"{parameters / 1e6:.2f} M"


def _markdown(rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """The table of `terminal.table` in Markdown."""
    rule = ["---:" if column in right else "---" for column in range(len(rows[0]))]
    lines = [rows[0], rule, *rows[1:]]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)


def _combination(one: Combination) -> dict[str, Any]:
    return rounded(
        {
            "backend": one.backend,
            "weight_dtype": one.weight_dtype,
            "matmul_dtype": one.matmul_dtype,
            "threads": one.threads,
            "device": one.device,
            "graph": one.graph,
            "ours": None if one.ours is None else _joined(one.ours),
            "tests": [asdict(measured) for measured in one.tests],
            "peers": [_joined(peer) for peer in one.peers],
            "profiles": one.profiles,
            "failed": one.failed,
        }
    )


def _joined(joined: Joined) -> dict[str, Any]:
    said = joined.said
    return {
        "name": joined.name,
        "what": said["what"],
        "versions": said["versions"],
        "threads": said["threads"],
        "import_s": said.get("import_seconds"),
        "load_s": said.get("load_seconds"),
        "first_token_s": joined.first_token_s,
        "memory_bytes": joined.memory,
        "device_memory": joined.device_memory,
        "recording_s": joined.recording_s,
        "starts": joined.starts,
        "start_ratio": joined.start_ratio,
        "notes": joined.notes,
        "same_tokens": joined.same_tokens,
        **said["facts"],
    }
