"""`refimpl bench model`: what its record says of a model, and what it refuses.

No test looks at how fast anything was.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

import pytest

from refimpl.cli.bench import model_cases, model_limits, model_request, model_shapes, our_model
from refimpl.cli.bench.model_cases import Rate
from refimpl.cli.bench.model_sides import Test as Case
from tests.cli.test_main import error_of
from tests.tiny import tiny_model, tiny_neox

LIMITS = {"bytes": 1 << 20, "size": 32, "repeat": 2}

# Of the model of conftest.py.
LAYERS = 3

TINY = {
    "model_type": "gpt_neox",
    "vocab_size": 40,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is measured in no time, and a shape that is."""
    monkeypatch.setattr(model_limits, "LIMITS_SCALE", LIMITS)
    monkeypatch.setitem(model_shapes.SHAPES, "tiny", TINY)


@pytest.fixture
def bench(inside):
    """A short benchmark with one thread."""

    def call(*arguments: str | Path):
        return inside(
            "bench",
            "model",
            "-q",
            "-p",
            "6",
            "-n",
            "3",
            "-r",
            "2",
            "-t",
            "1",
            "--backend",
            "numpy",
            *arguments,
        )

    return call


def record(result, code: int = 0) -> dict:
    assert result.returncode == code, result.stderr.decode()
    assert result.stdout.count(b"\n") == 1
    return json.loads(result.stdout)


# ---- what is refused


def test_the_subject(inside):
    assert "\n  model      reading a prompt and writing" in inside("bench", "--help").stdout.decode()
    assert b"--weight-dtype" in inside("bench", "model", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shape", "2.7"], "--shape has an unknown name; found '2.7'; allowed: 2.7b, pythia-70m"),
        (["--shape", "pythia-70"], "Did you mean pythia-70m?"),
        (["--shape", "tiny", "--model", "x"], "give --model or --shape, not both"),
        (["--md", "--json"], "give --md or --json, not both"),
        (["-p", "0", "-n", "0,0"], "there is nothing to measure"),
        (["-p", "1e3"], "--n-prompt has something else than a number; found '1e3'"),
        (["-n", "8,,9"], "--n-gen has something else than a number; found ''"),
        (["--depth", "-1"], "--depth has something else than a number; found '-1'; allowed: whole numbers from 0"),
        (["-t", "0"], "--threads has something else than a number; found '0'; allowed: whole numbers from 1"),
        (["-r", "0"], "--repetitions is too small; found 0"),
        (["--weight-dtype", "float16,q4_0"], "--weight-dtype has an unknown name; found 'q4_0'; allowed: float64"),
        (["--backend", "numpy,torch"], "unknown backend; found 'torch'"),
        (["--dtype", "float31"], "does not compute in this dtype; found 'float31'"),
        (["--shape", "tiny", "-n", "40", "-d", "30"], "tg40 @ d30: a test is longer than the model's context"),
        (["--vs", "vllm"], "--vs names an unknown peer; found 'vllm'; allowed: transformers, llama.cpp"),
        (["--vs", "llama.cpp"], "--vs llama.cpp needs a model in its own format. Name one with --gguf FILE."),
        (["--vs", "transformers", "--peer-python", "/no/such/python"], "--peer-python: this Python cannot be started"),
    ],
)  # fmt: skip
def test_wrong_calls(bench, arguments, expected):
    assert expected in error_of(bench(*arguments), 2)


def test_peers_that_are_not_there(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "llama-bench is not on the PATH" in error_of(bench("--vs", "llama.cpp", "--gguf", "a.gguf"), 1)
    monkeypatch.setattr(model_request, "_ARE_THERE", "import sys; sys.exit(1)")
    message = error_of(bench("--vs", "transformers"), 2)
    assert "--vs transformers: transformers and torch are not both installed for this Python" in message
    monkeypatch.setattr(model_cases.participants, "PEERS", tmp_path)
    assert "the script of this peer is not here" in error_of(bench("--vs", "transformers"), 1)


def test_what_does_not_fit_is_refused_before_a_process_starts(bench, monkeypatch):
    monkeypatch.setattr(
        model_cases, "Participant", lambda *_, **__: pytest.fail("a process would have been started")
    )
    monkeypatch.setattr(
        model_limits, "Participant", lambda *_, **__: pytest.fail("a process would have been started")
    )
    monkeypatch.setattr("refimpl.memory.available_memory", lambda: 10**9)
    message = error_of(bench("--shape", "2.7b", "--weight-dtype", "float16"), 1)
    assert "this needs 5.2 GB of memory; found 800.0 MB at most" in message
    assert "Nothing was allocated" in message


def test_the_peer_needs_memory_too(bench, monkeypatch):
    """The tiny model takes 0.8 MB in float32; there is room for one of them, not for two."""
    monkeypatch.setattr(model_request, "_check_installed", lambda *_: None)
    monkeypatch.setattr("refimpl.memory.available_memory", lambda: 1_800_000)
    message = error_of(bench("--shape", "tiny", "--vs", "transformers"), 1)
    assert "weights of GPTNeoXForCausalLM and a peer's: this needs" in message
    assert bench("--shape", "tiny").returncode == 0


# ---- what the record says


def test_the_record(bench, model):
    value = record(bench("--model", model, "--json", "--depth", "0,5", "--weight-dtype", "float32"))
    assert (value["benchmark"], value["model"], value["random_weights"]) == ("model", str(model), False)
    assert value["command"][:5] == ["refimpl", "bench", "model", "-q", "-p"]
    assert value["machine"]["cpu"]
    assert value["date"].endswith("+00:00")
    assert value["settings"]["tests"] == ["pp6", "tg3", "tg3 @ d5"]
    (limits,) = value["limits"]
    assert (limits["threads"], limits["bytes"]) == (1, LIMITS["bytes"])
    assert len(limits["read_bytes_per_s"]) == 2 * LIMITS["repeat"]  # before and after the models
    assert limits["best_gemm_flop_per_s"] == max(limits["gemm_flop_per_s"])

    (one,) = value["results"]
    ours = one["ours"]
    assert (ours["backend"], ours["dtype"], ours["weight_dtype"]) == ("numpy", "float32", "float32")
    assert ours["weight_bytes"] == 4 * ours["parameters"]
    assert {"refimpl", "numpy", "blas"} <= ours["versions"].keys()
    assert min(ours["import_s"], ours["load_s"], ours["first_token_s"]) > 0
    if sys.platform == "linux":
        assert ours["memory_bytes"] > 0
    assert (one["failed"], one["peers"], one["profiles"]) == (None, [], {})
    for test, tokens in zip(one["tests"], (6, 3, 3), strict=True):
        assert (test["tokens"], len(test["seconds"]), test["against"]) == (tokens, 2, [])
        rates = [tokens / seconds for seconds in test["seconds"]]
        rate = test["tokens_per_s"]
        assert rate["mean"] == pytest.approx(statistics.fmean(rates), rel=1e-4)
        assert rate["best"] == pytest.approx(max(rates), rel=1e-4)
        assert rate["deviation"] == pytest.approx(statistics.stdev(rates), rel=1e-2, abs=1e-3 * rate["mean"])
        read = rate["mean"] * test["bytes"] / limits["best_read_bytes_per_s"]
        assert test["read_share"] == pytest.approx(read, rel=1e-4)
        gemm = rate["mean"] * test["flop"] / limits["best_gemm_flop_per_s"]
        assert test["gemm_share"] == pytest.approx(gemm, rel=1e-4)


def test_what_a_token_costs():
    """By hand, for 3 layers, hidden 24, and an MLP twice as wide; the head is the embedding."""
    facts = our_model.facts(tiny_model())
    layers = 3 * 24 * (3 * 24 + 24 + 2 * 24 + 2 * 24)
    head = 40 * 24
    assert (facts["layer_weights"], facts["head_weights"]) == (layers, head)
    cases = [Case.prefill(6), Case.decoding(3, 0), Case.decoding(3, 5)]
    prompt, early, late = (model_cases.planned(case, facts) for case in cases)
    assert prompt.flop == 2 * (layers + head / 6)  # one token of six goes through the head
    assert early.flop == late.flop == 2 * (layers + head)
    weights, per_token = facts["weight_bytes"], 4 * 2 * 3 * 24
    assert facts["read_bytes"] == weights == 4 * facts["parameters"]
    assert prompt.bytes == weights / 6
    assert early.bytes == weights + per_token * 2  # of three tokens the cache holds 1, 2 and 3
    assert late.bytes == weights + per_token * 7


def test_an_untied_embedding_is_not_read_as_a_whole():
    facts = our_model.facts(tiny_neox())
    assert facts["read_bytes"] == facts["weight_bytes"] - 39 * 24 * 4  # a row of 40 is looked up


def test_every_form_of_weights(bench):
    forms = "float32,float16,bfloat16,int8,nf4"
    value = record(bench("--shape", "tiny", "--json", "--weight-dtype", forms))
    assert value["random_weights"] is True
    assert value["model"] == "tiny"
    by_form = {one["weight_dtype"]: one["ours"] for one in value["results"]}
    assert list(by_form) == forms.split(",")
    assert all(ours["weight_dtype"] == form for form, ours in by_form.items())
    layers, embeddings = by_form["float32"]["layer_weights"], 2 * 40 * 128
    vectors = 4 * (by_form["float32"]["parameters"] - layers - embeddings)
    assert by_form["float32"]["weight_bytes"] == vectors + 4 * (layers + embeddings)
    assert by_form["float16"]["weight_bytes"] == vectors + 2 * (layers + embeddings)
    assert by_form["bfloat16"]["weight_bytes"] == vectors + 2 * (layers + embeddings)
    rows = 2 * (3 * 128 + 128 + 256 + 128)
    assert by_form["int8"]["weight_bytes"] == vectors + layers + 4 * rows + 4 * embeddings
    code = 16 * 4 * 8  # each matrix has its table of 16 values
    assert by_form["nf4"]["weight_bytes"] == vectors + layers // 2 + layers // 64 * 4 + code + 4 * embeddings


def test_lists_of_threads_and_backends(bench):
    value = record(
        bench("--shape", "tiny", "--json", "-t", "2,1", "--backend", "numpy,numpy", "-p", "0", "-r", "1")
    )
    assert [one["threads"] for one in value["limits"]] == [2, 1]
    assert [(one["threads"], one["ours"]["threads"]) for one in value["results"]] == [(2, 2), (1, 1)]
    assert [[test["test"] for test in one["tests"]] for one in value["results"]] == [["tg3"]] * 2


def test_half_precision_means_half_weights(bench, model):
    (one,) = record(bench("--model", model, "--dtype", "float16", "--json"))["results"]
    assert (one["ours"]["dtype"], one["ours"]["weight_dtype"]) == ("float32", "float16")


def test_the_profile(bench, model):
    (one,) = record(bench("--model", model, "--profile", "--json"))["results"]
    assert list(one["profiles"]) == ["pp6", "tg3"]
    calls = {
        "embedding": 1,
        "layer_norm": 2 * LAYERS + 1,
        "linear": 4 * LAYERS + 1,
        "rotary": 2 * LAYERS,
        "attention": LAYERS,
        "activation": LAYERS,
    }
    for test, passes in (("pp6", 1), ("tg3", 3)):
        profile = one["profiles"][test]
        found = {operation["name"]: operation["calls"] for operation in profile["operations"]}
        assert found == {name: count * passes for name, count in calls.items()}
        parts = [*profile["operations"], profile["rest"]]
        assert math.isclose(sum(part["seconds"] for part in parts), profile["seconds"], rel_tol=1e-3)
        assert math.isclose(sum(part["share"] for part in parts), 1, rel_tol=1e-3)


# ---- for people


def test_tables(bench, model):
    text = bench("--model", model, "--profile").stdout.decode()
    where, tests, loading, *profiles = text.split("\n\n")
    assert where.startswith(f"{model}\n")
    assert "\n1 thread: reading memory " in where
    assert "\nrefimpl: refimpl " in where
    head, prompt, made = tests.splitlines()
    assert " ".join(head.split()) == "model size params backend threads test t/s best achieved of limit"
    assert "gpt_neox_japanese float32" in prompt
    assert " pp6 " in prompt
    assert " ± " in prompt
    assert prompt.endswith("% of GEMM")
    assert " tg3 " in made
    assert made.endswith("% of reading")
    assert loading.splitlines()[0].split()[-1] == "memory"
    assert [part.splitlines()[0] for part in profiles] == [
        f"numpy float32, 1 thread, {test}: where the time goes" for test in ("pp6", "tg3")
    ]
    assert [line.split()[0] for line in profiles[0].splitlines()[-2:]] == ["rest", "together"]


def test_markdown(bench, model):
    lines = bench("--model", model, "--md").stdout.decode().splitlines()
    first = lines.index(
        "| model | size | params | backend | threads | test | t/s | best | achieved | of limit |"
    )
    assert lines[first + 1] == "| --- | ---: | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: |"
    assert [line.split(" | ")[5] for line in lines[first + 2 : first + 4]] == ["pp6", "tg3"]
    assert lines[0] == f"- {model}"


def test_progress_goes_to_standard_error(inside, model):
    result = inside(
        "bench",
        "model",
        "--model",
        model,
        "-p",
        "0",
        "-n",
        "2",
        "-r",
        "1",
        "-t",
        "1",
        "--weight-dtype",
        "nf4",
    )
    said = result.stderr.decode()
    assert "measuring the machine with 1 thread ...\nmeasuring auto, nf4, 1 thread ...\nnf4, tg2: " in said


def test_rates():
    assert Rate.of(10, []) is None
    assert Rate.of(10, [2.0]) == Rate(5.0, 0.0, 5.0, 5.0)
    rate = Rate.of(12, [1.0, 2.0, 3.0])
    assert rate is not None
    assert (rate.mean, rate.best, rate.median) == (22 / 3, 12.0, 6.0)
    assert rate.deviation == pytest.approx(statistics.stdev([12, 6, 4]))


def test_names_of_tests():
    assert Case.prefill(512).name == "pp512"
    assert Case.decoding(128, 0).name == "tg128"
    assert Case.decoding(128, 64).name == "tg128 @ d64"


def test_published_shapes():
    """Their sizes, as their papers and pages have them."""
    from refimpl.auto import AutoModelForCausalLM
    from refimpl.backends import get_backend

    sizes = {"pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-1b": 1_011_781_632}
    sizes |= {"pythia-410m": 405_334_016, "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960}
    for name, size in sizes.items():
        config = model_shapes.config_of_shape(name)
        skeleton = AutoModelForCausalLM.class_for(config, name).skeleton(config, get_backend("numpy"))
        assert skeleton.num_parameters() == size, name
    assert model_shapes.config_of_shape("2.7b").model_type == "gpt_neox_japanese"
    assert model_shapes.config_of_shape("20b").num_hidden_layers == 44
