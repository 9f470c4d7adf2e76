"""`refimpl bench model --vs transformers` with the real transformers: the same model, and the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.cli.bench import model_shapes
from tests.tiny import save_tiny

# Three layers of a tiny model say the same as a large one; only its speed means nothing.
SCRIPT = """
import json, sys
from refimpl import cli
from refimpl.cli.bench import model_limits, model_shapes
model_limits.LIMITS_SCALE.update(bytes=1 << 20, size=32, repeat=1)
model_shapes.SHAPES["tiny"] = json.loads(sys.argv[1])
sys.exit(cli.main(sys.argv[2:]))
"""
TINY = {**model_shapes.SHAPES["pythia-70m"], "hidden_size": 64, "intermediate_size": 256, "vocab_size": 50}


def bench(*arguments: str | Path) -> dict:
    fixed = [
        "bench",
        "model",
        "-q",
        "-t",
        "1",
        "-r",
        "2",
        "-p",
        "9",
        "-n",
        "7",
        "--vs",
        "transformers",
        "--json",
    ]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(TINY), *fixed, *arguments], capture_output=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (0, b"")
    (one,) = json.loads(result.stdout)["results"]
    return one


def test_the_same_folder_gives_the_same_tokens(tmp_path):
    folder = save_tiny(tmp_path / "model", vocab_size=300)
    one = bench("--model", folder, "--depth", "0,20", "--peer-dtype", "float32")
    (peer,) = one["peers"]
    assert peer["same_tokens"] == [1, 7, 7]
    assert peer["parameters"] == one["ours"]["parameters"]
    assert peer["weight_bytes"] == 4 * peer["parameters"]
    assert {"torch", "transformers"} == peer["versions"].keys()
    for test in one["tests"]:
        (against,) = test["against"]
        assert (len(against["seconds"]), against["failed"]) == (2, None)
        assert against["ratio"]["median"] > 0


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt_neox_japanese"])
def test_random_weights_of_a_shape(model_type, monkeypatch):
    monkeypatch.setitem(TINY, "model_type", model_type)
    if model_type == "gpt_neox_japanese":
        monkeypatch.delitem(TINY, "intermediate_size")  # which this type has no setting for
    one = bench("--shape", "tiny")
    assert [peer["weight_dtype"] for peer in one["peers"]] == ["float32", "bfloat16"]
    assert [peer["parameters"] for peer in one["peers"]] == [one["ours"]["parameters"]] * 2
    assert [peer["same_tokens"] for peer in one["peers"]] == [None, None]
    assert all(against["failed"] is None for test in one["tests"] for against in test["against"])
