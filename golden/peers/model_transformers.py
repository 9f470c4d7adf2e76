"""transformers' own language model of a folder, or one of its shape with random weights; on a GPU also compiled."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache


def begin(options: dict[str, Any]) -> None:
    """Nothing more to import; transformers loads a model's own module with the model."""
    transformers.utils.logging.set_verbosity_error()


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """See refimpl/cli/bench/worker.py, and our_model.py beside it for the operations.

    options: `device` ("cpu", "cuda:0"); `compiled`: write with torch.compile and a static cache, which then holds
    `longest` tokens.
    """
    device = torch.device(options.get("device", "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError(f"torch {torch.__version__} sees no GPU")
    compiled = options.get("compiled", False)
    if compiled and int(transformers.__version__.split(".")[0]) < 5:
        raise NotImplementedError("the static cache is measured with transformers 5 and later")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, options["dtype"])
    loaded = (_random if options["random"] else _load)(model, dtype, device, options)
    loaded = loaded.eval()
    running = CompiledModel(loaded, options["longest"]) if compiled else RunningModel(loaded)
    weights = list(loaded.parameters())
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    if device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name(device)}
    return {
        "what": f"{type(loaded).__name__}, attention {loaded.config._attn_implementation}"
        + (", compiled, static cache" if compiled else ""),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "facts": {
            "backend": "torch",
            "device": str(device),
            "weight_dtype": options["dtype"],
            "parameters": sum(weight.numel() for weight in weights),
            "weight_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        },
        "operations": {
            "prefill": running.prefill,
            "fill": running.fill,
            "decode": running.decode,
            "memory": lambda item: _memory(device),
        },
    }


def _memory(device: torch.device) -> dict[str, int | None] | None:
    """The most that torch's pool has held, and has given away; the driver is not asked."""
    if device.type != "cuda":
        return None
    return {
        "device_bytes": None,
        "pool_bytes": torch.cuda.max_memory_reserved(device),
        "used_bytes": torch.cuda.max_memory_allocated(device),
    }


def _load(model: str, dtype: torch.dtype, device: torch.device, options: dict[str, Any]) -> Any:
    # Version 5 calls it dtype, version 4 torch_dtype.
    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    loaded = AutoModelForCausalLM.from_pretrained(
        model, revision=options["revision"] or "main", **{name: dtype}
    )
    return loaded.to(device)


def _random(model: str, dtype: torch.dtype, device: torch.device, options: dict[str, Any]) -> Any:
    """Its own initialization would take minutes for a large model: weights are one block of numbers, repeated."""
    config = AutoConfig.from_pretrained(Path(model))
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config).to(dtype)
    made = made.to_empty(device=device)
    made.tie_weights()
    # What is no parameter was lost with the rest.
    made.base_model.rotary_emb = type(made.base_model.rotary_emb)(config=made.config).to(device)
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(1_048_573, generator=generator) * config.initializer_range).to(device, dtype)
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
        self._model, self._device = model, next(model.parameters()).device
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
            input_ids=torch.tensor([ids], device=self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(outputs.logits[0, -1].argmax())


class CompiledModel(RunningModel):
    """Tokens by a compiled forward over a static cache, as the documentation of transformers has it.

    Prompts are read by the model as it stands, which is also what fills the cache: `generate` does so too.
    Source: https://huggingface.co/docs/transformers/llm_optims, "Static kv-cache and torch.compile"
    """

    def __init__(self, model: Any, longest: int):
        super().__init__(model)
        self._static = StaticCache(config=model.config, max_cache_len=max(2, longest))
        # Outside of what is compiled, so that its memory is known to stay where it is.
        self._next_token([0], self._static)
        self._static.reset()
        self._held: list[int] = []
        self._compiled = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def fill(self, item: dict[str, Any]) -> list[int]:
        ids = item["ids"]
        if ids and ids == self._held:
            # Reading the prompt again would take its time on every repetition; what is beyond is overwritten.
            for layer in self._static.layers:
                layer.cumulative_length.fill_(len(ids))
            return []
        self._static.reset()
        self._held = copy.copy(ids)
        if ids:
            self._next_token(ids, self._static)
        return []

    def decode(self, item: dict[str, Any]) -> list[int]:
        token, made = torch.tensor([[item["first"]]], device=self._device), []
        for _ in range(item["tokens"]):
            outputs = self._compiled(
                input_ids=token, past_key_values=self._static, use_cache=True, logits_to_keep=1
            )
            # The next run writes its logits where these are.
            token = outputs.logits[:, -1].argmax(-1, keepdim=True).clone()
            made.append(int(token))
        return made
