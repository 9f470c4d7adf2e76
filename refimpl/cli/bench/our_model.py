"""What `worker.py` loads to measure our own models, with any backend.

Operations, which the adapter of a peer has as well (`first` is a token id, `ids` are a list of them):

    prefill {"ids": [...]}               reads these tokens, with an empty cache; the likeliest next token
    fill    {"ids": [...]}               brings the cache to just these tokens
    decode  {"first": id, "tokens": n}   n tokens one by one, each the likeliest, after what the cache holds

and beside them `profile`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
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


def begin(options: dict[str, Any]) -> None:
    """Import what the backend needs."""
    get_backend(options["backend"], dtype=options["dtype"], matmul_dtype=options["matmul_dtype"])


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """The model of the folder or Hub id `model`; with `random` only its config is read."""
    backend = _backend(threads, options)
    if options["random"]:
        loaded = random_model(AutoConfig.from_pretrained(model), backend, options["weight_dtype"])
    else:
        kept = options["weight_dtype"]
        if kept is None and options["dtype"] in ("float16", "bfloat16"):
            kept = options["dtype"]  # what a model does by itself when it is given no finished backend
        hub = options.get("hub", {})
        loaded = AutoModelForCausalLM.from_pretrained(model, backend=backend, weight_dtype=kept, **hub)
    running = RunningModel(loaded)
    return {
        "what": repr(loaded),
        "versions": versions(),
        "threads": threads,
        "facts": facts(loaded),
        "operations": {
            "prefill": running.prefill,
            "fill": running.fill,
            "decode": running.decode,
            "profile": running.profile,
        },
    }


def _backend(threads: int, options: dict[str, Any]) -> Backend:
    name = options["backend"]
    wanted = {"dtype": options["dtype"], "matmul_dtype": options["matmul_dtype"]}
    try:
        return get_backend(name, threads=threads, **wanted)
    except BackendError:
        # Not every backend takes a number of threads; the environment of this process tells its libraries.
        return get_backend(name, **wanted)


def versions() -> dict[str, str]:
    """Of refimpl, of the BLAS, and of what the backend has imported."""
    found = {"refimpl": __version__, "numpy": np.__version__}
    found |= {name: metadata.version(name) for name in ("numba", "llvmlite") if name in sys.modules}
    if "cupy" in sys.modules:
        found["cupy"] = sys.modules["cupy"].__version__
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return found | {"blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip()}


def facts(model: Any) -> dict[str, Any]:
    """What is known of a loaded model, and what one token has to read and multiply.

    `read_bytes`: all weights, but only one row of an embedding that is not the head as well.
    `layer_weights`, `head_weights`: the numbers in matrices that each token is multiplied with, and those for
    which only a token counts whose logits are wanted.  `cache_bytes`: of one token.
    """
    config, backend = model.config, model.backend
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
        "cache_bytes": 2 * config.num_hidden_layers * config.hidden_size * backend.dtype.itemsize,
    }


class RunningModel:
    """A model and its cache."""

    def __init__(self, model: Any):
        self._model = model
        self._cache, self._filled = DynamicCache(), [-1]

    def prefill(self, item: dict[str, Any]) -> list[int]:
        return [self._next_token(item["ids"], DynamicCache())]

    def fill(self, item: dict[str, Any]) -> list[int]:
        ids = item["ids"]
        if ids and ids == self._filled:
            self._cache.crop(len(ids))
        else:
            self._cache, self._filled = DynamicCache(), ids
            if ids:
                self._next_token(ids, self._cache)
        return []

    def decode(self, item: dict[str, Any]) -> list[int]:
        made = [item["first"]]
        for _ in range(item["tokens"]):
            made.append(self._next_token(made[-1:], self._cache))
        return made[1:]

    def profile(self, item: dict[str, Any]) -> dict[str, Any]:
        """Seconds and calls of each operation while `decode` or `prefill` (`action`) does `item`."""
        action: Callable[[dict[str, Any]], list[int]] = getattr(self, item["action"])
        backend = self._model.backend
        with timed_operations(backend) as times:
            began = time.perf_counter()
            action(item)
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
