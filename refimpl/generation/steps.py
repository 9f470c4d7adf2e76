"""Greedy decoding and sampling: one token after the other, each row for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.generation.chain import Candidates, ScoreProcessing
from refimpl.generation.config import GenerationConfig
from refimpl.generation.logits import check_likeliest
from refimpl.generation.next_logits import NextLogits
from refimpl.generation.stopping import StoppingCriterion


@dataclass
class Step:
    """One token for each row.

    ids: `[rows, seq]`, the texts with it.
    was_running: `[rows]`, whether it is a new token; the others only fill up rows that have ended.
    ended_by_token, ended: `[rows]`, whether the row has ended with an eos token, and whether it has ended at all.
    candidates: of each row, what it was chosen from; logits: `[rows, vocab]`, what the model gave, in the compute
        dtype.  Both are None where only the likeliest token was asked for.
    """

    ids: np.ndarray
    was_running: np.ndarray
    ended_by_token: np.ndarray
    ended: np.ndarray
    candidates: list[Candidates] | None
    logits: np.ndarray | None

    @property
    def scores(self) -> np.ndarray:
        """What the tokens were chosen by, `[rows, vocab]`, float64, with -inf for what was ruled out."""
        assert self.candidates is not None
        assert self.logits is not None
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
    needs_scores: bool,
) -> Iterator[Step]:
    """Until every row has ended, or has `limit` tokens.

    lengths: `[rows]`, tokens without padding: with the seed they say what is drawn, so that padding changes nothing.
    needs_scores: whether the caller reads what the tokens were chosen from.
    Raises: NumericalError where there is nothing to choose from.
    """
    positions, eos_ids = lengths.tolist(), set(config.eos_token_ids)
    by_token = np.zeros(len(ids), dtype=bool)
    ended = by_token
    only_likeliest = config.is_greedy and processing.changes_nothing and not criteria and not needs_scores
    while ids.shape[1] < limit and not ended.all():
        if only_likeliest:
            logits = candidates = None
            likeliest = next_logits.likeliest(ids).tolist()
        else:
            logits = next_logits(ids)
            candidates = processing(ids, logits)
        running = ~ended
        tokens = np.full(len(ids), fill, dtype=np.int64)
        for row in np.flatnonzero(running).tolist():
            if candidates is None:
                tokens[row] = check_likeliest(likeliest[row], row, positions[row])
            else:
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
