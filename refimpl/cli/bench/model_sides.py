"""What is measured of a model, and who does it: a process of ours or of transformers."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Protocol

from refimpl.cli.bench.memory_watch import MemoryWatch
from refimpl.cli.bench.participants import Participant

# The same tokens for everyone and in every run.
_SEED = 1

# The threads of whoever had the turn before may go on spinning for a moment [s].
_PAUSE = 0.05

# The least time [s]: a clock may be too coarse to see a very small model.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Test:
    """`tokens` read at once from an empty cache (prefill), or made one by one after `depth` others (decode)."""

    action: str
    tokens: int
    depth: int = 0

    @classmethod
    def prefill(cls, tokens: int) -> Test:
        return cls("prefill", tokens)

    @classmethod
    def decoding(cls, tokens: int, depth: int) -> Test:
        return cls("decode", tokens, depth)

    @property
    def name(self) -> str:
        """As llama-bench calls it: "pp512", "tg128", "tg128 @ d512"."""
        kind = "pp" if self.action == "prefill" else "tg"
        return f"{kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")


class Side(Protocol):
    """One program with one model."""

    name: str

    @property
    def memory(self) -> int | None:
        """The most anonymous memory above that after importing, in bytes; None where nobody knows."""

    def start(self) -> dict[str, Any]:
        """Loads the model. Returns: what the program says of itself. Raises: RefimplError."""

    def prepare(self, test: Test) -> None:
        """Makes `run` do this. Raises: RefimplError."""

    def run(self) -> float:
        """The seconds of one repetition. Raises: RefimplError."""

    def close(self) -> None:
        """Ends it."""


class ProcessSide:
    """A model in a child process, run by `worker.py` with an adapter like `our_model.py`."""

    def __init__(self, participant: Participant):
        self.name = participant.name
        self._participant = participant
        self._watch = MemoryWatch(participant)
        self._after_import: int | None = None
        self._vocab_size = 1
        self._test: Test | None = None

    def start(self) -> dict[str, Any]:
        self._watch.__enter__()
        said = self._participant.start()
        self._after_import = said.get("memory_after_import")
        return said

    def set_vocabulary(self, size: int) -> None:
        """Token ids are drawn from 0 to `size` - 1."""
        self._vocab_size = size

    @property
    def memory(self) -> int | None:
        peak = self._watch.peak
        return None if peak is None or self._after_import is None else max(0, peak - self._after_import)

    def prepare(self, test: Test) -> None:
        """And warms up: what is done for the first time is not what is to be measured."""
        self._test = test
        self._participant.ask("forget")
        self._participant.ask("give", name="item", items=[self._item(test)])
        self.run()

    def run(self) -> float:
        assert self._test is not None
        if self._test.action == "decode":
            self._participant.ask("call", operation="fill", item={"ids": self._ids(self._test.depth)})
        time.sleep(_PAUSE)
        answer = self._participant.ask(
            "run", operation=self._test.action, of=["item"], each=True, first=0, times=1
        )
        return max(answer["seconds"], _NOTHING)

    def first_token(self, tokens: int) -> float:
        """The seconds of the first call in this process, which reads so many tokens and chooses one."""
        self._participant.ask("give", name="prompt", items=[{"ids": self._ids(tokens)}])
        answer = self._participant.ask("run", operation="prefill", of=["prompt"], each=True, first=0, times=1)
        return answer["seconds"]

    def tokens(self, test: Test) -> list[int]:
        """The tokens that the model takes for the likeliest in this test."""
        self._participant.ask("call", operation="fill", item={"ids": self._ids(test.depth)})
        return self._participant.ask("call", operation=test.action, item=self._item(test))["result"]

    def profile(self, test: Test) -> dict[str, Any]:
        """See `our_model.RunningModel.profile`."""
        self._participant.ask("call", operation="fill", item={"ids": self._ids(test.depth)})
        item = {"action": test.action, **self._item(test)}
        return self._participant.ask("call", operation="profile", item=item)["result"]

    def record(self, tokens: int) -> float | None:
        """See `our_model.RunningModel.record`, after a prompt of so many tokens."""
        item = {"ids": self._ids(tokens)}
        return self._participant.ask("call", operation="record", item=item)["result"]

    def ask(self, operation: str) -> Any:
        """What an operation without arguments says. Raises: RefimplError."""
        return self._participant.ask("call", operation=operation, item=None)["result"]

    def close(self) -> None:
        self._participant.close()
        self._watch.__exit__(None, None, None)

    def _item(self, test: Test) -> dict[str, Any]:
        if test.action == "prefill":
            return {"ids": self._ids(test.tokens)}
        return {"first": self._ids(test.depth + 1)[-1], "tokens": test.tokens}

    def _ids(self, count: int) -> list[int]:
        return random.Random(_SEED).choices(range(self._vocab_size), k=count)
