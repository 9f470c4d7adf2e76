"""What `worker.py` loads to measure our own models, with any backend.

Operations, which the adapter of a peer has as well (`first` is a token id, `ids` are a list of them):

    prefill {"ids": [...]}               reads these tokens, with an empty cache; the likeliest next token
    fill    {"ids": [...]}               brings the cache to just these tokens
    decode  {"first": id, "tokens": n}   n tokens one by one, each the likeliest, after what the cache holds
    memory                               bytes of a GPU that it holds; None where there is none

and beside them `profile`, `record` and `notes`.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from importlib import metadata
from typing import Any

import numpy as np

from refimpl import __version__
from refimpl.auto import AutoConfig, AutoModelForCausalLM
from refimpl.backends import get_backend
from refimpl.backends.base import Backend
from refimpl.cache import DynamicCache
from refimpl.cli.bench.operation_times import timed_operations
from refimpl.cli.bench.random_weights import random_model
from refimpl.errors import BackendError
from refimpl.generation.next_logits import NextLogits
from refimpl.generation.repeated_step import RecordingBackend


def begin(options: dict[str, Any]) -> None:
    """Import what the backend needs, and find the device."""
    _backend(None, options)


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """The model of the folder or Hub id `model`; with `random` only its config is read.

    options: `graph`: False computes each token by a call of the model, where a backend would record its steps.
    """
    backend = _backend(threads, options)
    device = DeviceMemory(backend)
    kept = options["weight_dtype"]
    if kept is None and options["dtype"] in ("float16", "bfloat16"):
        kept = options["dtype"]  # what a model does by itself when it is given no finished backend
    if options["random"]:
        loaded = random_model(AutoConfig.from_pretrained(model), backend, kept)
    else:
        hub = options.get("hub", {})
        loaded = AutoModelForCausalLM.from_pretrained(model, backend=backend, weight_dtype=kept, **hub)
    running = RunningModel(loaded, options.get("graph", True))
    return {
        "what": repr(loaded),
        "versions": versions(),
        "threads": threads,
        "facts": facts(loaded) | {"recorded": running.records},
        "operations": {
            "prefill": running.prefill,
            "fill": running.fill,
            "decode": running.decode,
            "profile": running.profile,
            "record": running.record,
            "notes": lambda item: running.notes,
            "memory": lambda item: device.held(),
        },
    }


def _backend(threads: int | None, options: dict[str, Any]) -> Backend:
    name = options["backend"]
    wanted = {key: options.get(key) for key in ("dtype", "matmul_dtype", "device")}
    if threads is None or name == "cupy":
        return get_backend(name, **wanted)
    try:
        return get_backend(name, threads=threads, **wanted)
    except BackendError:
        # Not every backend takes a number of threads; the environment of this process tells its libraries.
        return get_backend(name, **wanted)


class DeviceMemory:
    """What this process takes of the memory of a GPU from now on.

    A pool keeps what it has got, so what it holds now is the most that it ever held.
    """

    def __init__(self, backend: Backend):
        self._index = int(backend.device.partition(":")[2]) if backend.device != "cpu" else None
        self._before = self._used()

    def _used(self) -> int:
        """Of the whole device: the driver counts for no process alone."""
        if self._index is None:
            return 0
        free, total = sys.modules["cupy"].cuda.Device(self._index).mem_info
        return int(total) - int(free)

    def held(self) -> dict[str, int] | None:
        """`device_bytes`: what the whole device has given since the start, graphs and cuBLAS included, and whatever
        another program has taken; `pool_bytes`, `used_bytes`: of the pool that arrays come from.  None: no device.
        """
        if self._index is None:
            return None
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(self._index):  # a pool counts for the current device
            pool = cupy.get_default_memory_pool()
            return {
                "device_bytes": self._used() - self._before,
                "pool_bytes": int(pool.total_bytes()),
                "used_bytes": int(pool.used_bytes()),
            }


def versions() -> dict[str, str]:
    """Of refimpl, of the BLAS, and of what the backend has imported."""
    found = {"refimpl": __version__, "numpy": np.__version__}
    found |= {name: metadata.version(name) for name in ("numba", "llvmlite") if name in sys.modules}
    if "cupy" in sys.modules:
        cupy = sys.modules["cupy"]
        found["cupy"] = cupy.__version__
        found["cuda"] = _dotted(cupy.cuda.runtime.runtimeGetVersion())
        found["driver"] = _dotted(cupy.cuda.runtime.driverGetVersion())
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return found | {"blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip()}


def _dotted(version: int) -> str:
    """13020 -> "13.2", as CUDA counts its versions."""
    return f"{version // 1000}.{version % 1000 // 10}"


def facts(model: Any) -> dict[str, Any]:
    """What is known of a loaded model, and what one token has to read and multiply.

    `read_bytes`: all weights, but only one row of an embedding that is not the head as well.
    `layer_weights`, `head_weights`: the numbers in matrices that each token is multiplied with, and those for
    which only a token counts whose logits are wanted.  `cache_bytes`: of one token.
    """
    config, backend = model.config, model.backend
    cached = backend.cache_dtype or backend.dtype
    read, layer_weights, total, widest = 0, 0, 0, (0, "")
    for parameter in model.named_parameters():
        weight, numbers = getattr(parameter.owner, parameter.name), math.prod(parameter.shape)
        size = int(getattr(weight, "nbytes", numbers * backend.dtype.itemsize))
        total += size
        looked_up = parameter.key.endswith("embed_in.weight") and not config.tie_word_embeddings
        read += size // parameter.shape[0] if looked_up else size
        if parameter.is_matrix and ".layers." in parameter.key:
            layer_weights += numbers
            widest = max(widest, (numbers, str(getattr(weight, "dtype", "unknown"))))
    return {
        "class": type(model).__name__,
        "model_type": config.model_type,
        "parameters": model.num_parameters(),
        "backend": backend.name,
        "device": backend.device,
        "dtype": str(backend.dtype),
        "weight_dtype": widest[1],
        "matmul_dtype": backend.matmul_dtype,
        "weight_bytes": total,
        "read_bytes": read,
        "layer_weights": layer_weights,
        "head_weights": config.vocab_size * config.hidden_size,
        "cache_bytes": 2 * config.num_hidden_layers * config.hidden_size * cached.itemsize,
    }


class RunningModel:
    """A model and its cache.

    Tokens are made as `generate()` makes them: `NextLogits` feeds what the cache does not hold, by a recorded step
    where the backend records any, and says which token is the likeliest.
    """

    def __init__(self, model: Any, graph: bool = True):
        self._model = model
        #: Whether steps are recorded.
        self.records = graph and isinstance(model.backend, RecordingBackend)
        self._plain = isinstance(model.backend, RecordingBackend) and not graph
        #: What was warned of while tokens were made, each text once.
        self.notes: list[str] = []
        self._start([-1])

    def _start(self, ids: list[int]) -> None:
        self._cache, self._filled = DynamicCache(), ids
        self._next_logits = NextLogits(self._model, np.ones((1, max(1, len(ids))), np.int64), self._cache)

    def prefill(self, item: dict[str, Any]) -> list[int]:
        return [self._next_token(item["ids"], DynamicCache())]

    def fill(self, item: dict[str, Any]) -> list[int]:
        ids = item["ids"]
        if ids == self._filled:
            self._cache.crop(len(ids))
        else:
            self._start(ids)
            if ids:
                self._next_logits(np.array([ids]))
        return []

    def decode(self, item: dict[str, Any]) -> list[int]:
        count = item["tokens"]
        if self._plain:
            return self._decode_by_calls(item["first"], count)
        past = len(self._filled)
        text = np.empty((1, past + 1 + count), np.int64)
        text[0, : past + 1] = [*self._filled, item["first"]]
        with warnings.catch_warnings(record=True, action="default") as caught:
            for end in range(past + 1, past + 1 + count):
                # One token alone is a prompt: there is nothing yet that a step could follow.
                if end == 1:
                    text[0, 1] = self._next_token(text[0, :1].tolist(), self._cache)
                else:
                    text[0, end] = self._next_logits.likeliest(text[:, :end])[0]
        self.notes += sorted({str(one.message) for one in caught} - set(self.notes))
        return text[0, past + 1 :].tolist()

    def _decode_by_calls(self, first: int, count: int) -> list[int]:
        made = [first]
        for _ in range(count):
            made.append(self._next_token(made[-1:], self._cache))
        return made[1:]

    def record(self, item: dict[str, Any]) -> float | None:
        """The seconds of the step that is recorded, after the prompt `ids`; None where none is."""
        if not self.records:
            return None
        ids = np.array([item["ids"]])
        next_logits = NextLogits(self._model, np.ones_like(ids), DynamicCache())
        chosen = next_logits.likeliest(ids)
        began = time.perf_counter()
        next_logits.likeliest(np.concatenate([ids, chosen[:, None]], axis=1))
        return time.perf_counter() - began

    def profile(self, item: dict[str, Any]) -> dict[str, Any]:
        """Seconds and calls of each operation while `decode` or `prefill` (`action`) does `item`.

        A record has no operations: tokens are made by calls of the model.
        """
        backend = self._model.backend
        with timed_operations(backend) as times:
            began = time.perf_counter()
            if item["action"] == "decode":
                self._decode_by_calls(item["first"], item["tokens"])
            else:
                self.prefill(item)
            seconds = time.perf_counter() - began
        inside = sum(spent.seconds for spent in times.values())
        operations: list[dict[str, Any]] = [
            {"name": name, "calls": spent.calls, "seconds": spent.seconds, "share": spent.seconds / seconds}
            for name, spent in times.items()
            if spent.calls
        ]
        operations.sort(key=lambda one: -one["seconds"])
        rest = {"seconds": seconds - inside, "share": 1 - inside / seconds}
        return {"seconds": seconds, "operations": operations, "rest": rest}

    def _next_token(self, ids: list[int], cache: DynamicCache) -> int:
        outputs = self._model(
            input_ids=np.array([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return int(np.argmax(self._model.backend.to_numpy(outputs.logits)[0, -1]))
