"""The sides of a comparison of models: turns, peers that are trouble, llama-bench, and our own process."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl import GPTNeoXForCausalLM
from refimpl.auto import AutoModelForCausalLM
from refimpl.backends import get_backend
from refimpl.backends.base import Backend
from refimpl.backends.quantized import Int8Matrix, NF4Matrix
from refimpl.cli.bench import model_cases, model_request, our_machine, our_model, random_weights
from refimpl.cli.bench.llama_bench import LlamaBench
from refimpl.cli.bench.memory_watch import MemoryWatch
from refimpl.cli.bench.model_sides import Test as Case
from refimpl.cli.bench.operation_times import timed_operations
from refimpl.cli.bench.participants import PEERS, Participant
from refimpl.errors import RefimplError, ResourceLimitError
from tests.cli.test_bench_model import bench, record, small  # noqa: F401, fixtures
from tests.tiny import tiny_model, tiny_neox, tiny_neox_config

# A peer that counts, and writes down whose turn it was.
PEER = """
import os, pathlib
LOG = pathlib.Path(__file__).with_name("turns")
def prepare(model, threads, options):
    if "{trouble}" == "missing":
        raise ImportError("No module named 'torch'")
    def prefill(item):
        with LOG.open("a") as log:
            log.write("{name}")
        if "{trouble}" == "fails":
            raise ValueError("out of order")
        return [0]
    return {{
        "what": options["dtype"] if "dtype" in options else "ours", "versions": {{"peer": "1.0"}}, "threads": threads,
        "facts": {{
            "backend": "none", "weight_dtype": "float32", "parameters": 10, "weight_bytes": 40, "read_bytes": 40,
            "layer_weights": 8, "head_weights": 2, "cache_bytes": 1,
        }},
        "operations": {{"prefill": prefill, "fill": lambda item: [], "decode": prefill}},
    }}
"""


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replaces both sides by programs that only write down their turns."""

    def make(trouble: str = "none", ours: str = "none") -> Path:
        (tmp_path / "model_transformers.py").write_text(PEER.format(name="T", trouble=trouble))
        (tmp_path / "ours.py").write_text(PEER.format(name="O", trouble=ours))
        monkeypatch.setattr(model_cases.participants, "PEERS", tmp_path)
        monkeypatch.setattr(model_cases, "OURS", tmp_path / "ours.py")
        monkeypatch.setattr(model_request, "_check_installed", lambda *_: None)
        return tmp_path / "turns"

    return make


def test_both_sides_take_turns(bench, sides):  # noqa: F811
    turns = sides()
    value = record(bench("--shape", "tiny", "-n", "0", "-r", "3", "--vs", "transformers", "--json"))
    # Each time: the first token of ours, then of the peer, a warm-up of both, and three pairs.
    assert turns.read_text() == "O" + "TOTOTOTOT" + "TOTOTOTOT"
    assert value["settings"]["peers"] == ["transformers float32", "transformers bfloat16"]
    (one,) = value["results"]
    assert [peer["what"] for peer in one["peers"]] == ["float32", "bfloat16"]
    (test,) = one["tests"]
    assert len(test["seconds"]) == 6
    for peer in test["against"]:
        assert len(peer["seconds"]) == len(peer["our_seconds"]) == 3
        ratios = sorted(their / our for their, our in zip(peer["seconds"], peer["our_seconds"], strict=True))
        assert peer["ratio"]["median"] == pytest.approx(ratios[1], rel=1e-3)
    table = bench(
        "--shape", "tiny", "-n", "0", "--vs", "transformers", "--peer-dtype", "bfloat16"
    ).stdout.decode()
    assert "quartiles" in table
    assert "transformers bfloat16" in table
    assert "transformers float32" not in table


@pytest.mark.parametrize(
    ("trouble", "said"), [("fails", "ValueError: out of order"), ("missing", "No module named 'torch'")]
)
def test_we_are_measured_where_a_peer_fails(bench, sides, trouble, said):  # noqa: F811
    sides(trouble)
    result = bench("--shape", "tiny", "-n", "0", "--vs", "transformers", "--peer-dtype", "float32", "--json")
    value = record(result, code=1)
    assert f"pp6: transformers float32: {said}\n" in result.stderr.decode()
    (test,) = value["results"][0]["tests"]
    assert len(test["seconds"]) == 2
    assert test["against"][0]["failed"] == said


def test_our_own_failure(bench, sides):  # noqa: F811
    sides(ours="fails")
    result = bench("--shape", "tiny", "--json")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.decode() == "refimpl: error: refimpl: ValueError: out of order\n"
    value = record(bench("--shape", "tiny", "--weight-dtype", "int8,nf4", "--json"), code=1)
    assert [one["failed"] for one in value["results"]] == ["refimpl: ValueError: out of order"] * 2


def test_peers_are_on_their_own():
    for path in PEERS.glob("model_*.py"):
        names = {
            node.module if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert names
        assert not any(str(name).startswith("refimpl") for name in names)


# ---- llama-bench

LLAMA_BENCH = """#!{python}
import json, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
trouble = "{trouble}"
if trouble == "ends":
    sys.exit("error: failed to load model")
if trouble == "text":
    print("not JSON")
    sys.exit()
samples = [] if trouble == "nothing" else [2_000_000 * (int(arguments["-p"]) + 3 * int(arguments["-n"]))]
print(json.dumps([{{
    "build_commit": "abc123", "build_number": 4242, "model_type": "gptneox 70M Q4_0", "model_n_params": 99,
    "model_size": 1234, "n_threads": int(arguments["-t"]), "backends": "CPU", "samples_ns": samples,
    "n_depth": int(arguments.get("-d", 0)),
}}]))
"""


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program of that name on the PATH. Returns: a model for it."""

    def make(trouble: str = "none") -> Path:
        program = tmp_path / "bin" / "llama-bench"
        program.parent.mkdir(exist_ok=True)
        program.write_text(LLAMA_BENCH.format(python=sys.executable, trouble=trouble))
        program.chmod(0o700)
        monkeypatch.setenv("PATH", str(program.parent))
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        return tmp_path / "model.gguf"

    return make


@pytest.mark.skipif(sys.platform == "win32", reason="a script cannot be a program there")
def test_llama_bench(bench, llama):  # noqa: F811
    gguf = llama()
    result = bench("--shape", "tiny", "--vs", "llama.cpp", "--gguf", gguf, "--json")
    assert "llama.cpp has another model: 99 parameters there, " in result.stderr.decode()
    (one,) = record(result)["results"]
    (peer,) = one["peers"]
    assert peer["versions"] == {"llama.cpp": "abc123 (4242)"}
    assert (peer["weight_dtype"], peer["weight_bytes"], peer["threads"]) == ("gptneox 70M Q4_0", 1234, 1)
    prompt, made = ([one["seconds"] for one in test["against"]] for test in one["tests"])
    assert prompt == [[0.012, 0.012]]  # 2 ms for each of 6 tokens
    assert made == [[0.018, 0.018]]  # and 6 ms for each of 3 that are written


@pytest.mark.skipif(sys.platform == "win32", reason="a script cannot be a program there")
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("ends", "llama.cpp: llama-bench ended with 1: error: failed to load model"),
        ("text", "llama.cpp: llama-bench -o json gave no record of one test; found b'not JSON"),
        ("nothing", r"llama.cpp: llama-bench gave no time for a repetition; found \[\]"),
    ],
)
def test_a_llama_bench_that_is_trouble(llama, trouble, said):
    gguf = llama(trouble)
    side = LlamaBench("llama-bench", gguf, 1, 30.0)
    side.prepare(Case.prefill(4))
    with pytest.raises(RefimplError, match=said):
        side.run()


@pytest.mark.skipif(sys.platform == "win32", reason="a script cannot be a program there")
def test_depth_reaches_llama_bench(llama):
    side = LlamaBench("llama-bench", llama(), 1, 30.0)
    assert side._ask(Case.decoding(4, 16))["n_depth"] == 16


# ---- what runs in the process of our model


def test_decoding_is_what_generate_does():
    model = tiny_model()
    running = our_model.RunningModel(model)
    ids = [5, 9, 11, 7]
    expected = model.generate([ids], max_new_tokens=6, eos_token_id=[], do_sample=False)[0, 4:].tolist()
    for _ in range(2):  # the second time the cache is cut back
        running.fill({"ids": ids[:-1]})
        assert running.decode({"first": ids[-1], "tokens": 6}) == expected
    assert running.prefill({"ids": ids}) == expected[:1]
    running.fill({"ids": []})
    assert running.decode({"first": 5, "tokens": 1}) == running.prefill({"ids": [5]})


def test_only_the_outer_operation_is_counted():
    backend = get_backend("numpy")
    plain = type(backend)
    x = np.zeros((1, 1, 2, 4), np.float32)

    class Mask:
        bias = None

        def visible(self, xp, q_seq, kv_seq):
            return None

    with timed_operations(backend) as times:
        backend.attention(x, x, x, Mask(), 1.0)  # type: ignore[arg-type]
        backend.softmax(x)
        assert isinstance(backend, plain)
        with pytest.raises(KeyError):
            backend.activation(x, "no such function")
        backend.activation(x, "relu")
    assert {name: spent.calls for name, spent in times.items() if spent.calls} == {
        "attention": 1,
        "softmax": 1,
        "activation": 2,
    }
    assert all(spent.seconds > 0 for spent in times.values() if spent.calls)
    assert type(backend) is plain


def test_profiling_waits_for_the_device():
    waited = []

    class Slow(Backend):
        name, xp = "slow", np

        def synchronize(self) -> None:
            waited.append(True)

    backend = Slow(np.dtype(np.float32))
    with timed_operations(backend):
        backend.softmax(np.zeros((1, 2), np.float32))
    backend.softmax(np.zeros((1, 2), np.float32))
    assert waited == [True]


# ---- random weights


@pytest.mark.parametrize("form", [None, "float16", "bfloat16", "int8", "nf4"])
def test_random_models_are_plausible(form):
    config = tiny_neox_config(hidden_size=192, intermediate_size=768, initializer_range=0.02)
    model = random_weights.random_model(config, get_backend("numpy"), form)
    assert isinstance(model, GPTNeoXForCausalLM)
    kinds = {"int8": Int8Matrix, "nf4": NF4Matrix}
    layer = model.gpt_neox.layers[1]
    for weight in (layer.attention.query_key_value.weight, layer.mlp.dense_4h_to_h.weight):
        assert isinstance(weight, kinds.get(str(form), np.ndarray))
        dense = np.asarray(weight, dtype=np.float32)
        assert dense.std() == pytest.approx(0.02, rel=0.05)
        assert abs(dense.mean()) < 0.001
        assert not np.array_equal(dense[0], dense[1])
    assert np.all(layer.input_layernorm.weight == 1)
    assert np.all(layer.attention.dense.bias == 0)
    logits = model(input_ids=[[3, 4, 5]]).logits
    assert np.isfinite(logits).all()
    assert logits.std() > 0
    sizes = sum(weight.nbytes for weight in model.state_dict().values())
    assert sizes == random_weights.weight_bytes(model, form)


def test_random_matrices_own_their_memory():
    """Views of one block would be read from the cache of the processor."""
    model = random_weights.random_model(tiny_neox_config(), get_backend("numpy"), None)
    arrays = [weight for weight in model.state_dict().values() if weight.ndim == 2]
    assert len(arrays) > 3
    for index, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[index + 1 :])
        assert array.flags.c_contiguous


def test_a_long_matrix_repeats_the_block(monkeypatch):
    monkeypatch.setattr(random_weights, "_PERIOD", 7)
    source = random_weights._Source(1.0, np.dtype(np.float32), 0)
    filled = np.concatenate([source._fill(source._numbers, 10), source._fill(source._numbers, 11)])
    np.testing.assert_array_equal(filled, np.tile(source._numbers, 3))


def test_random_weights_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("refimpl.memory.available_memory", lambda: 1000)
    monkeypatch.setattr(random_weights, "_Source", lambda *_: pytest.fail("numbers were drawn"))
    with pytest.raises(ResourceLimitError, match=r"GPTNeoXForCausalLM: this needs .* kB of memory") as caught:
        random_weights.random_model(tiny_neox_config(), get_backend("numpy"), "float16")
    assert caught.value.limit == 800


# ---- the machine


def test_reading_counts_every_word():
    sums: list[int] = []

    def sum_of(words: np.ndarray) -> int:
        sums.append(words.size)
        return int(words.sum())

    rates = our_machine.read_bytes_per_s(sum_of, 8 * 1001, 3, 2)
    assert len(rates) == 2
    assert min(rates) > 0
    assert sum(sums) == 3 * 1001  # a warm-up and two passes, each by three threads
    with pytest.raises(ArithmeticError, match="the sum of 100 ones is 3"):
        our_machine.read_bytes_per_s(lambda words: 1, 800, 3, 1)
    assert len(our_machine.gemm_flop_per_s(16, 3)) == 3


def test_the_compiled_loop_sums():
    said = our_machine.prepare("", 2, {"bytes": 8192, "size": 8, "repeat": 1})
    assert said["operations"]["read"](None)[0] > 0
    from refimpl.cli.bench.reading_kernel import sum_of

    words = np.arange(-5, 1000, dtype=np.int64)
    assert sum_of(words) == words.sum()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_of_memory_is_seen_and_files_are_not_counted(tmp_path):
    adapter = tmp_path / "hungry.py"
    (tmp_path / "file").write_bytes(bytes(60 << 20))
    adapter.write_text(
        "import mmap, time\n"
        "KEPT = []\n"
        "def begin(options):\n"
        "    KEPT.append(bytearray(40 << 20))\n"
        "def prepare(model, threads, options):\n"
        "    def eat(item):\n"
        "        with open(model, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:\n"
        "            held = bytearray(b'x') * item, mapped.find(b'x')\n"
        "            time.sleep(0.3)\n"
        "        return []\n"
        "    return {'what': '', 'versions': {}, 'threads': 1, 'operations': {'eat': eat}}\n"
    )
    participant = Participant("hungry", adapter, str(tmp_path / "file"), 1)
    watch = MemoryWatch(participant)
    with watch:
        after_import = participant.start()["memory_after_import"]
        assert participant.ask("call", operation="eat", item=50 << 20) == {"result": []}
        participant.close()
    assert watch.peak is not None
    assert after_import > 40 << 20
    assert 49 << 20 < watch.peak - after_import < 60 << 20


def test_sizes_without_weights():
    config = tiny_neox_config()
    skeleton = AutoModelForCausalLM.class_for(config, "").skeleton(config, get_backend("numpy"))
    assert random_weights.weight_bytes(skeleton, None) == 4 * tiny_neox().num_parameters()
