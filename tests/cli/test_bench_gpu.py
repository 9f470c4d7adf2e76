"""`refimpl bench` on a GPU, here pretended (tests/cuda_on_cpu): what is measured and said, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.cli.bench import (
    gpu,
    gpu_numbers,
    model_cases,
    model_limits,
    model_request,
    model_shapes,
    our_gpu,
    our_model,
)
from tests.cli.test_bench_model import TINY, record
from tests.cli.test_bench_model_sides import PEER
from tests.cli.test_main import error_of
from tests.cuda_on_cpu.stand_in import cuda_on_cpu
from tests.tiny import tiny_neox

ROOT = Path(__file__).parents[2]
LIMITS = {"bytes": 1 << 16, "size": 32, "repeat": 2, "times": 2}

# Of the processes that are measured: they find the pretended GPU as they would find a real one.
SITE = """
import sys
sys.path.insert(0, {root!r})
from tests.cuda_on_cpu.stand_in import cuda_on_cpu
KEPT = cuda_on_cpu(multiprocessors=1, devices=2)
KEPT.__enter__()
"""


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two GPUs for this process and those it starts, and a model and a machine that are measured in no time."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(root=str(ROOT)))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(model_limits, "GPU_LIMITS_SCALE", LIMITS)
    monkeypatch.setattr(model_limits, "LIMITS_SCALE", {"bytes": 1 << 20, "size": 32, "repeat": 1})
    monkeypatch.setitem(model_shapes.SHAPES, "tiny", TINY)
    with cuda_on_cpu(multiprocessors=1, devices=2) as state:
        yield state


@pytest.fixture
def bench(inside, pretended):
    fixed = ["bench", "model", "-q", "--shape", "tiny", "-p", "10", "-n", "3", "-r", "2", "-t", "1"]
    return lambda *arguments: inside(*fixed, *arguments)


# ---- one run


def test_the_record_of_a_gpu(bench, tmp_path):
    file = tmp_path / "record.json"
    result = bench(
        *("--backend", "cupy", "--device", "cuda:1", "--dtype", "float16", "--depth", "5", "--stored"),
        *("--graph", "on,off", "--starts", "1", "--record", file),
    )
    value = json.loads(file.read_text())
    (limits,) = value["limits"]
    assert (limits["device"], limits["name"]) == ("cuda:1", "a GPU on the CPU")
    assert (limits["bytes"], limits["gemm_dtype"]) == (1 << 16, "float16")
    counts = {"read": 2, "copy": 2, "pinned": 2, "pageable": 2}
    for name, count in counts.items():  # before and after the models
        assert len(limits[f"{name}_bytes_per_s"]) == 2 * count
        assert limits[f"best_{name}_bytes_per_s"] == max(limits[f"{name}_bytes_per_s"])
    assert len(limits["gemm_flop_per_s"]) == 2 * 2 * 2  # with results of float32 and of float16

    recorded, plain = value["results"]
    assert [one["graph"] for one in value["results"]] == [True, False]
    for one in value["results"]:
        ours = one["ours"]
        assert (one["failed"], one["device"], ours["device"]) == (None, "cuda:1", "cuda:1")
        assert (ours["dtype"], ours["weight_dtype"], ours["matmul_dtype"]) == (
            "float32",
            "float16",
            "float16",
        )
        assert ours["cache_bytes"] == 2 * 2 * 128 * 2  # keys and values are kept in 16 bits
        assert {"cupy", "cuda", "driver"} <= ours["versions"].keys()
        held = ours["device_memory"]
        assert held["device_bytes"] > ours["weight_bytes"]
        assert held["pool_bytes"] >= held["used_bytes"] > ours["weight_bytes"]
        (start,) = ours["starts"]
        took = start["load_s"] + start["first_token_s"]
        copying = ours["weight_bytes"] / limits["best_pinned_bytes_per_s"]
        assert ours["start_ratio"] == pytest.approx(took / copying, rel=1e-3)
        assert ours["notes"] == []
        prompt, made = one["tests"]
        rate = made["tokens_per_s"]["mean"]
        assert made["bytes_per_s"] == pytest.approx(rate * made["bytes"], rel=1e-4)
        assert made["copy_share"] == pytest.approx(
            made["bytes_per_s"] / limits["best_copy_bytes_per_s"], rel=1e-3
        )
        assert prompt["flop_per_s"] == pytest.approx(
            prompt["tokens_per_s"]["mean"] * prompt["flop"], rel=1e-4
        )
        assert prompt["gemm_share"] == pytest.approx(
            prompt["flop_per_s"] / limits["best_gemm_flop_per_s"], rel=1e-3
        )
    assert recorded["ours"]["recorded"]
    assert recorded["ours"]["recording_s"] > 0
    assert (plain["ours"]["recorded"], plain["ours"]["recording_s"]) == (False, None)

    where, tests, loading, starts = result.stdout.decode().split("\n\n")
    assert "\ncuda:1, a GPU on the CPU: copying (read + written) " in where
    head, first, second, third, _ = tests.splitlines()
    assert "achieved" in head
    assert first.endswith("% of GEMM")
    assert second.endswith("% of copy")
    assert "cupy, no graph" in third
    assert loading.splitlines()[0].endswith("GPU memory")
    assert starts.splitlines()[0].endswith("x pinned copy")


def test_a_processor_beside_a_gpu(bench):
    value = record(bench("--backend", "numpy,cupy", "-p", "0", "-r", "1", "--json"))
    assert [one["device"] for one in value["limits"]] == ["cpu", "cuda:0"]
    assert [one["ours"]["backend"] for one in value["results"]] == ["numpy", "cupy"]
    of_processor, of_gpu = (one["tests"][0] for one in value["results"])
    assert of_processor["copy_share"] is None
    assert of_gpu["copy_share"] > 0
    assert value["results"][0]["ours"]["device_memory"] is None


def test_auto_is_the_gpu_that_is_named(bench):
    (one,) = record(bench("--device", "cuda", "-p", "0", "-r", "1", "--json"))["results"]
    assert (one["backend"], one["ours"]["backend"]) == ("auto", "cupy")


# ---- peers


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program in the place of transformers, which says with what options it was started."""
    text = PEER.format(name="T", trouble="none").replace(
        'options["dtype"] if "dtype" in options else "ours"', "repr(sorted(options.items()))"
    )
    (tmp_path / "model_transformers.py").write_text(text)
    monkeypatch.setattr(model_cases.participants, "PEERS", tmp_path)
    monkeypatch.setattr(model_request, "_check_installed", lambda *_: None)


def test_a_compiled_peer_only_writes(bench, peer, monkeypatch):
    monkeypatch.setattr(model_request, "_check_sees_gpu", lambda _: None)
    arguments = ("--backend", "cupy", "--dtype", "bfloat16", "-d", "7", "--vs", "transformers", "--json")
    (one,) = record(bench(*arguments))["results"]
    assert [joined["name"] for joined in one["peers"]] == [
        "transformers bfloat16",
        "transformers bfloat16 compiled",
    ]
    for joined, compiled in zip(one["peers"], (False, True), strict=True):
        for said in (("compiled", compiled), ("device", "cuda:0"), ("dtype", "bfloat16"), ("longest", 10)):
            assert repr(said) in joined["what"]
    prompt, made = one["tests"]
    assert [against["name"] for against in prompt["against"]] == ["transformers bfloat16"]
    assert [against["name"] for against in made["against"]] == [joined["name"] for joined in one["peers"]]
    assert all(len(against["seconds"]) == 2 for against in made["against"])


def test_a_torch_without_a_gpu(bench, peer, monkeypatch):
    monkeypatch.setattr(model_request, "_SEES_GPU", "import sys; print('9.9+cpu'); sys.exit(1)")
    message = error_of(bench("--backend", "cupy", "--vs", "transformers"), 2)
    assert "--vs transformers: torch sees no GPU, and ours computes on one; found torch 9.9+cpu" in message
    assert "--peer-python" in message


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backend", "cupy", "--device", "cuda:7"], "there is no such GPU; found 'cuda:7'; allowed: cuda:0"),
        (["--backend", "numba", "--device", "cuda"], "device"),
        (["--graph", "maybe"], "--graph has an unknown name; found 'maybe'; allowed: on, off"),
        (["--starts", "-1"], "--starts is too small; found -1"),
        (["--backend", "cupy", "--matmul-dtype", "int8"], "does not round the factors"),
        (["--record", "/no/such/folder/x.json"], "--record: there is no such folder"),
    ],
)  # fmt: skip
def test_wrong_calls(bench, arguments, expected):
    result = bench(*arguments)
    assert result.returncode in (1, 2)
    assert expected in result.stderr.decode()


def test_weights_are_stored_only_of_a_shape(inside, pretended):
    assert "--stored goes with --shape" in error_of(inside("bench", "model", "--stored"), 2)


def test_no_gpu(bench, inside, pretended, tmp_path):
    pretended.devices = 0
    assert "CUDA sees no GPU" in error_of(bench("--backend", "cupy"), 2)
    assert "CUDA sees no GPU" in error_of(inside("bench", "gpu", "--out", tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_too_small(bench, pretended, monkeypatch):
    monkeypatch.setattr(
        model_limits, "Participant", lambda *_, **__: pytest.fail("a process would have been started")
    )
    pretended.memory = 900_000
    message = error_of(bench("--backend", "cupy"), 1)
    assert "of the memory of cuda:0; found" in message
    assert "Nothing was allocated" in message


# ---- what runs in the processes


@pytest.mark.parametrize("depth", [0, 4])
def test_decoding_is_one_graph_for_all_repetitions(pretended, depth):
    ids = [5, 9, 11, 7, 3]
    made = []
    for graph in (True, False):
        running = our_model.RunningModel(tiny_neox(backend="cupy"), graph)
        assert running.records is graph
        for _ in range(3):
            running.fill({"ids": ids[:depth]})
            before = pretended.replays
            made.append(running.decode({"first": ids[depth], "tokens": 6}))
            replays = pretended.replays - before
        # The first token after nothing at all is the prompt.
        assert replays == (0 if not graph else 6 if depth else 5)
        assert running.notes == []
    expected = tiny_neox(backend="cupy").generate([ids[: depth + 1]], max_new_tokens=6, do_sample=False)
    assert all(one == np.array(expected)[0, depth + 1 :].tolist() for one in made)


def test_a_step_that_cannot_be_recorded_is_noted(pretended):
    model = tiny_neox(backend="cupy")
    recorded = model.backend.recorded

    def waiting(step: Any) -> Any:
        def asking() -> Any:
            result = step()
            result.get()
            return result

        return recorded(asking)

    model.backend.recorded = waiting
    running = our_model.RunningModel(model)
    running.fill({"ids": [1, 2]})
    running.decode({"first": 3, "tokens": 3})
    (note,) = running.notes
    assert note.startswith("this step cannot be recorded as a CUDA graph")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", [(0, 0, 68)]),
        ("tf32", [(0, 0, 77)]),
        ("float16", [(2, 0, 68), (2, 2, 68)]),
        ("bfloat16", [(14, 0, 68), (14, 14, 68)]),
        ("float64", [(1, 1, 70)]),
    ],
)
def test_products_of_the_limit(pretended, dtype, expected):
    said = our_gpu.prepare("", 1, {**LIMITS, "device": "cuda", "gemm_dtype": dtype})
    assert len(said["operations"]["gemm"](None)) == LIMITS["repeat"] * len(expected)
    found = [(one["Atype"], one["Ctype"], one["computeType"]) for one in pretended.products]
    assert list(dict.fromkeys(found)) == expected
    assert len(found) == len(expected) * (LIMITS["repeat"] + 1) * LIMITS["times"]


def test_reading_counts_every_word(pretended, monkeypatch):
    """An odd number of words, and fewer than there are threads."""
    for count in (16 * 5001, 16 * 7):
        said = our_gpu.prepare("", 1, {**LIMITS, "bytes": count, "device": "cuda", "gemm_dtype": "float32"})
        assert said["facts"] == {"bytes": count}
        assert len(said["operations"]["read"](None)) == LIMITS["repeat"]
    monkeypatch.setattr(our_gpu, "_READING", our_gpu._READING.replace("at < count", "at + 1 < count"))
    with pytest.raises(ArithmeticError, match="the sum of 28 ones is 24"):
        said["operations"]["read"](None)


# ---- all at once


def test_differences_of_logits():
    right = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]))
    same = gpu_numbers.Difference.of(right + 7, right)  # logits are known but for a constant
    assert (same.positions, same.same_top) == (2, 1.0)
    assert same.kl == pytest.approx(0, abs=1e-15)
    found = gpu_numbers.Difference.of(np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]])), right)
    assert found.kl_max == pytest.approx(0.25 * np.log(2))
    assert found.kl == pytest.approx(0.125 * np.log(2))
    assert found.same_top == 0.5
    assert found.relative == pytest.approx(np.log(2) / np.log(5))


def test_everything_in_one_call(inside, pretended, peer, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_numbers, "SCALE", {"pieces": 2, "length": 12, "written": 6})
    monkeypatch.setattr(model_request, "_check_sees_gpu", lambda _: None)
    out = tmp_path / "record"
    arguments = ("-p", "10", "-n", "2", "-d", "3", "-r", "1", "--runs", "numbers,float16,start", "-q")
    result = inside("bench", "gpu", "--shape", "tiny", "--out", out, *arguments)
    assert result.returncode == 0, result.stderr.decode()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{name}.{end}" for name in ("numbers", "float16", "start") for end in ("json", "md")]
        + ["summary.md"]
    )
    assert (out / "summary.md").read_text() == result.stdout.decode()
    rows = [line.split(" | ") for line in result.stdout.decode().splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(gpu.AIMS)
    by_run = {aim.what: aim.run for aim in gpu.AIMS}
    for what, _, measured, _ in rows:
        assert (measured == "not measured") == (by_run[what.removeprefix("| ")] == "bfloat16")
    assert [row[-1] for row in rows if "float32" in row[0]] == ["yes |"]  # the arithmetic is the real one
    numbers = json.loads((out / "numbers.json").read_text())["numbers"]
    assert numbers["float32"]["written"]["positions"] == 3
    assert numbers["bfloat16"]["read"]["relative"] > numbers["float32"]["read"]["relative"]


def test_runs_without_peers_go_on(inside, pretended, peer, monkeypatch, tmp_path):
    monkeypatch.setattr(model_request, "_SEES_GPU", "import sys; sys.exit(1)")
    out = tmp_path / "record"
    arguments = ("-p", "10", "-n", "2", "-d", "3", "-r", "1", "--runs", "float16", "-q")
    result = inside("bench", "gpu", "--shape", "tiny", "--out", out, *arguments)
    assert result.returncode == 1
    assert "float16: --vs transformers: torch sees no GPU" in result.stderr.decode()
    (one,) = json.loads((out / "float16.json").read_text())["results"]
    assert (one["failed"], one["peers"]) == (None, [])
    assert (
        b"torch"
        not in inside(*("bench", "gpu", "--shape", "tiny", "--out", out, *arguments, "--no-peers")).stderr
    )


def test_the_aims():
    """At the bounds: what is reached, and what is not."""

    def bench_of(copy: float, gemm: float, ratios: tuple[float, float], start: float) -> dict[str, Any]:
        against = [
            {"name": f"transformers float16{end}", "ratio": {"median": ratio}}
            for end, ratio in zip(("", " compiled"), ratios, strict=True)
        ]
        tests = [
            {"action": "prefill", "gemm_share": gemm, "copy_share": 9.0, "against": []},
            {"action": "decode", "gemm_share": 9.0, "copy_share": copy, "against": against},
        ]
        return {"results": [{"tests": tests, "ours": {"start_ratio": start}}], "date": "today"}

    def reached(*figures: Any) -> list[str]:
        value = bench_of(*figures)
        records = dict.fromkeys(("float16", "bfloat16", "start"), value)
        return [row.split(" | ")[-1].strip(" |") for row in gpu.summary(records).splitlines()[2:7]]

    assert reached(0.8, 0.6, (10.0, 1.2), 3.0) == ["yes"] * 5
    assert reached(0.79, 0.59, (9.9, 1.19), 3.01) == ["no"] * 5
    assert all(" not measured " in line for line in gpu.summary({}).splitlines()[2:])


def test_an_unknown_run(inside, pretended):
    assert "--runs has an unknown name; found 'float8'" in error_of(
        inside("bench", "gpu", "--runs", "float8"), 2
    )


def test_the_subject(inside):
    assert b"\n  gpu " in inside("bench", "--help").stdout
