"""transformers' own language model of a folder, or one of its shape with random weights."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache


def begin(options: dict[str, Any]) -> None:
    """Nothing more to import; transformers loads a model's own module with the model."""
    transformers.utils.logging.set_verbosity_error()


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """See refimpl/cli/bench/worker.py, and our_model.py beside it for the operations."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, options["dtype"])
    loaded = _random(model, dtype) if options["random"] else _load(model, dtype, options["revision"])
    running = RunningModel(loaded.eval())
    weights = list(loaded.parameters())
    return {
        "what": f"{type(loaded).__name__}, attention {loaded.config._attn_implementation}",
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "facts": {
            "backend": "torch",
            "weight_dtype": options["dtype"],
            "parameters": sum(weight.numel() for weight in weights),
            "weight_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        },
        "operations": {"prefill": running.prefill, "fill": running.fill, "decode": running.decode},
    }


def _load(model: str, dtype: torch.dtype, revision: str | None) -> Any:
    # Version 5 calls it dtype, version 4 torch_dtype.
    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    return AutoModelForCausalLM.from_pretrained(model, revision=revision or "main", **{name: dtype})


def _random(model: str, dtype: torch.dtype) -> Any:
    """Its own initialization would take minutes for a large model: weights are one block of numbers, repeated."""
    config = AutoConfig.from_pretrained(Path(model))
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config).to(dtype)
    made = made.to_empty(device="cpu")
    made.tie_weights()
    # What is no parameter was lost with the rest.
    made.base_model.rotary_emb = type(made.base_model.rotary_emb)(config=made.config)
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(1_048_573, generator=generator) * config.initializer_range).to(dtype)
    for name, weight in made.named_parameters():
        if weight.dim() == 1:
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        flat = weight.view(-1)
        for start in range(0, flat.numel(), block.numel()):
            part = flat[start : start + block.numel()]
            part.copy_(block[: part.numel()])
    return made


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
            made = self._cache.get_seq_length() - len(ids)
            if made:
                self._cache.crop(-made)  # version 5 wants how many to drop, which version 4 takes too
        else:
            self._cache, self._filled = DynamicCache(), copy.copy(ids)
            if ids:
                self._next_token(ids, self._cache)
        return []

    def decode(self, item: dict[str, Any]) -> list[int]:
        made = [item["first"]]
        for _ in range(item["tokens"]):
            made.append(self._next_token(made[-1:], self._cache))
        return made[1:]

    def _next_token(self, ids: list[int], cache: Any) -> int:
        outputs = self._model(
            input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return int(outputs.logits[0, -1].argmax())
