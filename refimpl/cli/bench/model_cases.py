"""Measuring models: every combination of backend, weights and threads, alone or with each peer in turn."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refimpl.cli.bench import participants
from refimpl.cli.bench.llama_bench import LlamaBench
from refimpl.cli.bench.model_sides import ProcessSide, Side, Test
from refimpl.cli.bench.pairs import Spread, ratios, take_turns
from refimpl.cli.bench.participants import Participant
from refimpl.errors import RefimplError
from refimpl.memory import memory_limit

OURS = Path(__file__).with_name("our_model.py")
MACHINE = Path(__file__).with_name("our_machine.py")

#: What the machine is measured with: bytes to read, size of the matrices, and how often.
LIMITS_SCALE = {"bytes": 1 << 30, "size": 2048, "repeat": 5}

# A slow machine needs minutes for a long prompt, and to quantize a large model [s].
_LIMIT = 3600.0


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
class Limits:
    """What the machine can do with so many threads: every rate that was measured, before and after the models.

    `bytes` are those that were read.
    """

    threads: int
    bytes: int = 0
    read_bytes_per_s: list[float] = field(default_factory=list)
    gemm_flop_per_s: list[float] = field(default_factory=list)

    @property
    def best_read(self) -> float | None:
        return max(self.read_bytes_per_s, default=None)

    @property
    def best_gemm(self) -> float | None:
        return max(self.gemm_flop_per_s, default=None)


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
    """One test. `bytes` and `flop` are what a token costs on average; a share is that of the machine's limit."""

    test: str
    action: str
    tokens: int
    depth: int
    bytes: float
    flop: float
    seconds: list[float] = field(default_factory=list)
    tokens_per_s: Rate | None = None
    read_share: float | None = None
    gemm_share: float | None = None
    against: list[Against] = field(default_factory=list)


@dataclass
class Joined:
    """A program that has loaded a model: what it says of itself, and how long that took."""

    name: str
    said: dict[str, Any]
    first_token_s: float | None = None
    memory: int | None = None
    #: Of a peer: how many of the first tokens of a test were the same as ours, until one differed.
    same_tokens: list[int] | None = None


@dataclass
class Combination:
    """Our model with one backend, one form of weights and one number of threads."""

    backend: str
    weight_dtype: str | None
    threads: int
    matmul_dtype: str | None = None
    ours: Joined | None = None
    tests: list[Measured] = field(default_factory=list)
    peers: list[Joined] = field(default_factory=list)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str | None = None


@dataclass(frozen=True)
class Peer:
    """Another program: an adapter for `worker.py`, or (without a script) llama-bench."""

    name: str
    script: Path | None
    program: str
    options: dict[str, Any] = field(default_factory=dict)
    gguf: Path | None = None


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

    def ours(self, combination: Combination) -> ProcessSide:
        options = {
            "random": self.random,
            "backend": combination.backend,
            "dtype": self.dtype,
            "weight_dtype": combination.weight_dtype,
            "matmul_dtype": combination.matmul_dtype,
            "hub": self.hub,
        }
        return self._process("refimpl", OURS, sys.executable, combination.threads, options)

    def peer(self, peer: Peer, threads: int) -> Side:
        if peer.script is None:
            assert peer.gguf is not None
            return LlamaBench(peer.program, peer.gguf, threads, _LIMIT)
        options = {"random": self.random, "revision": self.hub["revision"], **peer.options}
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


def measure_limits(limits: Limits) -> None:
    """Adds what the machine can do now. Raises: RefimplError."""
    room = memory_limit()
    limits.bytes = LIMITS_SCALE["bytes"] if room is None else min(LIMITS_SCALE["bytes"], room // 2)
    options = LIMITS_SCALE | {"bytes": limits.bytes}
    participant = Participant("machine", MACHINE, "", limits.threads, options=options)
    with closing(participant):
        participant.start()
        limits.read_bytes_per_s.extend(participant.ask("call", operation="read", item=None)["result"])
        limits.gemm_flop_per_s.extend(participant.ask("call", operation="gemm", item=None)["result"])


def measure(setting: Setting, combination: Combination) -> None:
    """Fills in a combination; what fails is said in it."""
    try:
        with closing(setting.ours(combination)) as ours:
            said = ours.start()
            combination.ours = joined = Joined(ours.name, said)
            joined.first_token_s = ours.first_token(_prompt(setting))
            combination.tests = [planned(test, said["facts"]) for test in setting.tests]
            for peer in setting.peers:
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
            joined.memory = ours.memory
    except RefimplError as error:
        combination.failed = str(error)


def _with_peer(setting: Setting, combination: Combination, ours: ProcessSide, peer: Peer) -> None:
    """Raises: RefimplError when it is we who fail."""
    with ExitStack() as stack:
        theirs = stack.enter_context(closing(setting.peer(peer, combination.threads)))
        try:
            joined = Joined(peer.name, theirs.start())
            if isinstance(theirs, ProcessSide):
                joined.first_token_s = theirs.first_token(_prompt(setting))
        except RefimplError as error:
            for measured in combination.tests:
                measured.against.append(Against(peer.name, failed=error.what))
            return
        combination.peers.append(joined)
        for test, measured in zip(setting.tests, combination.tests, strict=True):
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
        joined.memory = theirs.memory


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
    """What part of the machine's limits the mean rates are."""
    for measured in combination.tests:
        rate = measured.tokens_per_s
        if rate is not None and limits.best_read and limits.best_gemm:
            measured.read_share = rate.mean * measured.bytes / limits.best_read
            measured.gemm_share = rate.mean * measured.flop / limits.best_gemm


def adapter(name: str) -> Path:
    """Where the script of a peer is, whether or not it is there."""
    return participants.PEERS / f"model_{name}.py"
