"""`refimpl trace`: what is written, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refimpl import AutoModelForCausalLM, AutoTokenizer
from refimpl.conformance.trace import Trace
from tests.cli.test_main import error_of

TEXT = "吾輩は猫である。"


def traced(inside, tmp_path: Path, *arguments) -> Trace:
    result = inside("trace", *arguments, "-o", tmp_path / "trace.safetensors")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode() == f"{tmp_path / 'trace.safetensors'}\n"
    return Trace.load(tmp_path / "trace.safetensors")


def test_a_text(inside, model, tmp_path):
    found = traced(inside, tmp_path, model, "--text", TEXT, "--backend", "numpy", "--dtype", "float64")
    ids = AutoTokenizer.from_pretrained(model).encode(TEXT)
    assert found.calls[0].input_ids.tolist() == [ids]
    loaded = AutoModelForCausalLM.from_pretrained(model, backend="numpy", dtype="float64")
    assert (found["logits"] == loaded([ids]).logits).all()
    assert found.about["texts"] == [TEXT]
    assert found.about["model"] == str(model)
    assert found.about["weight_dtype"] is None
    assert len(found) == 57


def test_the_text_may_come_from_a_file_or_a_pipe(inside, model, tmp_path):
    (tmp_path / "text").write_text(TEXT + "\n", encoding="utf-8")
    names = ("--names", "logits")
    first = traced(inside, tmp_path, model, "-f", tmp_path / "text", *names)
    result = inside("trace", model, *names, "-o", tmp_path / "b", stdin=TEXT.encode())
    assert result.returncode == 0
    assert (Trace.load(tmp_path / "b")["logits"] == first["logits"]).all()


def test_ids_names_and_pieces(inside, model, tmp_path):
    arguments = ("--ids", "3, 4 5", "--ids", "6 7 8", "--names", "logits,*.1.mlp.act", "--feed", "2,1")
    found = traced(inside, tmp_path, model, *arguments)
    layer = "gpt_neox_japanese.layers.1.mlp.act"
    assert list(found) == [layer, "logits", f"{layer}@1", "logits@1"]
    assert found["logits@1"].shape[:2] == (2, 1)
    assert [call.past for call in found.calls] == [0, 2]


def test_padding(inside, model, tmp_path):
    texts = ("--text", "猫", "--text", TEXT, "--names", "logits")
    right = traced(inside, tmp_path, model, *texts).calls[0]
    assert right.attention_mask[0].tolist() == [1] + [0] * (right.seq - 1)
    assert right.counts_on()
    left = traced(inside, tmp_path, model, *texts, "--padding-side", "left", "--positions", "mask")
    assert left.calls[0].attention_mask[0].tolist() == [0] * (right.seq - 1) + [1]
    assert (left.calls[0].position_ids[0] == 0).all()
    alone = traced(inside, tmp_path, model, "--text", "猫", "--names", "logits")
    assert np.allclose(left["logits"][0, -1], alone["logits"][0, -1], atol=1e-4)


def test_json(inside, model, tmp_path):
    arguments = ("--ids", "3 4", "--weight-dtype", "float16", "--json", "-q")
    result = inside("trace", model, *arguments, "-o", tmp_path / "t.safetensors")
    report = json.loads(result.stdout)
    assert result.stderr == b""
    assert report["bytes"] == (tmp_path / "t.safetensors").stat().st_size
    assert report["about"]["weight_dtype"] == "float16"
    assert report["tensors"]["logits"][:2] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "3 x"], "not token ids"),
        (["--ids", ""], "not token ids"),
        (["--ids", "3", "--text", "a"], "a text or ids, not both"),
        (["--ids", "99999999"], "outside the vocabulary"),
        (["--text", ""], "the text is empty"),
        (["--ids", "3 4", "--feed", "1"], "not a way to divide"),
        (["--ids", "3 4", "--feed", "0,2"], "not a way to divide"),
        (["--ids", "3 4", "--names", "logitz"], "Did you mean logits?"),
        (["--ids", "3 4", "--dtype", "int3"], "int3"),
    ],
)
def test_wrong_calls(inside, model, tmp_path, arguments, message):
    result = inside("trace", model, *arguments, "-o", tmp_path / "trace.safetensors")
    assert message in error_of(result, 2)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_needed(inside, model):
    assert "-o" in error_of(inside("trace", model, "--ids", "3"), 2)
    assert "empty" in error_of(inside("trace", model, "--ids", "3", "-o", ""), 2)
