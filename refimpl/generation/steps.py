"""Greedy decoding and sampling: one token after the other, each row for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.generation.chain import Candidates, ScoreProcessing
from refimpl.generation.config import GenerationConfig
from refimpl.generation.next_logits import NextLogits
from refimpl.generation.stopping import StoppingCriterion


@dataclass
class Step:
    """One token for each row.

    ids: `[rows, seq]`, the texts with it.
    was_running: `[rows]`, whether it is a new token; the others only fill up rows that have ended.
    ended_by_token, ended: `[rows]`, whether the row has ended with an eos token, and whether it has ended at all.
    candidates: of each row, what it was chosen from; logits: `[rows, vocab]`, what the model gave, in the compute
        dtype.
    """

    ids: np.ndarray
    was_running: np.ndarray
    ended_by_token: np.ndarray
    ended: np.ndarray
    candidates: list[Candidates]
    logits: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """What the tokens were chosen by, `[rows, vocab]`, float64, with -inf for what was ruled out."""
        return np.stack([row.whole(self.logits.shape[1]) for row in self.candidates])


def steps(
    next_logits: NextLogits,
    ids: np.ndarray,
    lengths: np.ndarray,
    config: GenerationConfig,
    processing: ScoreProcessing,
    criteria: Sequence[StoppingCriterion],
    limit: int,
    fill: int,
    seed: int,
) -> Iterator[Step]:
    """Until every row has ended, or has `limit` tokens.

    lengths: `[rows]`, tokens without padding: with the seed they say what is drawn, so that padding changes nothing.
    Raises: NumericalError where there is nothing to choose from.
    """
    positions, eos_ids = lengths.tolist(), set(config.eos_token_ids)
    by_token = np.zeros(len(ids), dtype=bool)
    ended = by_token
    while ids.shape[1] < limit and not ended.all():
        logits = next_logits(ids)
        candidates = processing(ids, logits)
        running = ~ended
        tokens = np.full(len(ids), fill, dtype=np.int64)
        for row in np.flatnonzero(running).tolist():
            tokens[row] = candidates[row].choose(config.is_greedy, seed, row, positions[row])
            positions[row] += 1
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        by_token = by_token | (running & [token in eos_ids for token in tokens.tolist()])
        ended = ended | by_token
        step = Step(ids, running, by_token, ended, candidates, logits)
        for is_done in criteria:
            ended = ended | np.asarray(is_done(ids, step.scores), dtype=bool)
        step.ended = ended
        yield step
