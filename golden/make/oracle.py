"""transformers as an oracle of both families: in float32 as it is, and in true float64.

A model that is merely cast to double still computes its rotary tables and its loss in float32, and GPT-NeoX its
softmax too.  `float64_twin` does these in float64, and `run` computes the loss in the dtype of the logits, so that
float64 values are right to about 15 digits.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import rope_types
import torch
from families import NEOX, family_of
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig
from transformers.utils import logging

Model = Any


def be_reproducible() -> None:
    """One thread and deterministic kernels: the same machine gives the same bits."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


class ExactRotary(torch.nn.Module):
    """Stands in for the rotary embedding of a model of the library: every step in float64.

    `dynamic` and `longrope` look at the largest position of the present call alone (over all rows), as a model of
    the library does that has seen nothing before.  `length`, where it is not None, stands for the length of every
    call.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.rope = dict(config.rope_parameters)
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.context = config.max_position_embeddings
        self.length: int | None = None

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inverse_frequencies, attention_factor = self.frequencies(int(position_ids.max()) + 1)
        angles = position_ids.double()[..., None] * inverse_frequencies.repeat(2)
        return angles.cos() * attention_factor, angles.sin() * attention_factor

    def frequencies(self, length: int) -> tuple[torch.Tensor, float]:
        """Angle per position of each pair [rotated width / 2], and the factor on cos and sin."""
        found, factor = rope_types.frequencies(self.rope, self.head_dim, self.context, self.length or length)
        return torch.from_numpy(found), factor

    @property
    def width(self) -> int:
        """How many dimensions of a head are rotated."""
        return rope_types.rotated_width(self.head_dim, self.rope)

    @property
    def limit(self) -> int:
        """The length beyond which scaling is meant for."""
        if self.rope["rope_type"] == "dynamic":
            return self.context
        return self.rope.get("original_max_position_embeddings", self.context)


def check_rotary(model: Model) -> None:
    """Hold the frequencies against the library's own, for texts within, at and beyond the limit.

    Raises: AssertionError where they differ by more than float32 loses.
    """
    exact = ExactRotary(model.config)
    for length in (1, exact.limit, exact.limit + 1, 3 * exact.context):
        embedding = as_new(model).base_model.rotary_emb
        embedding(torch.zeros(1), torch.arange(length)[None])
        found, attention_factor = exact.frequencies(length)
        torch.testing.assert_close(found, embedding.inv_freq.double(), rtol=1e-6, atol=0)
        assert attention_factor == embedding.attention_scaling


def float64_twin(model: Model) -> Model:
    """A copy of `model` that computes everything in float64, rotary tables and softmax included."""
    twin = copy.deepcopy(model).double()
    twin.base_model.rotary_emb = ExactRotary(twin.config)
    return twin


_LIBRARY_ATTENTION = NEOX.modeling.eager_attention_forward


def _eager_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GPT-NeoX's eager attention: the library's own, but for float64, whose softmax it would take in float32."""
    if query.dtype != torch.float64:
        return _LIBRARY_ATTENTION(module, query, key, value, attention_mask, scaling, **more)
    scores = query @ key.mT * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


NEOX.modeling.eager_attention_forward = _eager_attention


def as_new(model: Model) -> Model:
    """`model` as if it had seen nothing: the library's tables of the type dynamic depend on the calls before."""
    embedding = model.base_model.rotary_emb
    if not isinstance(embedding, ExactRotary):
        model.base_model.rotary_emb = type(embedding)(model.config)
    return model


def arguments(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """NumPy inputs as tensors; real numbers in the dtype of the model."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    return {
        name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def with_cache(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the arrays `past_key_values.N.key` and `.value` as one cache of the library."""
    arrays = {name: array for name, array in given.items() if name.startswith("past_key_values.")}
    if not arrays:
        return given
    layers = range(len(arrays) // 2)
    pairs = [tuple(arrays[f"past_key_values.{i}.{part}"] for part in ("key", "value")) for i in layers]
    others = {name: array for name, array in given.items() if name not in arrays}
    return others | {"past_key_values": DynamicCache(pairs)}


@torch.no_grad()
def run(
    model: Model, inputs: dict[str, np.ndarray], keep: Any = 0, *, new: bool = True
) -> dict[str, np.ndarray]:
    """One forward pass: every output by the name that it has in a golden vector.

    new: as a model that has seen nothing before.
    """
    if new:
        as_new(model)
    given = with_cache(arguments(model, inputs))
    labels = given.pop("labels", None)
    keep = torch.from_numpy(keep) if isinstance(keep, np.ndarray) else keep
    out = model(
        **given, use_cache=True, output_attentions=True, output_hidden_states=True, logits_to_keep=keep
    )
    named = {"logits": out.logits, "last_hidden_state": out.hidden_states[-1]}
    named |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    named |= {f"attentions.{i}": weights for i, weights in enumerate(out.attentions)}
    for i, layer in enumerate(out.past_key_values.layers):
        named |= {f"past_key_values.{i}.key": layer.keys, f"past_key_values.{i}.value": layer.values}
    if labels is not None:
        named["loss"] = mean_loss(out.logits, labels)
    return {name: tensor.numpy() for name, tensor in named.items()}


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of every next token whose label is not -100, averaged, in the dtype of `logits`."""
    predicted, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(predicted, wanted, ignore_index=-100)


@torch.no_grad()
def library_loss(model: Model, inputs: dict[str, np.ndarray]) -> float:
    """The loss as the library itself computes it, to check `mean_loss` against."""
    return float(model(**arguments(model, inputs)).loss)


@torch.no_grad()
def run_in_pieces(
    model: Model, inputs: dict[str, np.ndarray], lengths: list[int], *, follow: bool = False
) -> np.ndarray:
    """The logits of a sequence that is fed `lengths` tokens at a time through the cache.

    follow: a wrong cache of a float64 twin, whose keys follow the frequencies of the newest call; there must be
    no `position_ids`.
    """
    given = arguments(as_new(model), inputs)
    past, start, pieces = None, 0, []
    for length in lengths:
        if follow and past is not None:
            _turn_keys(model, past, start, start + length)
        part = {
            name: given[name][:, start : start + length]
            for name in ("input_ids", "position_ids")
            if name in given
        }
        if "attention_mask" in given:
            part["attention_mask"] = given["attention_mask"][:, : start + length]
        out = model(**part, past_key_values=past, use_cache=True)
        past, start = out.past_key_values, start + length
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1).numpy()


def _turn_keys(model: Model, past: Any, before: int, now: int) -> None:
    """Turn the cached keys on, from the frequencies of a text of length `before` to those of length `now`.

    To rotate by one angle and then by the difference to another is to rotate by the other.
    """
    rotary = model.base_model.rotary_emb
    half = rotary.width // 2
    change = rotary.frequencies(now)[0] - rotary.frequencies(before)[0]
    for layer in past.layers:
        angles = torch.arange(layer.keys.shape[2]).double()[:, None] * change
        cos, sin = angles.cos(), angles.sin()
        first, second = layer.keys[..., :half].clone(), layer.keys[..., half : 2 * half].clone()
        layer.keys[..., :half] = first * cos - second * sin
        layer.keys[..., half : 2 * half] = second * cos + first * sin


@torch.no_grad()
def trace(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What every part of the model gave, by the path of its weights (without the model's own name), in this order.

    Beside the outputs of modules: `attention.rotary_query` and `rotary_key` (the rotated part of each head),
    and `attention.context` (the heads' outputs joined, before `dense`).
    """
    modeling, width = family_of(model).modeling, ExactRotary(model.config).width
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for path, module in model.base_model.named_modules():
        if path and "rotary_emb" not in path and "dropout" not in path and path != "layers":
            hooks.append(module.register_forward_hook(_remember(seen, path)))
            if path.endswith("attention.dense"):
                name = path.removesuffix("dense") + "context"
                hooks.append(module.register_forward_pre_hook(_remember_input(seen, name)))
    library = modeling.apply_rotary_pos_emb

    def remember_rotated(query: torch.Tensor, key: torch.Tensor, *tables: torch.Tensor) -> Any:
        rotated = library(query, key, *tables)
        layer = sum(name.endswith("rotary_key") for name in seen)
        for name, states in zip(("rotary_query", "rotary_key"), rotated, strict=True):
            seen[f"layers.{layer}.attention.{name}"] = states[..., :width].contiguous()
        return rotated

    modeling.apply_rotary_pos_emb = remember_rotated
    try:
        seen["logits"] = model(**arguments(as_new(model), inputs)).logits
    finally:
        modeling.apply_rotary_pos_emb = library
        for hook in hooks:
            hook.remove()
    return {name: tensor.numpy() for name, tensor in seen.items()}


def _remember(seen: dict[str, torch.Tensor], path: str) -> Any:
    def hook(module: Any, given: Any, output: Any) -> None:
        seen[path] = output[0] if isinstance(output, tuple) else output

    return hook


def _remember_input(seen: dict[str, torch.Tensor], path: str) -> Any:
    def hook(module: Any, given: Any) -> None:
        seen[path] = given[0]

    return hook


@torch.no_grad()
def greedy(
    model: Model,
    inputs: dict[str, np.ndarray],
    *,
    new_tokens: int,
    eos: int | list[int] | None,
    pad: int | None,
) -> tuple[np.ndarray, float]:
    """The ids of greedy generation, and the smallest lead of a winner, relative to the largest logit.

    Steps of a row that has ended do not count for the lead.
    """
    generation = as_new(model).generation_config
    generation.eos_token_id, generation.pad_token_id, generation.bos_token_id = eos, pad, None
    return _greedy(model, inputs, new_tokens)


def greedy_by_config(
    model: Model, inputs: dict[str, np.ndarray], new_tokens: int
) -> tuple[np.ndarray, float]:
    """The same with the special tokens of the model's config."""
    as_new(model).generation_config = GenerationConfig.from_model_config(model.config)
    return _greedy(model, inputs, new_tokens)


@torch.no_grad()
def _greedy(model: Model, inputs: dict[str, np.ndarray], new_tokens: int) -> tuple[np.ndarray, float]:
    eos = model.generation_config.eos_token_id
    out = model.generate(
        **arguments(model, inputs),
        max_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    prompt = inputs["input_ids"].shape[1]
    ends = {eos} if isinstance(eos, int) else set(eos or [])
    lead, running = float("inf"), np.ones(len(inputs["input_ids"]), dtype=bool)
    for step, logits in enumerate(out.logits):
        best = logits.topk(2, dim=-1).values
        gaps = ((best[:, 0] - best[:, 1]) / logits.abs().max()).numpy()
        lead = min(lead, float(gaps[running].min()))
        running &= np.array([int(token) not in ends for token in out.sequences[:, prompt + step]])
    return out.sequences.numpy(), lead


@torch.no_grad()
def greedy_by_place(model: Model, inputs: dict[str, np.ndarray], new_tokens: int) -> np.ndarray:
    """Greedy ids of a wrong generation, whose position ids count padding too."""
    ids, mask = (torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))
    for _ in range(new_tokens):
        chosen = model(ids, attention_mask=mask).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids, mask = torch.cat([ids, chosen], dim=1), torch.cat([mask, torch.ones_like(chosen)], dim=1)
    return ids.numpy()
