"""Live comparison with transformers: the losses of windows that slide, and of pieces that do not overlap."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import refimpl
from refimpl.evaluation.scoring import losses_of, window_logits
from refimpl.evaluation.windows import Window, chunk_windows, sliding_windows
from tests.conformance.random_models import RandomModel
from tests.conformance.theirs import load_theirs, torch


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("way", ["stride 5", "stride 16", "chunks"])
def test_losses_of_windows(seed: int, way: str, backend: str, tmp_path: Path) -> None:
    """Labels of -100 leave out what was scored before, as in the recipe of transformers' documentation."""
    model = RandomModel(seed)
    model.save(tmp_path, "ForCausalLM")
    vocab = model.settings["vocab_size"]
    ids = np.random.default_rng(seed).integers(3, vocab, 75)
    length = min(16, model.settings["max_position_embeddings"])
    windows = (
        chunk_windows(75, length)
        if way == "chunks"
        else sliding_windows(75, length, min(int(way[7:]), length))
    )
    theirs = load_theirs(tmp_path)
    ours = refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)
    total, count = 0.0, 0
    for window, logits in window_logits(ours, ids, windows, 3):
        labels = np.full(window.end - window.start, -100)
        labels[window.first - window.start :] = ids[window.first : window.end]
        rows = torch.from_numpy(ids[None, window.start : window.end])
        with torch.no_grad():
            loss = theirs(rows, labels=torch.from_numpy(labels[None])).loss.item()
        nll = losses_of(logits, ids[window.first : window.end])
        assert nll.mean() == pytest.approx(loss, abs=1e-4)
        total, count = total + loss * window.scored, count + window.scored
    ours_again = np.concatenate(
        [losses_of(x, ids[w.first : w.end]) for w, x in window_logits(ours, ids, windows)]
    )
    assert len(ours_again) == count
    assert math.exp(ours_again.mean()) == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.parametrize(
    ("count", "context", "stride"), [(50, 16, 5), (50, 16, 16), (49, 16, 16), (10, 16, 4)]
)
def test_windows_are_those_of_the_recipe(count: int, context: int, stride: int) -> None:
    """The loop of transformers' page on perplexity, with the tokens that its labels leave to be scored."""
    wanted, previous = [], 0
    for begin in range(0, count, stride):
        end = min(begin + context, count)
        new = end - previous
        labels = np.arange(begin, end)
        labels[: len(labels) - new] = -100
        scored = labels[1:][labels[1:] != -100]  # a label is compared with the logits before it
        if len(scored):
            wanted.append(Window(begin, end, int(scored[0])))
            assert scored[-1] == end - 1
        previous = end
        if end == count:
            break
    assert sliding_windows(count, context, stride) == wanted
