"""The cases of `refimpl bench tokenizer`, and measuring them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.cli.bench import hostile, participants
from refimpl.cli.bench.pairs import Result, Spread, Task, growth, measure, ratios
from refimpl.cli.bench.participants import Participant
from refimpl.cli.bench.texts import Text
from refimpl.cli.bench.tokenizer_report import FirstCall, Report
from refimpl.errors import RefimplError

OURS = Path(__file__).with_name("our_tokenizer.py")

CASES = ("short", "batch", "long", "first", "linear", "hostile")
#: Cases that more than one thread could make faster.
PARALLEL = ("batch", "long")

# There are many families, and peers that take seconds for each.
_HOSTILE_PAIRS = 3


@dataclass(frozen=True)
class Scale:
    """How much is measured; sizes in bytes (`batch`: for each thread), times in seconds."""

    repeat: int
    shortest: float
    limit: float
    warm_up: int
    short: int
    batch: int
    long: int
    hostile: int
    linear: tuple[int, ...]


FULL = Scale(
    repeat=7,
    shortest=0.05,
    limit=60,
    warm_up=400_000,
    short=300_000,
    batch=500_000,
    long=1_000_000,
    hostile=1_000_000,
    linear=(1000, 10_000, 100_000, 1_000_000, 10_000_000),
)
QUICK = Scale(
    repeat=3,
    shortest=0.02,
    limit=20,
    warm_up=400_000,
    short=20_000,
    batch=20_000,
    long=100_000,
    hostile=50_000,
    linear=(1000, 10_000, 100_000),
)


@dataclass(frozen=True)
class Adapter:
    """How a peer is started."""

    name: str
    script: Path
    python: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """All that the cases need to know, for one number of threads."""

    model: str
    options: dict[str, Any]
    threads: int
    scale: Scale
    texts: list[Text]
    adapters: list[Adapter]

    def participant(self, adapter: Adapter | None = None) -> Participant:
        """A peer, or (without an adapter) we ourselves."""
        if adapter is None:
            adapter = Adapter("refimpl", OURS, sys.executable, {})
        return Participant(
            adapter.name,
            adapter.script,
            self.model,
            self.threads,
            options=self.options | adapter.options,
            python=adapter.python,
            limit=self.scale.limit,
        )


def measure_all(report: Report, setting: Setting, cases: Sequence[str]) -> None:
    """The cases with one number of threads. Raises: RefimplError when we cannot be measured at all."""
    with ExitStack() as stack:
        ours = stack.enter_context(closing(setting.participant()))
        report.joined(ours.name, setting.threads, ours.start())
        peers = []
        for adapter in list(setting.adapters):
            peer = stack.enter_context(closing(setting.participant(adapter)))
            try:
                report.joined(peer.name, setting.threads, peer.start())
                peers.append(peer)
            except RefimplError as error:
                report.left_out(peer.name, error.what)
                setting.adapters.remove(adapter)
        for one in [ours, *peers]:
            _warm_up(one, setting)
        for case in cases:
            report.progress(case, setting.threads)
            if case == "first":
                report.first_calls(list(_first_calls(setting)))
            elif case == "hostile":
                report.results(case, _hostile(ours, peers, setting.scale))
            else:
                report.results(case, _in_turn(ours, peers, case, setting))


def _warm_up(participant: Participant, setting: Setting) -> None:
    """A first text, after which everything is loaded that will be; what fails here fails again later."""
    text = setting.texts[0].variants(setting.scale.warm_up)[0]
    try:
        participant.ask("give", name="strings", items=[text])
        participant.ask(
            "make",
            participants.START_LIMIT,
            name="result",
            operation="encode_batch",
            of="strings",
            each=False,
        )
    except RefimplError:
        participant.close()


def _in_turn(
    ours: Participant, peers: Sequence[Participant], case: str, setting: Setting
) -> Iterator[Result]:
    scale = setting.scale
    for task in _tasks(case, setting):
        yield measure(ours, peers, task, scale.repeat, scale.shortest)


def _tasks(case: str, setting: Setting) -> Iterator[Task]:
    texts, scale = setting.texts, setting.scale
    if case == "linear":  # one text is enough to see how time grows
        for size in scale.linear:
            variants = [[part] for part in texts[0].variants(size)]
            yield Task(case, texts[0].name, "encode", True, variants)
        return
    for text in texts:
        if case == "long":
            variants = [[part] for part in text.variants(scale.long)]
        else:
            size = scale.short if case == "short" else scale.batch * setting.threads
            variants = text.short_strings(size)
        for action in ("encode", "decode"):
            yield Task(case, text.name, action, case != "batch", variants)


def _hostile(ours: Participant, peers: Sequence[Participant], scale: Scale) -> Iterator[Result]:
    repeat = min(scale.repeat, _HOSTILE_PAIRS)
    for family, make in hostile.FAMILIES.items():
        text = make(scale.hostile)
        task = Task("hostile", family, "encode", True, [[text]])
        result = measure(ours, peers, task, repeat, scale.shortest)
        if result.failed is None:
            try:
                twice = make(2 * scale.hostile)
                result.growth = growth(ours, "encode", text, twice, scale.repeat, scale.shortest)
            except RefimplError as error:
                result.failed = str(error)
        yield result


def _first_calls(setting: Setting) -> Iterator[FirstCall]:
    """New processes, in turn: importing, loading the files, and one call."""
    text = setting.texts[0]
    long = text.variants(setting.scale.long)[0]
    for name, string in (("short string", text.short_strings(200)[0][0]), ("long string", long)):
        size = len(string.encode())
        times: dict[str, list[tuple[float, ...]]] = {}
        failed: dict[str, str] = {}
        for _ in range(setting.scale.repeat):
            for adapter in [None, *setting.adapters]:
                participant = setting.participant(adapter)
                if participant.name in failed:
                    continue
                with closing(participant):
                    try:
                        times.setdefault(participant.name, []).append(_first_call(participant, string))
                    except RefimplError as error:
                        failed[participant.name] = error.what
        ours = times.get("refimpl", [])
        for who in ["refimpl", *(adapter.name for adapter in setting.adapters)]:
            rows = [] if who in failed else times[who]
            import_s, load_s, call_s, total_s = (Spread.of([row[part] for row in rows]) for part in range(4))
            pairs = [] if who == "refimpl" else list(zip(ours, rows, strict=False))
            ratio = Spread.of(ratios([one[3] for one, _ in pairs], [other[3] for _, other in pairs]))
            yield FirstCall(
                name, size, who, import_s, load_s, call_s, total_s, ratio=ratio, failed=failed.get(who)
            )


def _first_call(participant: Participant, string: str) -> tuple[float, ...]:
    """Seconds of importing, loading, the first call, and all of them together. Raises: RefimplError."""
    prepared = participant.start()
    participant.ask("give", name="strings", items=[string])
    call = participant.ask("run", operation="encode", of=["strings"], each=True, first=0, times=1)["seconds"]
    parts = (prepared["import_seconds"], prepared["load_seconds"], call)
    return (*parts, sum(parts))
