"""Making the texts of one prompt, with everything that the commands say about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refimpl.cli.generation_options import only_known_tokens
from refimpl.cli.interrupt import Interrupt
from refimpl.cli.profile import Profile
from refimpl.cli.stop_text import StopText
from refimpl.errors import SaveError

if TYPE_CHECKING:
    from refimpl.generation.config import GenerationConfig
    from refimpl.prompt_cache import PromptCache

#: (number of the text, what is new of it)
Show = Callable[[int, str], None]


@dataclass
class Text:
    """A continuation.

    ids, logprobs: its tokens and their log-probabilities by the model alone (of a beam search only where asked for).
    finish_reason: "eos", "stop" (a string, or another criterion), "length", "interrupted" or "error".
    seconds: from its first token to its last one; None with fewer than two.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    seconds: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        return round((len(self.ids) - 1) / self.seconds, 2) if self.seconds and len(self.ids) > 1 else None


@dataclass
class Written:
    """The texts of one prompt.

    prompt_tokens, reused: of the prompt, and how many of them a cache held already.
    prompt_seconds: until the first token was there; None where there was none.
    error: what ended generation before its time.
    """

    texts: list[Text]
    prompt_tokens: int
    reused: int = 0
    prompt_seconds: float | None = None
    interrupted: bool = False
    error: Exception | None = None

    @property
    def prompt_tokens_per_second(self) -> float | None:
        new = self.prompt_tokens - self.reused
        return round(new / self.prompt_seconds, 2) if self.prompt_seconds else None


class Writer:
    """Writes with one model.

    Args:
        model, tokenizer: what it writes with.
        stops: strings before which a text ends.
        with_logprobs: of beam searches too, which then take more memory.
        profile: what adds up the seconds; None: nobody.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stops: Sequence[str] = (),
        with_logprobs: bool = False,
        profile: Profile | None = None,
    ):
        self.model, self.tokenizer, self.stops = model, tokenizer, tuple(stops)
        self._with_logprobs, self._profile = with_logprobs, profile
        self._processors = only_known_tokens(tokenizer, model.config.vocab_size)

    def write(
        self,
        prompt_ids: list[int],
        settings: GenerationConfig,
        seed: int,
        interrupt: Interrupt,
        show: Show = lambda row, text: None,
        started: Callable[[], None] = lambda: None,
        cache: PromptCache | None = None,
        negative_ids: list[int] | None = None,
    ) -> Written:
        """The texts that the settings ask for.  Ctrl-C and errors in the middle end them where they are.

        show: called with whole characters, and never with the beginning of a stop string.
        started: called when everything is known to be right, before the model is asked for anything.
        Raises: InputError and ContextOverflowError before the first token; BrokenPipeError and SaveError of `show`.
        """
        arguments: dict[str, Any] = {
            "attention_mask": [[1] * len(prompt_ids)],  # one prompt has no padding, whatever its ids
            "generation_config": settings,
            "logits_processor": self._processors,
            "seed": seed,
            "negative_prompt_ids": None if negative_ids is None else [negative_ids],
        }
        if cache is not None:
            arguments["past_key_values"] = cache
        profile = self._profile
        tokenizer = self.tokenizer if profile is None else profile.tokenizer(self.tokenizer)
        show = show if profile is None else profile.shown(show)
        watching: AbstractContextManager[None] = (
            nullcontext() if profile is None else profile.watching(self.model)
        )
        write = self._search if (settings.num_beams or 1) > 1 else self._stream
        with watching:
            written = write(prompt_ids, settings, arguments, tokenizer, interrupt, show, started)
        if profile is not None:
            profile.tokens += sum(len(text.ids) for text in written.texts)
        if cache is not None:
            written.reused = min(cache.reused, len(prompt_ids))
        return written

    def _stream(
        self,
        prompt_ids: list[int],
        settings: GenerationConfig,
        arguments: dict[str, Any],
        tokenizer: Any,
        interrupt: Interrupt,
        show: Show,
        started: Callable[[], None],
    ) -> Written:
        rows = settings.num_return_sequences or 1
        texts, parts = [Text() for _ in range(rows)], [StopText(self.stops) for _ in range(rows)]
        written = Written(texts, len(prompt_ids))
        if rows > 1 and self.stops:
            # The other rows go on; a row that has found its string makes one more token, which nobody sees.
            arguments["stopping_criteria"] = lambda ids, scores: [part.found is not None for part in parts]
        began = time.perf_counter()
        firsts: list[float | None] = [None] * rows
        # What contradicts itself is refused here, before any token.
        stream = self.model.stream_generate([prompt_ids], tokenizer, **arguments)
        try:
            started()
            for token in stream:
                with interrupt.held():
                    now = time.perf_counter()
                    if written.prompt_seconds is None:
                        written.prompt_seconds = now - began
                    text, part = texts[token.row], parts[token.row]
                    if text.finish_reason is not None:
                        continue
                    text.ids.append(token.token_id)
                    assert text.logprobs is not None
                    text.logprobs.append(token.logprob)
                    first = firsts[token.row]
                    firsts[token.row] = now if first is None else first
                    text.seconds = None if first is None else now - first
                    piece = part.put(token.text)
                    text.finish_reason = "stop" if part.found is not None else token.finish_reason
                    if text.finish_reason is not None:
                        piece += part.finish()
                    if piece:
                        show(token.row, piece)
                if all(text.finish_reason is not None for text in texts):
                    break
        except (BrokenPipeError, SaveError):  # whoever was shown the text is gone
            raise
        except KeyboardInterrupt:
            interrupt.happened = True
        except Exception as error:
            written.error = error
        written.interrupted = interrupt.happened
        for row, (text, part) in enumerate(zip(texts, parts, strict=True)):
            if text.finish_reason is None:
                # What an unfinished character has so far was held back until now.
                rest = _whole_text(self.tokenizer, text.ids)[len(part.text) :]
                piece = part.put(rest) + part.finish()
                text.finish_reason = (
                    "interrupted" if written.interrupted else "error" if written.error else "length"
                )
                if piece:
                    show(row, piece)
            text.text = part.text
        return written

    def _search(
        self,
        prompt_ids: list[int],
        settings: GenerationConfig,
        arguments: dict[str, Any],
        tokenizer: Any,
        interrupt: Interrupt,
        show: Show,
        started: Callable[[], None],
    ) -> Written:
        """Beam search, whose texts are known at its end only."""
        if self.stops:
            arguments["stop_strings"] = list(self.stops)
        written = Written([], len(prompt_ids))
        began = time.perf_counter()
        outputs: Any = None
        try:
            outputs = self.model.generate(
                [prompt_ids],
                tokenizer=tokenizer,
                return_dict_in_generate=True,
                output_logits=self._with_logprobs,
                **arguments,
            )
            sequences = outputs.sequences
        except KeyboardInterrupt as error:
            interrupt.happened = written.interrupted = True
            sequences = getattr(error, "sequences", ())
        except Exception as error:
            if not hasattr(error, "sequences"):
                raise
            written.error, sequences = error, error.sequences
        seconds = time.perf_counter() - began
        started()
        for row in range(len(sequences)):
            ids = [int(token_id) for token_id in sequences[row][len(prompt_ids) :]]
            if outputs is not None:
                ids = ids[: int((outputs.beam_indices[row] >= 0).sum())]
            ends = [place for place, token_id in enumerate(ids) if token_id in settings.eos_token_ids]
            ids = ids[: ends[0] + 1] if ends else ids
            logprobs = None if outputs is None or outputs.logits is None else _logprobs(outputs, row, ids)
            part = StopText(self.stops)
            shown = part.put(_whole_text(tokenizer, ids)) + part.finish()
            reason = "stop" if part.found is not None else "eos" if ends else "length"
            if outputs is None:
                reason = "interrupted" if written.interrupted else "error"
            written.texts.append(Text(ids, logprobs, part.text, reason, seconds if ids else None))
            if shown:
                show(row, shown)
        return written


def _whole_text(tokenizer: Any, ids: list[int]) -> str:
    from refimpl.tokenizer.streaming import StreamDecoder

    decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
    return "".join(map(decoder.put, ids)) + decoder.finish()


def _logprobs(outputs: Any, row: int, ids: list[int]) -> list[float]:
    """Of the tokens of a text that a beam search found, by the model alone."""
    import numpy as np

    from refimpl.generation.logits import log_probabilities

    beams = outputs.beam_indices[row]
    return [
        float(log_probabilities(outputs.logits[step][beams[step]].astype(np.float64))[token_id])
        for step, token_id in enumerate(ids)
    ]
