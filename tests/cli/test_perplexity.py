"""`refimpl perplexity`: the numbers that it shows, two runs, and what is refused."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import AutoModelForCausalLM, AutoTokenizer
from tests.cli.conftest import Refimpl, write_model

TEXT = "吾輩は猫である。名前は無い、猫で、あるは1" * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n", encoding="utf-8")
    return path


def report(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def exact(model: Path, windows: list[tuple[int, int, int]]) -> tuple[float, int]:
    """The mean of -ln p over the scored tokens of (start, end, first), in float64, and the number of tokens."""
    ids = np.array(AutoTokenizer.from_pretrained(model).encode(TEXT))
    network = AutoModelForCausalLM.from_pretrained(model, dtype="float64", backend="numpy")
    losses = []
    for start, end, first in windows:
        logits = network(ids[None, start:end]).logits[0]
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses += [-log_probs[place - 1 - start, ids[place]] for place in range(first, end)]
    return float(np.mean(losses)), len(ids)


def test_pieces(inside: Refimpl, model: Path, text: Path) -> None:
    found = report(
        inside("perplexity", text, "--model", model, "--context", "64", "--json", "--dtype", "float64")
    )
    count = found["tokens"] // 64
    mean, tokens = exact(model, [(64 * i, 64 * i + 64, 64 * i + 33) for i in range(count)])
    assert found["nll"] == pytest.approx(mean, abs=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-9)
    assert (found["method"], found["context"], found["stride"]) == ("chunks", 64, None)
    assert (found["windows"], found["tokens"], found["scored"]) == (count, tokens, 31 * count)
    assert (found["characters"], found["bytes"]) == (len(TEXT), len(TEXT.encode()))
    assert found["bits_per_byte"] == pytest.approx(mean * tokens / math.log(2) / len(TEXT.encode()))
    assert found["bits_per_character"] == pytest.approx(mean * tokens / math.log(2) / len(TEXT))


def test_windows_that_slide(inside: Refimpl, model: Path, text: Path) -> None:
    arguments = ("--model", model, "-c", "64", "--stride", "48", "--json", "--dtype", "float64")
    found = report(inside("perplexity", text, *arguments))
    windows, read = [], 0
    for start in range(0, found["tokens"], 48):
        end = min(start + 64, found["tokens"])
        windows.append((start, end, max(read, 1)))
        read = end
        if end == found["tokens"]:
            break
    mean, tokens = exact(model, windows)
    assert found["nll"] == pytest.approx(mean, abs=1e-9)
    assert (found["method"], found["stride"], found["scored"]) == ("stride", 48, tokens - 1)
    batched = report(inside("perplexity", text, *arguments, "--batch", "3"))
    assert batched["nll"] == pytest.approx(mean, abs=1e-9)
    first = report(inside("perplexity", text, *arguments, "--chunks", "2"))
    assert (first["windows"], first["scored"]) == (2, 64 - 1 + 48)


def test_what_is_shown(inside: Refimpl, model: Path, text: Path) -> None:
    done = inside("perplexity", text, "--model", model, "--context", "64")
    lines = done.stdout.decode().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "perplexity",
        "bits per byte",
        "bits per character",
        "scored",
    ]
    assert " ± " in lines[0]
    assert "pieces of 64 tokens" in done.stderr.decode()
    assert "tokens/s" in done.stderr.decode()
    quiet = inside("perplexity", text, "--model", model, "--context", "64", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")


def test_ways_to_name_the_text(inside: Refimpl, model: Path, text: Path) -> None:
    options = ("--model", model, "--context", "64", "--json", "--quiet")
    wanted = report(inside("perplexity", text, *options))
    for arguments, stdin in ((("-f", text), b""), (("-",), text.read_bytes()), ((), text.read_bytes())):
        found = report(inside("perplexity", *arguments, *options, stdin=stdin))
        assert found["nll"] == wanted["nll"]


def test_two_runs(inside: Refimpl, model: Path, text: Path, tmp_path: Path) -> None:
    saved = tmp_path / "base.kl"
    options = ("--model", model, "--json")
    base = report(inside("perplexity", text, *options, "--context", "64", "--kl-base", saved))
    assert base["kl_base"] == str(saved)
    for named in ((), (text,)):
        same = report(inside("perplexity", *named, *options, "--kl-divergence", saved, "--batch", "2"))
        assert same["nll"] == pytest.approx(base["nll"], abs=1e-6)
        assert same["bits_per_byte"] == pytest.approx(base["bits_per_byte"], abs=1e-6)
        assert same["kl_divergence"]["kl_divergence"]["maximum"] < 1e-7
        assert same["kl_divergence"]["same_top"]["mean"] == 1
        assert same["kl_divergence"]["base"]["dtype"] == "float32"
    coarse = report(inside("perplexity", *options, "--kl-divergence", saved, "--weight-dtype", "nf4"))
    assert coarse["kl_divergence"]["kl_divergence"]["mean"] > 1e-4
    assert coarse["kl_divergence"]["base_perplexity"]["mean"] == pytest.approx(base["perplexity"])
    assert coarse["kl_divergence"]["perplexity"]["mean"] == pytest.approx(coarse["perplexity"])
    shown = inside("perplexity", "--model", model, "--kl-divergence", saved).stdout.decode()
    for label in (
        "KL divergence, median",
        "KL divergence, 99%",
        "delta p, root mean square",
        "same top token",
    ):
        assert label in shown


def test_a_text_of_other_tokens(inside: Refimpl, model: Path, text: Path, tmp_path: Path) -> None:
    saved = tmp_path / "base.kl"
    report(inside("perplexity", text, "--model", model, "--context", "64", "--kl-base", saved, "--json"))
    text.write_text(TEXT + "猫", encoding="utf-8")
    done = inside("perplexity", text, "--model", model, "--kl-divergence", saved)
    assert done.returncode == 2
    assert "other tokens" in done.stderr.decode()
    other = write_model(tmp_path / "other", vocab_size=400)
    done = inside("perplexity", "--model", other, "--kl-divergence", saved)
    assert "different vocabularies" in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", "0"), "--context"),
        (("--stride", "-1"), "--stride"),
        (("--batch", "0"), "--batch"),
        (("--chunks", "0"), "--chunks"),
        (("--context", "2"), "3 or more"),
        (("--context", "16", "--stride", "17"), "1 to the context, 16"),
        (("--context", "512"), "Make the context shorter"),
        (("--kl-base", "a", "--kl-divergence", "b"), "Leave these options out"),
        (("--context", "9", "--kl-divergence", "b"), "--context"),
        (("--strid", "9"), "did you mean --stride"),
        (("-f", "x"), "two texts"),
    ],
)
def test_what_is_refused(
    inside: Refimpl, model: Path, text: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = inside("perplexity", text, "--model", model, *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert done.stdout == b""


def test_texts_that_are_none(inside: Refimpl, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    done = inside("perplexity", tmp_path / "empty", "--model", model)
    assert (done.returncode, b"0 tokens" in done.stderr) == (2, True)
    assert inside("perplexity", tmp_path / "none", "--model", model).returncode == 1
    done = inside("perplexity", "--model", model, "--kl-divergence", tmp_path / "none")
    assert done.returncode == 1


def test_an_interrupted_run_shows_what_it_has(
    inside: Refimpl, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refimpl.evaluation.scoring import Losses

    add = Losses.add

    def interrupted(self: Losses, nll: np.ndarray) -> None:
        if len(self) > 40:
            raise KeyboardInterrupt
        add(self, nll)

    monkeypatch.setattr(Losses, "add", interrupted)
    done = inside("perplexity", text, "--model", model, "--context", "64", "--json")
    assert done.returncode == 130
    found = json.loads(done.stdout)
    assert (found["interrupted"], found["windows"], found["scored"]) == (True, 2, 62)
    saved = tmp_path / "base.kl"
    done = inside("perplexity", text, "--model", model, "--context", "64", "--kl-base", saved)
    assert done.returncode == 130
    assert "base" not in "".join(os.listdir(tmp_path))


def test_a_terminal_shows_the_value_so_far(
    inside: Refimpl, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    inside("perplexity", text, "--model", model, "--context", "64")
    assert "perplexity " in shown.getvalue()
    assert "piece" in shown.getvalue()
