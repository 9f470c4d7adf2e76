"""The model as generation sees it: a text goes in, the logits after its last token come out.

Whoever generates holds the text and asks again when it has grown.  How much of it the cache knows already, whether
several tokens were computed at once, and how much of a long text the model still sees, is settled here and nowhere
else: none of it changes what is chosen, except that a text slides when it was asked to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends.likeliest import likeliest
from refimpl.cache import DynamicCache
from refimpl.errors import InputError
from refimpl.generation.processors import PADDING
from refimpl.generation.repeated_step import RepeatedOutput, RepeatedStep, can_repeat
from refimpl.prompt_cache import PromptCache


class NextLogits:
    """ids [rows, seq] -> logits of the next token [rows, vocab], on the host in the compute dtype.

    Args:
        model: the language model.
        mask: of the prompts, `[rows, prompt]`: 0 at padding.  What comes later has none.
        cache: what it remembers; None: everything is computed anew each time.  A `PromptCache` brings tokens of
            an earlier text and says itself how many of them this one shares.
        copies: so many rows in a row have the same prompt; it is computed once.
        context: the longest text that the model sees.  One that would be longer goes on with its second half;
            None: no limit.
        embeds: `[rows, prompt, hidden]`, instead of looking the prompt up.
        needs: "output_attentions", "output_hidden_states": what is to be recorded beside the logits.

    Raises: InputError for a cache that holds more than the prompt.
    """

    def __init__(
        self,
        model: Any,
        mask: np.ndarray,
        cache: DynamicCache | None = None,
        *,
        copies: int = 1,
        context: int | None = None,
        embeds: Any = None,
        needs: tuple[str, ...] = (),
    ):
        self.cache = cache
        self._model, self._mask, self._copies, self._embeds = model, mask, copies, embeds
        self._has_padding = not mask.all()
        self._context, self._start = context, 0
        self._needs = needs
        self._is_first = True
        self._may_repeat = not {"output_attentions", "output_hidden_states"} & set(needs)
        self._repeated: RepeatedStep | None = None
        #: For each token that was asked for: attentions and hidden states of all layers, where needed.
        self.attentions: list[tuple[Any, ...]] = []
        self.hidden_states: list[tuple[Any, ...]] = []
        if cache is not None and not isinstance(cache, PromptCache):
            held, given = cache.get_seq_length(), mask.shape[1]
            if held >= given:
                raise InputError(
                    "the cache must hold less than the prompt, whose beginning it is",
                    where="past_key_values",
                    found=f"{held} tokens",
                    allowed=f"fewer than the {given} of input_ids",
                    hint="Give the whole text as input_ids, with the new tokens at its end.",
                )

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        outputs = self._forward(self._visible(ids), keep=1)
        return self._taken(outputs, 0)

    def likeliest(self, ids: np.ndarray) -> np.ndarray:
        """The place of the largest of these logits, the lowest of equal ones.  [rows, seq] -> int64 [rows]

        -1 where it is no number.  A step that the backend repeats finds it there, and its logits stay there.
        """
        outputs = self._forward(self._visible(ids), keep=1)
        if isinstance(outputs, RepeatedOutput):
            return outputs.likeliest()
        return likeliest(np, self._taken(outputs, 0))

    def select(self, rows: np.ndarray) -> None:
        """Go on with other rows: row i is what row `rows[i]` was."""
        if not np.array_equal(rows, np.arange(len(self._mask))):
            self._mask = self._mask[rows]
            self._may_repeat = False  # the cache moves with every choice
            if self.cache is not None:
                self.cache.reorder_cache(rows)

    def _visible(self, ids: np.ndarray) -> np.ndarray:
        """What the model sees of the text: all of it, or what is left since it slid."""
        if self._context is not None and ids.shape[1] - self._start > self._context:
            self._start = ids.shape[1] - (self._context + 1) // 2
            if self.cache is not None:
                self.cache.reset()  # every position has changed
        return ids[:, self._start :] if self._start else ids

    def _forward(self, ids: np.ndarray, keep: int) -> Any:
        """The model's outputs for what the cache does not hold, with the logits of the last `keep` positions."""
        first, self._is_first = self._is_first, False
        copies = self._copies if first else 1
        mask, positions = self._mask_of(ids)
        text = ids if mask is None else np.where(mask == 1, ids, PADDING)
        past = 0
        if self.cache is not None:
            if isinstance(self.cache, PromptCache):
                common = self.cache.keep_common(text, self._model)
                if first:
                    self.cache.reused = common
            past = self.cache.get_seq_length()
        goes_on = not first and past == ids.shape[1] - 1
        if goes_on and self._may_repeat and can_repeat(self._model, self.cache):
            return self._after_one_more(ids, mask, positions, text)
        fed: dict[str, Any] = {"input_ids": ids[::copies, past:]}
        if self._embeds is not None and first:
            fed = {"inputs_embeds": self._embeds[::copies, past:]}
        outputs = self._model(
            **fed,
            attention_mask=None if mask is None else mask[::copies],
            position_ids=None if positions is None else positions[::copies, past:],
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            output_attentions="output_attentions" in self._needs,
            output_hidden_states="output_hidden_states" in self._needs,
            return_dict=True,
            logits_to_keep=keep,
        )
        if copies > 1:
            self._repeat(outputs, copies)
        if isinstance(self.cache, PromptCache):
            self.cache.token_ids = text
        return outputs

    def _after_one_more(
        self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None, text: np.ndarray
    ) -> RepeatedOutput:
        """The model's outputs for the last token of each row, by a step that the backend repeats."""
        assert self.cache is not None
        past = ids.shape[1] - 1
        if self._repeated is None or not self._repeated.fits(self.cache, past):
            self._repeated = RepeatedStep(self._model, self.cache, None if mask is None else mask[:, :past])
        at = np.full(len(ids), past) if positions is None else positions[:, -1]
        outputs = self._repeated(ids[:, -1], at)
        if isinstance(self.cache, PromptCache):
            self.cache.token_ids = text
        return outputs

    def _mask_of(self, ids: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mask and positions of the visible text; None where nothing is padded and both are the model's own."""
        if not self._has_padding:
            return None, None
        mask = np.ones_like(ids)
        of_prompt = self._mask[:, self._start :]
        mask[:, : of_prompt.shape[1]] = of_prompt
        return mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0)

    def _repeat(self, outputs: Any, copies: int) -> None:
        """What was computed for each prompt, for each of its copies."""
        rows = np.repeat(np.arange(len(outputs.logits)), copies).tolist()
        outputs.logits = outputs.logits[rows]
        for name in ("attentions", "hidden_states"):
            if getattr(outputs, name) is not None:
                setattr(outputs, name, tuple(array[rows] for array in getattr(outputs, name)))
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def _taken(self, outputs: Any, place: int) -> np.ndarray:
        """The logits at one of the kept positions; what belongs to that position is recorded where needed."""
        kept = outputs.logits.shape[1]
        # Of the positions that were fed, those before the kept ones belong to the first of these.
        if outputs.hidden_states is not None:
            fed = outputs.hidden_states[0].shape[1]
            taken = slice(0 if place == 0 else fed - kept + place, fed - kept + place + 1)
            self.hidden_states.append(tuple(state[:, taken] for state in outputs.hidden_states))
        if outputs.attentions is not None:
            fed, seen = outputs.attentions[0].shape[2:]
            taken = slice(0 if place == 0 else fed - kept + place, fed - kept + place + 1)
            known = seen - kept + place + 1
            self.attentions.append(tuple(weights[:, :, taken, :known] for weights in outputs.attentions))
        return self._model.backend.to_numpy(outputs.logits)[:, place]


class LookedUpLogits(NextLogits):
    """The same numbers in fewer steps, where the text repeats itself: prompt lookup decoding.

    What followed the last tokens where they stood before is computed along with them.  If it is chosen, its logits
    are there already; if not, the cache forgets it.  For one row.

    Source: Saxena, "Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding

    Args:
        num_tokens: so many tokens are guessed at most.
        max_ngram: so many of the last tokens are looked for at most.
        limit: no text becomes longer, and none is guessed beyond it.
    """

    def __init__(self, *args: Any, num_tokens: int, max_ngram: int, limit: int, **options: Any):
        super().__init__(*args, **options)
        self._num_tokens, self._max_ngram, self._limit = num_tokens, max_ngram, limit
        self._guessed: np.ndarray | None = None  # [1, seq]: the text whose logits are at hand
        self._outputs: Any = None
        #: How often the model was called, and for how many tokens in all.
        self.steps, self.tokens = 0, 0

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        self.tokens += 1
        if self._guessed is not None:
            length, ahead = ids.shape[1], self._guessed.shape[1]
            if length <= ahead and np.array_equal(ids, self._guessed[:, :length]):
                return self._taken(self._outputs, length - (ahead - self._outputs.logits.shape[1] + 1))
            if self.cache is not None:
                self.cache.crop(length - 1 - self._start)  # all but the last token was as guessed
        room = self._limit - 1 - ids.shape[1]
        visible = self._visible(ids)
        if self._context is not None:
            room = min(room, self._context - visible.shape[1])
        guess = look_up(visible[0], self._max_ngram, max(0, min(room, self._num_tokens)))
        self._outputs = self._forward(np.concatenate([visible, guess[None]], axis=1), keep=1 + len(guess))
        self._guessed = np.concatenate([ids, guess[None]], axis=1)
        self.steps += 1
        return self._taken(self._outputs, 0)

    def likeliest(self, ids: np.ndarray) -> np.ndarray:
        return likeliest(np, self(ids))


def look_up(ids: np.ndarray, max_ngram: int, num_tokens: int) -> np.ndarray:
    """What followed the last tokens of a text where they stood before.  [seq] -> [at most num_tokens]

    Of the places where most of the last `max_ngram` tokens stand, the last one counts.
    """
    for size in range(min(max_ngram, len(ids) - 1), 0, -1):
        before = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        places = np.flatnonzero((before == ids[-size:]).all(axis=1))
        if places.size:
            start = int(places[-1]) + size
            return ids[start : start + num_tokens]
    return ids[:0]
