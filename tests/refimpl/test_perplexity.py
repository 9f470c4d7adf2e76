"""Perplexity and divergence: which tokens are scored, the numbers against a computation of our own, and the file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from refimpl.errors import (
    CheckpointFormatError,
    InputError,
    MissingFileError,
    NumericalError,
    RefimplError,
    ResourceLimitError,
    SaveError,
)
from refimpl.evaluation.base_file import FORMAT, BaseFile, BaseWriter, packed
from refimpl.evaluation.divergence import Divergence
from refimpl.evaluation.scoring import Losses, log_probabilities, losses_of, mean_of, window_logits
from refimpl.evaluation.windows import Window, chunk_windows, sliding_windows
from tests.tiny import tiny_model

IDS = np.random.default_rng(3).integers(3, 40, 61)


def exact_log_probs(model: Any, ids: np.ndarray) -> np.ndarray:
    """ln p of every token after every prefix of `ids`, in float64.  [seq, vocab]"""
    logits = np.asarray(model(ids[None], use_cache=False).logits[0], dtype=np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def exact_losses(model: Any, windows: list[Window]) -> np.ndarray:
    """-ln p of the scored tokens, with one pass for each token."""
    found = []
    for window in windows:
        for place in range(window.first, window.end):
            log_probs = exact_log_probs(model, IDS[window.start : place])[-1]
            found.append(-log_probs[IDS[place]])
    return np.array(found)


def losses(model: Any, windows: list[Window], batch_size: int = 1) -> np.ndarray:
    read = window_logits(model, IDS, windows, batch_size)
    return np.concatenate([losses_of(logits, IDS[w.first : w.end]) for w, logits in read])


# --- which tokens --------------------------------------------------------------------------------


def test_chunks_score_their_second_half() -> None:
    assert chunk_windows(20, 8) == [Window(0, 8, 5), Window(8, 16, 13)]
    assert [w.scored for w in chunk_windows(24, 8)] == [3, 3, 3]  # llama.cpp: n_ctx - n_ctx / 2 - 1
    assert chunk_windows(7, 7) == [Window(0, 7, 4)]
    assert chunk_windows(3, 3) == [Window(0, 3, 2)]


def test_sliding_windows_score_each_token_once() -> None:
    assert sliding_windows(10, 4, 2) == [
        Window(0, 4, 1),
        Window(2, 6, 4),
        Window(4, 8, 6),
        Window(6, 10, 8),
    ]
    for count, context, stride in ((10, 4, 1), (11, 4, 3), (61, 16, 5), (9, 100, 7), (2, 2, 1)):
        windows = sliding_windows(count, context, stride)
        scored = [place for w in windows for place in range(w.first, w.end)]
        assert scored == list(range(1, count))
        assert all(w.end - w.start <= context for w in windows)


def test_a_stride_of_the_whole_context_leaves_out_the_first_of_each_window() -> None:
    assert sliding_windows(9, 4, 4) == [Window(0, 4, 1), Window(4, 8, 5)]
    assert sliding_windows(10, 4, 4)[-1] == Window(8, 10, 9)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (chunk_windows, (7, 8), "7 tokens; allowed: 8 or more"),
        (chunk_windows, (7, 2), "3 or more"),
        (sliding_windows, (7, 4, 5), "1 to the context, 4"),
        (sliding_windows, (7, 4, 0), "stride"),
        (sliding_windows, (7, 1, 1), "2 or more"),
        (sliding_windows, (1, 4, 2), "2 or more"),
    ],
)
def test_windows_that_cannot_be(make: Any, arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(*arguments)


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "windows", [chunk_windows(61, 16), sliding_windows(61, 16, 5)], ids=["chunks", "stride"]
)
def test_losses_are_those_of_one_pass_for_each_token(windows: list[Window], backend: str) -> None:
    exact = exact_losses(tiny_model("numpy", "float64"), windows)
    np.testing.assert_allclose(losses(tiny_model(backend, "float64"), windows), exact, atol=1e-12)
    single = tiny_model(backend)
    for batch_size in (1, 2, 100):
        np.testing.assert_allclose(losses(single, windows, batch_size), exact, atol=2e-5)


def test_only_the_scored_positions_get_logits() -> None:
    model, asked = tiny_model(), []

    def watched(rows: np.ndarray, **options: Any) -> Any:
        asked.append((rows.shape, options["logits_to_keep"].tolist()))
        return model(rows, **options)

    list(window_logits(watched, IDS, sliding_windows(20, 8, 4), 2))
    assert asked == [((1, 8), [0, 1, 2, 3, 4, 5, 6]), ((2, 8), [3, 4, 5, 6]), ((1, 8), [3, 4, 5, 6])]


def test_perplexity_and_its_standard_error() -> None:
    values = np.random.default_rng(0).gamma(2, 1.5, 400)
    running = Losses()
    for part in np.array_split(values, 7):
        running.add(part)
        seen = values[: len(running)]
        error = seen.std(ddof=1) / math.sqrt(len(seen))
        assert running.mean.value == pytest.approx(seen.mean(), rel=1e-12)
        assert running.perplexity.value == pytest.approx(math.exp(seen.mean()), rel=1e-12)
        assert running.perplexity.standard_error == pytest.approx(math.exp(seen.mean()) * error, rel=1e-9)
    np.testing.assert_array_equal(running.values, values)
    one = Losses()
    one.add(np.array([2.0]))
    assert one.perplexity == (pytest.approx(math.exp(2)), None)
    one.add(np.array([5000.0]))
    assert one.perplexity.value == math.inf


def test_a_block_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(1).normal(0, 300, (11, 7)).astype(np.float32)
    whole = next(log_probabilities(logits))[1]
    monkeypatch.setattr("refimpl.evaluation.scoring._BLOCK_NUMBERS", 21)
    blocks = list(log_probabilities(logits))
    assert [len(block) for _, block in blocks] == [3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(np.exp(whole).sum(axis=1), 1, atol=1e-14)
    np.testing.assert_array_equal(
        losses_of(logits, np.arange(11) % 7), -whole[np.arange(11), np.arange(11) % 7]
    )


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny_model()

    def broken(rows: np.ndarray, **options: Any) -> Any:
        output = model(rows, **options)
        output.logits = np.where(rows[0, 0] == IDS[16], np.nan, output.logits)
        return output

    with pytest.raises(NumericalError, match="tokens 16 to 31"):
        list(window_logits(broken, IDS, chunk_windows(61, 16)))


# --- two runs ------------------------------------------------------------------------------------


@pytest.fixture
def two_runs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a base and of a run close to it, and the tokens of the text."""
    draw = np.random.default_rng(5)
    base = draw.normal(0, 3, (200, 50))
    return base, base + draw.normal(0, 0.3, base.shape), draw.integers(0, 50, 200)


def written(path: Path, logits: np.ndarray, targets: np.ndarray) -> BaseFile:
    ids = np.concatenate([[0], targets])
    with BaseWriter(path, ids, [Window(0, len(ids), 1)], logits.shape[1], {"model": "x"}) as writer:
        for rows in np.array_split(np.arange(len(targets)), 3):
            writer.add(logits[rows], losses_of(logits[rows], targets[rows]))
    return BaseFile(path)


def test_divergence(two_runs: Any, tmp_path: Path) -> None:
    base, run, targets = two_runs
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (base, run))
    kl, rows = (p * np.log(p / q)).sum(axis=1), np.arange(200)
    delta = q[rows, targets] - p[rows, targets]
    ln_ratio = -np.log(q[rows, targets]) + np.log(p[rows, targets])
    file = written(tmp_path / "base", base, targets)
    parts = [Divergence.of_rows(run[a:b], file.rows(a, b), targets[a:b]) for a, b in ((0, 90), (90, 200))]
    found = Divergence.joined(parts).report()

    def near(value: float) -> Any:
        return pytest.approx(value, rel=1e-3, abs=1e-6)

    def error(values: np.ndarray) -> Any:
        return near(values.std(ddof=1) / math.sqrt(200))

    assert found["kl_divergence"]["mean"] == near(kl.mean())
    assert found["kl_divergence"]["standard_error"] == error(kl)
    assert found["kl_divergence"]["median"] == near(np.median(kl))
    assert found["kl_divergence"]["99%"] == near(np.percentile(kl, 99))
    assert found["kl_divergence"]["maximum"] == near(kl.max())
    assert found["same_top"]["mean"] == near((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    assert found["delta_p"]["mean"] == near(delta.mean())
    assert found["delta_p"]["25%"] == near(np.percentile(delta, 25))
    assert found["delta_p"]["minimum"] == near(delta.min())
    assert found["rms_delta_p"]["mean"] == near(math.sqrt((delta**2).mean()))
    assert found["ln_perplexity_ratio"] == {"mean": near(ln_ratio.mean()), "standard_error": error(ln_ratio)}
    assert found["perplexity_ratio"]["mean"] == near(math.exp(ln_ratio.mean()))
    of_run, of_base = (math.exp(-np.log(x[rows, targets]).mean()) for x in (q, p))
    assert found["perplexity"]["mean"] == near(of_run)
    assert found["base_perplexity"]["mean"] == near(of_base)
    assert found["perplexity_difference"]["mean"] == near(of_run - of_base)
    assert found["correlation"] == near(
        np.corrcoef(-np.log(q[rows, targets]), -np.log(p[rows, targets]))[0, 1]
    )


def test_the_error_of_a_difference_knows_that_both_runs_read_the_same(two_runs: Any, tmp_path: Path) -> None:
    """The difference of two means that go together is known better than either; resampling says the same."""
    base, run, targets = two_runs
    file = written(tmp_path / "base", base, targets)
    part = Divergence.of_rows(run, file.rows(0, 200), targets)
    found = part.report()
    draw = np.random.default_rng(0)
    again = [draw.integers(0, 200, 200) for _ in range(2000)]
    samples = [math.exp(part.nll[i].mean()) - math.exp(part.base_nll[i].mean()) for i in again]
    assert found["perplexity_difference"]["standard_error"] == pytest.approx(np.std(samples), rel=0.15)
    assert found["perplexity_difference"]["standard_error"] < found["perplexity"]["standard_error"] / 2
    roots = [math.sqrt((part.delta_p[i] ** 2).mean()) for i in again]
    assert found["rms_delta_p"]["standard_error"] == pytest.approx(np.std(roots), rel=0.15)


def test_a_run_beside_its_own_file(two_runs: Any, tmp_path: Path) -> None:
    base, _, targets = two_runs
    file = written(tmp_path / "base", base, targets)
    found = Divergence.of_rows(base, file.rows(0, 200), targets).report()
    assert 0 <= found["kl_divergence"]["minimum"] <= found["kl_divergence"]["maximum"] < 2e-8
    assert found["same_top"]["mean"] == 1
    assert found["delta_p"]["maximum"] == found["ln_perplexity_ratio"]["mean"] == 0


def test_one_token_has_no_standard_error() -> None:
    one = Divergence(np.array([0.1]), np.array([2.0]), np.array([1.5]), np.array([True])).report()
    assert one["kl_divergence"]["standard_error"] is None
    assert one["perplexity_difference"]["standard_error"] is None
    assert one["correlation"] is None
    assert mean_of(np.array([3.0])) == (3.0, None)


# --- the file ------------------------------------------------------------------------------------


def test_the_file_is_as_documented(two_runs: Any, tmp_path: Path) -> None:
    base, _, targets = two_runs
    path = tmp_path / "base"
    file = written(path, base, targets)
    with safe_open(path, "numpy") as opened:
        assert opened.metadata() == {FORMAT: "1", "model": "x"}
    stored = load_file(path)
    assert {name: (str(a.dtype), a.shape) for name, a in stored.items()} == {
        "ids": ("int32", (201,)),
        "windows": ("int64", (1, 3)),
        "nll": ("float64", (200,)),
        "top": ("int32", (200,)),
        "lowest": ("float32", (200,)),
        "step": ("float32", (200,)),
        "log_probs": ("uint16", (200, 50)),
    }
    levels = stored["lowest"][:, None] + stored["step"][:, None] * stored["log_probs"].astype(np.float64)
    exact = next(log_probabilities(base))[1]
    assert np.abs(levels - exact).max() < 24 / 65535
    np.testing.assert_array_equal(stored["top"], base.argmax(axis=1))
    rows = file.rows(10, 20)
    np.testing.assert_allclose(np.exp(rows.log_probs).sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(rows.log_probs, exact[10:20], atol=3e-4)
    np.testing.assert_array_equal(file.ids, np.concatenate([[0], targets]))
    assert file.windows == [Window(0, 201, 1)]
    assert file.vocab_size == 50


def test_what_is_far_below_the_likeliest_is_cut_off() -> None:
    log_probs = np.array([[0.0, -10.0, -24.5, -1000.0], [-1.5, -1.5, -1.5, -1.5]])
    lowest, step, levels = packed(log_probs)
    back = lowest[:, None] + step[:, None] * levels
    np.testing.assert_allclose(back, [[0, -10, -24, -24], [-1.5] * 4], atol=4e-4)


def test_an_error_leaves_the_old_file(two_runs: Any, tmp_path: Path) -> None:
    base, _, targets = two_runs
    path = tmp_path / "base"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with BaseWriter(path, IDS, [Window(0, 61, 1)], 50, {}) as writer:
            writer.add(base[:60], losses_of(base[:60], targets[:60]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["base"]
    written(path, base, targets)
    assert os.listdir(tmp_path) == ["base"]


def test_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "no" / "base"):
        with pytest.raises(SaveError), BaseWriter(path, IDS, [Window(0, 61, 1)], 50, {}):
            pass
    huge = [Window(0, 61, 1)] * 1000
    with (
        pytest.raises(ResourceLimitError, match="--chunks"),
        BaseWriter(tmp_path / "b", IDS, huge, 1 << 40, {}),
    ):
        pass
    assert os.listdir(tmp_path) == []


def break_file(path: Path, **changes: Any) -> None:
    tensors, metadata = load_file(path), {FORMAT: "1"}
    metadata |= changes.pop("metadata", {})
    tensors |= {name: value for name, value in changes.items() if value is not None}
    kept = {name: a for name, a in tensors.items() if name not in changes or changes[name] is not None}
    save_file(kept, path, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {FORMAT: "2"}}, "not a file that --kl-base has written"),
        ({"top": None}, "top: a tensor is missing"),
        ({"nll": np.zeros(200, dtype=np.float32)}, "nll: a tensor is missing or of another kind"),
        ({"nll": np.zeros(199)}, "do not fit together"),
        ({"log_probs": np.zeros((199, 50), dtype=np.uint16)}, "do not fit together"),
        ({"windows": np.array([[0, 201]])}, "windows: a tensor is missing or of another kind"),
        ({"windows": np.array([[0, 202, 2]])}, "do not fit together"),
        ({"windows": np.array([[1, 201, 1]])}, "do not fit together"),
        ({"ids": np.full(201, 50, dtype=np.int32)}, "outside the vocabulary"),
        ({"ids": np.full(201, -1, dtype=np.int32)}, "outside the vocabulary"),
    ],
)
def test_damaged_files(two_runs: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base, _, targets = two_runs
    written(tmp_path / "base", base, targets)
    break_file(tmp_path / "base", **changes)
    with pytest.raises(CheckpointFormatError, match=message):
        BaseFile(tmp_path / "base")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        BaseFile(tmp_path / "none")
    (tmp_path / "text").write_text("no such file" * 50)
    with pytest.raises(RefimplError):
        BaseFile(tmp_path / "text")
