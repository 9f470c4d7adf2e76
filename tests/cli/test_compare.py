"""`refimpl compare`: the table, the reports, and the three exit codes."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from refimpl import AutoModelForCausalLM
from refimpl.conformance.trace import Trace
from refimpl.conformance.variants import planted, run_copy
from tests.cli.test_main import error_of


@pytest.fixture(scope="module")
def pair(model, tmp_path_factory):
    """A right trace, and one with a mistake."""
    folder = tmp_path_factory.mktemp("traces")
    loaded = AutoModelForCausalLM.from_pretrained(model, backend="numpy")
    with loaded.trace() as trace:
        loaded(np.arange(3, 14)[None])
    trace.save(folder / "a.safetensors")
    made = planted(loaded, trace.calls, "interleaved-rotary")
    run_copy(made).save(folder / "wrong.safetensors")
    return folder


def test_a_right_run(inside, model, pair, tmp_path):
    arguments = ("--ids", "3 4 5 6 7 8 9 10 11 12 13", "--dtype", "float64", "-q")
    inside("trace", model, *arguments, "-o", tmp_path / "b.safetensors")
    result = inside("compare", pair / "a.safetensors", tmp_path / "b.safetensors")
    assert result.returncode == 0, result.stdout.decode()
    text = result.stdout.decode()
    assert "departs" not in text
    assert "variant" not in text
    assert "B is taken for: float64" in text
    assert result.stderr.decode().startswith("57 steps: ")


def test_a_mistake_is_named(inside, pair):
    result = inside("compare", pair / "a.safetensors", pair / "wrong.safetensors")
    assert result.returncode == 1
    text = result.stdout.decode()
    step = "gpt_neox_japanese.layers.0.attention.query_rotated"
    (marked,) = [line for line in text.splitlines() if line.startswith("→")]
    assert marked.split()[1:3] == [step, "departs"]
    assert f"{step} matches the variant interleaved-rotary to " in text
    assert "KL " in text
    assert "top-1 " in text
    assert f"first departure: {step}" in result.stderr.decode()
    every = inside("compare", pair / "a.safetensors", pair / "wrong.safetensors", "--all", "-q")
    assert every.stderr == b""
    assert every.stdout.count(b"\n") > text.count("\n") + 10


def test_the_reports(inside, pair, tmp_path):
    reports = ("--json", "--html", tmp_path / "r.html", "--junit", tmp_path / "r.xml", "-q")
    result = inside("compare", pair / "a.safetensors", pair / "wrong.safetensors", *reports)
    assert result.returncode == 1
    assert result.stderr == b""
    report = json.loads(result.stdout)
    assert report["mistake"]["names"] == ["interleaved-rotary"]
    assert report["mistake"]["everything"]
    assert len(report["steps"]) == 57
    assert ElementTree.parse(tmp_path / "r.xml").getroot().get("tests") == "57"
    assert "interleaved-rotary" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_without_the_model(inside, pair, model, tmp_path):
    a, wrong = pair / "a.safetensors", pair / "wrong.safetensors"
    assert "tolerance for float32" in inside("compare", a, wrong, "--no-model").stdout.decode()
    trace = Trace.load(a)
    trace.about["model"] = str(tmp_path / "gone")
    trace.save(tmp_path / "a.safetensors")
    result = inside("compare", tmp_path / "a.safetensors", wrong)
    assert result.returncode == 1
    assert "the model of the trace is not used" in result.stdout.decode()
    shutil.copytree(model, tmp_path / "moved")
    result = inside("compare", tmp_path / "a.safetensors", wrong, "-m", tmp_path / "moved")
    assert "interleaved-rotary" in result.stdout.decode()


def test_no_variants(inside, pair):
    result = inside("compare", pair / "a.safetensors", pair / "wrong.safetensors", "--no-variants")
    assert result.returncode == 1
    assert "variant" not in result.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrong.safetensors", "nowhere"], "no such file"),
        (["nowhere", "wrong.safetensors"], "nowhere"),
        (["cut.safetensors", "a.safetensors"], "cut.safetensors"),
        (["a.safetensors", "cut.safetensors"], "cut.safetensors"),
        (["a.safetensors", "plain.safetensors"], "no name is a step"),
        (["plain.safetensors", "a.safetensors"], "not a trace"),
        (["a.safetensors", "wrong.safetensors", "--dtype", "int8"], "unknown precision"),
        (["a.safetensors", "wrong.safetensors", "--names", "nothing"], "no such step"),
        (["a.safetensors", "wrong.safetensors", "--map", "nowhere.json"], "nowhere.json"),
        (["a.safetensors", "wrong.safetensors", "--model", "."], "config.json"),
    ],
)
def test_wrong_calls_end_with_2(inside, pair, monkeypatch, arguments, message):
    from safetensors.numpy import save_file

    monkeypatch.chdir(pair)
    whole = (pair / "a.safetensors").read_bytes()
    (pair / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"foo": np.ones(2)}, pair / "plain.safetensors")
    assert message in error_of(inside("compare", *arguments), 2)


def test_a_model_that_does_not_fit_the_memory_is_not_used(inside, pair, monkeypatch):
    from refimpl.conformance import oracle
    from refimpl.errors import ResourceLimitError

    def too_large(*_):
        raise ResourceLimitError("too large")

    monkeypatch.setattr(oracle.Oracle, "load", too_large)
    arguments = ("compare", pair / "a.safetensors", pair / "wrong.safetensors")
    result = inside(*arguments)
    assert result.returncode == 1
    assert "the model of the trace is not used (too large)" in result.stdout.decode()
    named = Trace.load(pair / "a.safetensors").about["model"]
    assert "too large" in error_of(inside(*arguments, "--model", named), 2)
