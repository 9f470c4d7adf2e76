"""Beam search: several texts are followed at once, and the likeliest of those that ended wins.

At each step every running text is continued with every token; of all these candidates of a prompt the best are
looked at.  One that ends is judged by its log-probability over length ** length_penalty and kept if it is among the
best `num_beams` that ended; the others run on.

Results: transformers 5.23, generation/utils.py, `_beam_search`.  The sums are made in float64 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from refimpl.generation.chain import ScoreProcessing
from refimpl.generation.config import GenerationConfig
from refimpl.generation.logits import check_scores, draw_several, log_probabilities
from refimpl.generation.next_logits import NextLogits
from refimpl.generation.stopping import StoppingCriterion

#: The score of a text that must not win, but may stand in for one that there is not.
_NEVER = -1e9

#: Below everything else, where a token is ruled out: sums with it stay numbers.
_RULED_OUT = -1e30


@dataclass
class Ended:
    """A text that ended, or (without tokens) a place for one."""

    score: float = _NEVER
    ids: np.ndarray | None = None  # [seq]
    rows: tuple[int, ...] = ()  # the running text that each new token was added to


@dataclass
class PromptBeams:
    """The texts of one prompt, best first.

    scores, ids, rows: of the running ones: `[beams]`, `[beams, seq]`, beams x new tokens.
    ended: `beams` of them.
    may_improve: whether a running text could still become better than all that ended.
    """

    scores: np.ndarray
    ids: np.ndarray
    ended: list[Ended]
    rows: list[tuple[int, ...]]
    may_improve: bool = True

    @property
    def is_full(self) -> bool:
        return all(one.ids is not None for one in self.ended)


@dataclass
class BeamResult:
    """sequences: [prompts * num_return_sequences, seq]; scores: [the same]; rows: [the same, new tokens], -1 after
    the end; step_scores and step_logits: of each step, [prompts * num_beams, vocab], where asked for."""

    sequences: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    step_scores: list[np.ndarray] = field(default_factory=list)
    step_logits: list[np.ndarray] = field(default_factory=list)


class BeamSearch:
    """One beam search over a batch of prompts.

    Args:
        next_logits: of the running texts; their rows are prompt by prompt.
        ids: `[prompts * num_beams, prompt]`, each prompt `num_beams` times.
        lengths: `[prompts * num_beams]`, tokens without padding: with the seed they say what is drawn.
        config: complete settings.
        processing: of the log-probabilities.
        criteria: what ends a text besides `eos_token_id` and the limit.
        limit: how many tokens prompt and new ones may be together.
        fill: the id after the end of a text.
        seed: of sampling.
    """

    def __init__(
        self,
        next_logits: NextLogits,
        ids: np.ndarray,
        lengths: np.ndarray,
        config: GenerationConfig,
        processing: ScoreProcessing,
        criteria: Sequence[StoppingCriterion],
        limit: int,
        fill: int,
        seed: int,
    ):
        self._next_logits, self._processing, self._criteria = next_logits, processing, criteria
        self._config, self._limit, self._fill, self._seed = config, limit, fill, seed
        self._beams, self._penalty = config.num_beams or 1, config.length_penalty or 0.0
        self._start = ids.shape[1]
        self._lengths = lengths[:: self._beams]
        # Enough that so many are left to run on when every end of a text is among them.
        self._candidates = max(2, 1 + len(config.eos_token_ids)) * self._beams
        self._prompts = [self._first(texts) for texts in ids.reshape(-1, self._beams, self._start)]
        self._steps: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def _first(self, texts: np.ndarray) -> PromptBeams:
        scores = np.full(self._beams, _NEVER)
        scores[0] = 0.0  # the others are the same text, which must not be followed twice
        ended = [Ended() for _ in range(self._beams)]
        return PromptBeams(scores, texts, ended, [()] * self._beams)

    def run(self) -> BeamResult:
        """Raises: NumericalError for NaN among the scores."""
        length = self._start
        goes_on = length < self._limit
        while goes_on:
            all_hit = self._step(length)
            length += 1
            for prompt in self._prompts:
                prompt.may_improve = prompt.may_improve and self._could_improve(prompt, length)
            stops_early = self._config.early_stopping is True and all(p.is_full for p in self._prompts)
            goes_on = any(p.may_improve for p in self._prompts) and not stops_early and not all_hit
        return self.result()

    def _step(self, length: int) -> bool:
        """Add a token to every running text.  Returns: whether all candidates of all prompts have ended."""
        beams, new = self._beams, length - self._start
        ids = np.concatenate([prompt.ids for prompt in self._prompts])
        logits = self._next_logits(ids)
        with np.errstate(invalid="ignore"):
            scores = self._processing.whole(ids, log_probabilities(logits.astype(np.float64)))
        for row, of_row in enumerate(scores):
            check_scores(of_row, row // beams, length)
        if "output_scores" in self._config.needed_outputs:
            self._steps[0].append(scores.astype(np.float32))
        if "output_logits" in self._config.needed_outputs:
            self._steps[1].append(logits)
        followed = [prompt.scores for prompt in self._prompts]
        sums = np.maximum(scores + np.concatenate(followed)[:, None], _RULED_OUT)
        chosen = [
            self._choose(of_prompt.ravel(), index, length)
            for index, of_prompt in enumerate(sums.reshape(len(self._prompts), -1))
        ]
        vocab = scores.shape[1]
        sources = np.concatenate([index * beams + best // vocab for index, best in enumerate(chosen)])
        tokens = np.concatenate(chosen) % vocab
        texts = np.concatenate([ids[sources], tokens[:, None]], axis=1)
        hits = self._has_ended(texts, tokens, scores, sources)

        for index, (prompt, best) in enumerate(zip(self._prompts, chosen, strict=True)):
            part = slice(index * len(best), (index + 1) * len(best))
            of_best = sums.reshape(len(self._prompts), -1)[index, best]
            origins = [
                (*prompt.rows[source - index * beams], int(source)) for source in sources[part].tolist()
            ]
            self._keep_ended(prompt, of_best, texts[part], origins, hits[part], new + 1)
            running_scores = of_best + np.where(hits[part], _NEVER, 0.0)
            running = np.argsort(-running_scores, kind="stable")[:beams]
            prompt.scores, prompt.ids = running_scores[running], texts[part][running]
            prompt.rows = [origins[i] for i in running]
        self._next_logits.select(np.array([rows[-1] for prompt in self._prompts for rows in prompt.rows]))
        return bool(hits.all())

    def _choose(self, sums: np.ndarray, prompt: int, length: int) -> np.ndarray:
        """The candidates of a prompt, as places in its `[beams * vocab]` sums."""
        if self._config.is_greedy:
            return _largest(sums, self._candidates)
        position = int(self._lengths[prompt]) + length - self._start
        return draw_several(sums, self._candidates, self._seed, prompt, position)

    def _has_ended(
        self, texts: np.ndarray, tokens: np.ndarray, scores: np.ndarray, sources: np.ndarray
    ) -> np.ndarray:
        hits = np.isin(tokens, self._config.eos_token_ids)
        if texts.shape[1] >= self._limit:
            hits[:] = True
        for is_done in self._criteria:
            hits = hits | np.asarray(is_done(texts, scores[sources]), dtype=bool)
        return hits

    def _keep_ended(
        self,
        prompt: PromptBeams,
        scores: np.ndarray,
        texts: np.ndarray,
        origins: list[tuple[int, ...]],
        hits: np.ndarray,
        new: int,
    ) -> None:
        """Take the candidates that ended among the best, if there can be better ones."""
        if not prompt.may_improve or (self._config.early_stopping is True and prompt.is_full):
            return
        found = [
            Ended(float(scores[i] / new**self._penalty), texts[i], origins[i])
            for i in range(self._beams)
            if hits[i]
        ]
        prompt.ended = sorted(prompt.ended + found, key=lambda one: -one.score)[: self._beams]

    def _could_improve(self, prompt: PromptBeams, length: int) -> bool:
        """Whether a running text could end better than the worst that ended.

        Its score can only sink; a penalty above 0 divides it by a length that is guessed: the one of now, or
        (early_stopping "never") the longest that there can be.
        """
        if not prompt.is_full:
            return True
        longest = self._config.early_stopping == "never" and self._penalty > 0
        best = prompt.scores[0] / ((self._limit if longest else length) - self._start) ** self._penalty
        return bool(best > prompt.ended[-1].score)

    def result(self) -> BeamResult:
        """The best texts of each prompt, as far as they have come."""
        count = self._config.num_return_sequences or 1
        chosen = []
        for prompt in self._prompts:
            ended = [one for one in prompt.ended if one.ids is not None]
            running = [
                Ended(float(s), ids, rows)
                for s, ids, rows in zip(prompt.scores, prompt.ids, prompt.rows, strict=True)
            ]
            chosen += (ended + running)[:count]
        new = max(len(one.rows) for one in chosen)
        sequences = np.full((len(chosen), self._start + new), self._fill, dtype=np.int64)
        rows = np.full((len(chosen), new), -1, dtype=np.int64)
        for index, one in enumerate(chosen):
            assert one.ids is not None
            sequences[index, : len(one.ids)] = one.ids
            rows[index, : len(one.rows)] = one.rows
        return BeamResult(sequences, np.array([one.score for one in chosen]), rows, *self._steps)


def _largest(sums: np.ndarray, count: int) -> np.ndarray:
    """The places of the largest numbers, largest first; of equals the first counts."""
    count = min(count, sums.size)
    least = np.partition(sums, -count)[-count]
    places = np.flatnonzero(sums >= least)
    return places[np.argsort(-sums[places], kind="stable")][:count]
