"""Where the time of a generation went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from refimpl.cli import terminal


class Profile:
    """Adds up seconds, by what was done.

    Attributes:
        load: of finding, mapping and checking the weights.
        prompt, prompt_tokens: of the first call of the model for each prompt, and how many tokens it had.
        steps, calls: of all further calls of the model, and how many there were.
        text: of making text of ids.  show: of writing it.
        total: of everything but loading.
        tokens: how many were made.
    """

    def __init__(self) -> None:
        self.load = self.prompt = self.steps = self.text = self.show = self.total = 0.0
        self.prompt_tokens = self.calls = self.tokens = 0
        self._is_prompt = True

    @property
    def choosing(self) -> float:
        """Of all that is left: changing the scores, drawing, and keeping the ids together."""
        return max(0.0, self.total - self.prompt - self.steps - self.text - self.show)

    @property
    def outside(self) -> float:
        """Which part of the time for a token the model does not need, 0 to 1."""
        outside = self.choosing + self.text + self.show
        return outside / (self.steps + outside) if outside else 0.0

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Count the calls of a model; the next one is for a new prompt."""
        profile, original = self, type(model)
        self._is_prompt = True

        def timed(model: Any, *args: Any, **inputs: Any) -> Any:
            began = time.perf_counter()
            outputs = original.__call__(model, *args, **inputs)
            profile._count(inputs, time.perf_counter() - began)
            return outputs

        # Python looks a call up in the class, not in the object.
        model.__class__ = type(original.__name__, (original,), {"__call__": timed})
        began = time.perf_counter()
        try:
            yield
        finally:
            self.total += time.perf_counter() - began
            model.__class__ = original

    def _count(self, inputs: dict[str, Any], seconds: float) -> None:
        if self._is_prompt:
            self.prompt += seconds
            self.prompt_tokens += inputs["input_ids"].shape[1]
            self._is_prompt = False
        else:
            self.steps += seconds
            self.calls += 1

    def shown(self, show: Callable[[int, str], None]) -> Callable[[int, str], None]:
        """`show`, with its time counted."""

        def timed(row: int, text: str) -> None:
            began = time.perf_counter()
            show(row, text)
            self.show += time.perf_counter() - began

        return timed

    def tokenizer(self, tokenizer: Any) -> Any:
        """The tokenizer, with the time counted that it takes for the text of ids."""
        return _TimedTokenizer(tokenizer, self)

    def table(self) -> str:
        """A few lines for people."""
        everything = self.load + self.total

        def row(what: str, seconds: float, rate: str = "") -> list[str]:
            share = f"{100 * seconds / everything:.1f} %" if everything else ""
            return [what, f"{seconds:.3f} s", share, rate]

        def each(seconds: float) -> str:
            return f"{1000 * seconds / self.tokens:.3f} ms a token" if self.tokens else ""

        read = f"{self.prompt_tokens / self.prompt:.1f} tokens/s" if self.prompt else ""
        rows = [
            row("load the model", self.load),
            row(f"read the prompt: {self.prompt_tokens} tokens", self.prompt, read),
            row(f"model, further tokens: {self.calls} calls", self.steps, each(self.steps)),
            row("choose tokens", self.choosing, each(self.choosing)),
            row("ids to text", self.text, each(self.text)),
            row("write the text", self.show, each(self.show)),
        ]
        outside = f"outside the model: {100 * self.outside:.1f} % of the time of a token\n"
        return terminal.table(rows, right=(1, 2)) + outside


class _TimedTokenizer:
    """A tokenizer whose ways from ids to text are timed."""

    def __init__(self, tokenizer: Any, profile: Profile):
        self._tokenizer, self._profile = tokenizer, profile

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        return self._timed(value) if name in ("token_bytes", "convert_ids_to_tokens", "decode") else value

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self._profile.text += time.perf_counter() - began

        return timed
