"""Measuring models: every combination of backend, weights and threads, alone or with each peer in turn."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refimpl.cli.bench import participants
from refimpl.cli.bench.llama_bench import LlamaBench
from refimpl.cli.bench.model_limits import Limits
from refimpl.cli.bench.model_sides import ProcessSide, Side, Test
from refimpl.cli.bench.pairs import Spread, ratios, take_turns
from refimpl.cli.bench.participants import Participant
from refimpl.errors import RefimplError

OURS = Path(__file__).with_name("our_model.py")
# A slow machine needs minutes for a long prompt, and to quantize a large model [s].
_LIMIT = 3600.0

# How long the prompt is of a process that is started only to see how soon it writes.
_START_PROMPT = 16


@dataclass(frozen=True)
class Rate:
    """Tokens per second of the repetitions: their mean, deviation (of a sample), best and median."""

    mean: float
    deviation: float
    best: float
    median: float

    @classmethod
    def of(cls, tokens: int, seconds: Sequence[float]) -> Rate | None:
        """None where there are no times."""
        if not seconds:
            return None
        rates = [tokens / one for one in seconds]
        deviation = statistics.stdev(rates) if len(rates) > 1 else 0.0
        return cls(statistics.fmean(rates), deviation, max(rates), statistics.median(rates))


@dataclass
class Against:
    """One peer in one test: `ratio` is how many times as long as we it takes, pair by pair."""

    name: str
    seconds: list[float] = field(default_factory=list)
    our_seconds: list[float] = field(default_factory=list)
    tokens_per_s: Rate | None = None
    ratio: Spread | None = None
    failed: str | None = None


@dataclass
class Measured:
    """One test. `bytes` and `flop` are what a token costs on average; a share is that of the device's limit."""

    test: str
    action: str
    tokens: int
    depth: int
    bytes: float
    flop: float
    seconds: list[float] = field(default_factory=list)
    tokens_per_s: Rate | None = None
    bytes_per_s: float | None = None
    flop_per_s: float | None = None
    read_share: float | None = None
    copy_share: float | None = None
    gemm_share: float | None = None
    against: list[Against] = field(default_factory=list)


@dataclass
class Joined:
    """A program that has loaded a model: what it says of itself, and how long that took."""

    name: str
    said: dict[str, Any]
    first_token_s: float | None = None
    memory: int | None = None
    #: Of a GPU: `device_bytes`, `pool_bytes`, `used_bytes` (see `our_model.DeviceMemory`).
    device_memory: dict[str, int | None] | None = None
    #: The seconds of the first step of a text, which is recorded while it is computed.
    recording_s: float | None = None
    #: Of new processes that load the model and write one token: `import_s`, `load_s`, `first_token_s` of each.
    starts: list[dict[str, float]] = field(default_factory=list)
    #: Of those, loading and the first token, as a multiple of copying just the weights from pinned memory.
    start_ratio: float | None = None
    #: What it has warned of.
    notes: list[str] = field(default_factory=list)
    #: Of a peer: how many of the first tokens of a test were the same as ours, until one differed.
    same_tokens: list[int] | None = None


@dataclass
class Combination:
    """Our model with one backend, one form of weights and one number of threads.

    `backend` is as it was asked for; `engine` and `device` say which one that is, and where it computes.
    """

    backend: str
    weight_dtype: str | None
    threads: int
    matmul_dtype: str | None = None
    engine: str = ""
    device: str = "cpu"
    gemm_dtype: str = "float32"
    graph: bool = True
    ours: Joined | None = None
    tests: list[Measured] = field(default_factory=list)
    peers: list[Joined] = field(default_factory=list)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


@dataclass(frozen=True)
class Peer:
    """Another program: an adapter for `worker.py`, or (without a script) llama-bench.

    One that is compiled only writes: its prompts are read by the program as it stands, which is a peer of its own.
    """

    name: str
    script: Path | None
    program: str
    options: dict[str, Any] = field(default_factory=dict)
    gguf: Path | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Setting:
    """All that is the same for every combination."""

    model: str
    random: bool
    vocab_size: int
    dtype: str | None
    hub: dict[str, Any]
    tests: list[Test]
    repeat: int
    profile: bool
    peers: list[Peer]
    note: Callable[[str], None]
    starts: int = 0

    def ours(self, combination: Combination) -> ProcessSide:
        options = {
            "random": self.random,
            "backend": combination.engine or combination.backend,
            "device": combination.device if combination.on_gpu else None,
            "graph": combination.graph,
            "dtype": self.dtype,
            "weight_dtype": combination.weight_dtype,
            "matmul_dtype": combination.matmul_dtype,
            "hub": self.hub,
        }
        return self._process("refimpl", OURS, sys.executable, combination.threads, options)

    def peer(self, peer: Peer, combination: Combination) -> Side:
        threads = combination.threads
        if peer.script is None:
            assert peer.gguf is not None
            return LlamaBench(peer.program, peer.gguf, threads, _LIMIT)
        longest = max((test.depth + test.tokens for test in self.tests if test.action == "decode"), default=1)
        options = {
            "random": self.random,
            "revision": self.hub["revision"],
            "device": combination.device,
            "compiled": peer.compiled,
            "longest": longest,
            **peer.options,
        }
        return self._process(peer.name, peer.script, peer.program, threads, options)

    def _process(
        self, name: str, script: Path, python: str, threads: int, options: dict[str, Any]
    ) -> ProcessSide:
        participant = Participant(
            name,
            script,
            self.model,
            threads,
            options=options,
            python=python,
            limit=_LIMIT,
            start_limit=_LIMIT,
        )
        side = ProcessSide(participant)
        side.set_vocabulary(self.vocab_size)
        return side


def measure(setting: Setting, combination: Combination) -> None:
    """Fills in a combination; what fails is said in it."""
    try:
        with closing(setting.ours(combination)) as ours:
            said = ours.start()
            combination.ours = joined = Joined(ours.name, said)
            joined.first_token_s = ours.first_token(_prompt(setting))
            combination.tests = [planned(test, said["facts"]) for test in setting.tests]
            if combination.on_gpu:  # before a peer takes memory of the same device
                for test in setting.tests:
                    ours.prepare(test)
                joined.device_memory = ours.ask("memory")
            for peer in setting.peers:
                if combination.on_gpu or not peer.compiled:
                    _with_peer(setting, combination, ours, peer)
            for test, measured in zip(setting.tests, combination.tests, strict=True):
                if not measured.seconds:  # there was no peer, or none that could do it
                    ours.prepare(test)
                    measured.seconds = [ours.run() for _ in range(setting.repeat)]
                _finish(setting, joined, measured)
            if setting.profile:
                for test in setting.tests:
                    ours.prepare(test)
                    found = [ours.profile(test) for _ in range(setting.repeat)]
                    combination.profiles[test.name] = min(found, key=lambda one: one["seconds"])
            if joined.said["facts"].get("recorded"):
                joined.recording_s = ours.record(_prompt(setting))
                joined.notes = ours.ask("notes") or []
            joined.memory = ours.memory
        for _ in range(setting.starts):
            joined.starts.append(_start(setting, combination))
    except RefimplError as error:
        combination.failed = str(error)


def _start(setting: Setting, combination: Combination) -> dict[str, float]:
    """The seconds of a new process until its first token. Raises: RefimplError."""
    with closing(setting.ours(combination)) as started:
        said = started.start()
        first = started.first_token(_START_PROMPT)
        return {
            "import_s": said["import_seconds"],
            "load_s": said["load_seconds"],
            "first_token_s": first,
        }


def _with_peer(setting: Setting, combination: Combination, ours: ProcessSide, peer: Peer) -> None:
    """Raises: RefimplError when it is we who fail."""
    with ExitStack() as stack:
        theirs = stack.enter_context(closing(setting.peer(peer, combination)))
        try:
            joined = Joined(peer.name, theirs.start())
            if isinstance(theirs, ProcessSide):
                joined.first_token_s = theirs.first_token(_prompt(setting))
        except RefimplError as error:
            for measured in combination.tests:
                if _can_do(peer, measured.action):
                    measured.against.append(Against(peer.name, failed=error.what))
            return
        combination.peers.append(joined)
        for test, measured in zip(setting.tests, combination.tests, strict=True):
            if not _can_do(peer, test.action):
                continue
            against = Against(peer.name)
            measured.against.append(against)
            ours.prepare(test)
            try:
                theirs.prepare(test)
                against.our_seconds, against.seconds = take_turns(
                    ours.run, theirs.run, setting.repeat, math.inf
                )
                if not setting.random and isinstance(theirs, ProcessSide):
                    joined.same_tokens = [*(joined.same_tokens or []), _same(ours, theirs, test)]
            except RefimplError as error:
                if error.where == ours.name:
                    raise
                against.failed = error.what
            against.tokens_per_s = Rate.of(test.tokens, against.seconds)
            against.ratio = Spread.of(ratios(against.our_seconds, against.seconds))
            measured.seconds += against.our_seconds
            if against.ratio is not None:
                setting.note(f"{test.name}, against {peer.name}: {against.ratio.median:.2f}")
        if combination.on_gpu and isinstance(theirs, ProcessSide):
            with suppress(RefimplError):  # it may have failed before
                joined.device_memory = theirs.ask("memory")
        joined.memory = theirs.memory


def _can_do(peer: Peer, action: str) -> bool:
    return action == "decode" or not peer.compiled


def _same(ours: ProcessSide, theirs: ProcessSide, test: Test) -> int:
    pairs = list(zip(ours.tokens(test), theirs.tokens(test), strict=True))
    return next((index for index, (our, their) in enumerate(pairs) if our != their), len(pairs))


def planned(test: Test, facts: dict[str, Any]) -> Measured:
    """A test with what one of its tokens costs.

    Decoding reads every weight for each token, and of the cache what is before the token and itself. A prompt
    reads the weights once; only its last token goes through the head. Attention's own products are not counted.
    """
    if test.action == "prefill":
        flop = 2 * (facts["layer_weights"] + facts["head_weights"] / test.tokens)
        read = facts["read_bytes"] / test.tokens
    else:
        flop = 2 * (facts["layer_weights"] + facts["head_weights"])
        read = facts["read_bytes"] + facts["cache_bytes"] * (test.depth + (test.tokens + 1) / 2)
    return Measured(test.name, test.action, test.tokens, test.depth, read, flop)


def _finish(setting: Setting, ours: Joined, measured: Measured) -> None:
    measured.tokens_per_s = rate = Rate.of(measured.tokens, measured.seconds)
    if rate is not None:
        form = ours.said["facts"]["weight_dtype"]
        setting.note(f"{form}, {measured.test}: {rate.mean:.2f} ± {rate.deviation:.2f} tokens/s")


def _prompt(setting: Setting) -> int:
    """How long the prompt is that the first token is waited for."""
    return next((test.tokens for test in setting.tests if test.action == "prefill"), 1)


def add_shares(combination: Combination, limits: Limits) -> None:
    """What part of the device's limits the mean rates are."""
    for measured in combination.tests:
        rate = measured.tokens_per_s
        if rate is None:
            continue
        measured.bytes_per_s, measured.flop_per_s = rate.mean * measured.bytes, rate.mean * measured.flop
        if limits.best_read:
            measured.read_share = measured.bytes_per_s / limits.best_read
        if limits.best_copy:
            measured.copy_share = measured.bytes_per_s / limits.best_copy
        if limits.best_gemm:
            measured.gemm_share = measured.flop_per_s / limits.best_gemm
    ours = combination.ours
    if ours is not None and ours.starts and limits.best_pinned:
        copying = ours.said["facts"]["weight_bytes"] / limits.best_pinned
        took = [one["load_s"] + one["first_token_s"] for one in ours.starts]
        ours.start_ratio = statistics.median(took) / copying


def adapter(name: str) -> Path:
    """Where the script of a peer is, whether or not it is there."""
    return participants.PEERS / f"model_{name}.py"
