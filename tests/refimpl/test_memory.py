"""What does not fit is refused before any memory is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from refimpl import GPTNeoXConfig, GPTNeoXForCausalLM, memory
from refimpl.errors import CheckpointMismatchError, InputError, ResourceLimitError
from tests.tiny import save_tiny, tiny_neox


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A made-up system: write `meminfo`, and the files of a control group."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_what_is_free(system):
    assert memory.available_memory() is None
    assert memory.memory_limit() is None
    (system / "meminfo").write_text("MemTotal:       2000 kB\nMemAvailable:    1000 kB\n")
    assert memory.available_memory() == 1000 * 1024
    assert memory.memory_limit() == int(0.8 * 1000 * 1024)
    (system / "memory.max").write_text("900000\n")
    (system / "memory.current").write_text("500000\n")
    (system / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert memory.available_memory() == 500_000
    (system / "memory.max").write_text("max\n")
    assert memory.available_memory() == 1000 * 1024


def test_of_this_system():
    free = memory.available_memory()
    assert free is None or free > 1 << 24


@pytest.mark.parametrize(
    ("text", "size"),
    [(5, 5), ("5", 5), ("10B", 10), ("1.5GB", 1_500_000_000), ("2 gib", 2 << 30), ("3MiB", 3 << 20), (0, 0)],
)
def test_amounts(text, size):
    assert memory.memory_limit(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", -1, "5XB", "1e9", True, float("nan"), float("inf"), [1], {"cpu": 1}]
)
def test_what_is_no_amount(text):
    with pytest.raises(InputError):
        memory.memory_limit(text)


def test_sizes_for_people():
    assert [memory.readable(n) for n in (0, 999, 1000, 5_400_000_000, 10**15)] == [
        "0 B", "999 B", "1.0 kB", "5.4 GB", "1000.0 TB",
    ]  # fmt: skip


def test_a_model_that_does_not_fit_is_refused_unmade():
    config = GPTNeoXConfig(
        num_hidden_layers=1000, hidden_size=65536, intermediate_size=1 << 20, num_attention_heads=512
    )
    with pytest.raises(ResourceLimitError) as caught:
        GPTNeoXForCausalLM(config)
    assert caught.value.requested > 10**14
    assert "Nothing was allocated" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, 0),
        ({"weight_dtype": "float16"}, 2),
        ({"dtype": "float16"}, 2),
        ({"weight_dtype": "float64"}, 8),
        ({"mmap": False}, 4),
        ({"mmap": False, "weight_dtype": "float16"}, 6),
    ],
)
def test_the_needed_bytes_are_those_that_are_allocated(backend, tmp_path, options, needed):
    """needed: bytes for each number in a matrix that a file may keep mapped; vectors are always copied."""
    model = tiny_neox(backend=backend)
    if model.backend.copies_weights and not {"dtype", "weight_dtype"} & set(options):
        needed += 4
    save_tiny(tmp_path, model)
    sizes = [(np.prod(w.shape), w.ndim) for w in model.state_dict().values()]
    matrices, vectors = (sum(int(n) for n, ndim in sizes if (ndim == 2) == large) for large in (True, False))
    exact = needed * matrices + (8 if options.get("mmap") is False else 4) * vectors
    if backend == "cupy" and options.get("mmap") is False:
        exact = 4 * (matrices + vectors)  # the file in the host's memory; on the device there is no more
    GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend, max_memory=exact, **options)
    with pytest.raises(ResourceLimitError) as caught:
        GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend, max_memory=exact - 1, **options)
    assert caught.value.requested == exact


def test_a_huge_config_beside_a_small_file_is_a_mismatch(tmp_path):
    """Nothing is made for the shapes that a config claims before the file is seen to have them."""
    save_tiny(tmp_path, tiny_neox())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "hidden_size": 65536,
        "vocab_size": 1 << 22,
        "intermediate_size": 1 << 20,
        "num_attention_heads": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatchError):
        GPTNeoXForCausalLM.from_pretrained(tmp_path)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert len(caught.value.missing) == len(list(tiny_neox().base_model.named_parameters()))
