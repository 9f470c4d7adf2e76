"""Tiny GPT-NeoX models with a task head: their folders, and transformers as an oracle for them.

`float64_twin` and `run` compute rotary tables, attention weights and losses in the dtype of the model, which
the library keeps in float32.
"""

from __future__ import annotations

import copy
import json
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import rope_types
import torch
import transformers
from common import write_tensors
from safetensors.numpy import load_file
from torch.nn import functional
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox import modeling_gpt_neox as modeling

FAMILY = "gpt_neox_heads"
PAD = 0

QUESTION = "GPTNeoXForQuestionAnswering"
SEQUENCE = "GPTNeoXForSequenceClassification"
TOKEN = "GPTNeoXForTokenClassification"


@dataclass(frozen=True)
class Head:
    """One tiny model: its class and what its config sets."""

    architecture: str
    config: dict[str, Any]
    v4_spelling: bool = False


def names(*labels: str) -> dict[str, Any]:
    """The two dictionaries of a config that name the labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


BASE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
    "rotary_pct": 0.5,
}

MODELS = {
    "question": Head(QUESTION, {"hidden_size": 24, "num_attention_heads": 3}),
    "sequence-two-labels": Head(SEQUENCE, names("bad", "good"), v4_spelling=True),
    "sequence-five-labels": Head(
        SEQUENCE,
        names("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
        | {"pad_token_id": None, "problem_type": "single_label_classification"},
    ),
    "sequence-regression": Head(SEQUENCE, names("reward") | {"use_parallel_residual": False}),
    "sequence-regression-three": Head(
        SEQUENCE, names("x", "y", "z") | {"problem_type": "regression", "pad_token_id": 7}
    ),
    "sequence-multi-label": Head(
        SEQUENCE,
        names("news", "sport", "music", "law") | {"problem_type": "multi_label_classification"},
        v4_spelling=True,
    ),
    "token-five-labels": Head(
        TOKEN,
        names("O", "B-PER", "I-PER", "B-LOC", "I-LOC") | {"hidden_size": 20, "rotary_pct": 0.45},
    ),
}


#: A file without the head that its config promises; small, since nothing is computed with it.
HEADLESS = Head(
    SEQUENCE,
    {
        "vocab_size": 11,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    },
)


def build_headless(folder: Path) -> Any:
    """The folder of a model without its head, as the library loads it.  (It makes up a head, and says so.)"""
    build("broken-missing-head", HEADLESS, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    return getattr(transformers, SEQUENCE).from_pretrained(folder)


def build(name: str, head: Head, folder: Path) -> Any:
    """Draw the weights, write the folder, and load it back as any user would."""
    settings = BASE | head.config
    config = GPTNeoXConfig(**settings, architectures=[head.architecture])
    model = getattr(transformers, head.architecture)(config)
    draw_weights(model, zlib.crc32(name.encode()))
    stored = json.loads(config.to_json_string())
    if head.v4_spelling:
        del stored["rope_parameters"]
        stored |= {"rotary_pct": settings["rotary_pct"], "rotary_emb_base": 10000}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    loaded = getattr(transformers, head.architecture).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), f"{name}: {key} changed in the file"
    return loaded.eval()


@torch.no_grad()
def draw_weights(model: Any, seed: int) -> None:
    """No norm is the identity and no bias is zero, so that leaving one out shows."""
    numbers = np.random.Generator(np.random.PCG64(seed))
    for name, parameter in sorted(model.named_parameters()):
        spread, centre = 0.3, 0.0
        if "norm" in name:
            centre = 1.0 if name.endswith("weight") else 0.0
        elif "embed" in name or not name.startswith("gpt_neox."):
            spread = 0.5
        values = centre + spread * numbers.standard_normal(tuple(parameter.shape))
        parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def float64_twin(model: Any) -> Any:
    """A copy of `model` that computes everything in float64, rotary tables included."""
    twin = copy.deepcopy(model).double()
    config = twin.config
    head_dim = config.hidden_size // config.num_attention_heads

    def tables(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        halves = rope_types.tables(
            config.rope_parameters, head_dim, config.max_position_embeddings, position_ids.numpy()
        )
        cos, sin = (torch.from_numpy(half) for half in halves)
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)

    twin.gpt_neox.rotary_emb.forward = tables
    return twin


@contextmanager
def softmax_in_own_dtype() -> Iterator[None]:
    """The library's eager attention with its softmax in the dtype of the scores, not always in float32."""

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = query @ key.transpose(2, 3) * scaling
        weights = (scores if attention_mask is None else scores + attention_mask).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    library = modeling.eager_attention_forward
    modeling.eager_attention_forward = attend
    try:
        yield
    finally:
        modeling.eager_attention_forward = library


LABELS = ("labels", "start_positions", "end_positions")


@torch.no_grad()
def run(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output by its name; the loss as the library computes it in float32, or by `loss` in float64."""
    model = copy.deepcopy(model)  # the library notes an inferred problem_type in the config
    given = oracle.with_cache(oracle.arguments(model, inputs))
    exact = model.dtype == torch.float64
    wanted = {name: given.pop(name) for name in LABELS if exact and name in given}
    with softmax_in_own_dtype() if exact else _nothing():
        out = model(**given, output_attentions=True, output_hidden_states=True)
    named = {name: out[name] for name in ("loss", "logits", "start_logits", "end_logits") if name in out}
    named |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    named |= {f"attentions.{i}": weights for i, weights in enumerate(out.attentions)}
    if "past_key_values" in out:
        for i, layer in enumerate(out.past_key_values.layers):
            named |= {f"past_key_values.{i}.key": layer.keys, f"past_key_values.{i}.value": layer.values}
    if wanted:
        named["loss"] = loss(model.config, out, wanted)
    assert all(tensor.dtype == model.dtype for tensor in named.values()), "computed in another precision"
    return {name: tensor.numpy() for name, tensor in named.items()}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def loss(config: Any, out: Any, wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a head by its definition, in the dtype of the logits."""
    if "start_positions" in wanted:
        length = out.start_logits.shape[1]
        ends = [
            functional.cross_entropy(scores, wanted[name].reshape(-1).clamp(0, length), ignore_index=length)
            for scores, name in ((out.start_logits, "start_positions"), (out.end_logits, "end_positions"))
        ]
        return (ends[0] + ends[1]) / 2
    logits, labels = out.logits, wanted["labels"]
    if config.architectures == [TOKEN]:
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    kind = config.problem_type or (
        "regression" if config.num_labels == 1 else "multi" if labels.is_floating_point() else "single"
    )
    if kind.startswith("single"):
        return functional.cross_entropy(logits, labels.flatten())
    if kind == "regression":
        return ((logits - labels.reshape(logits.shape)) ** 2).mean()
    return (functional.softplus(logits) - labels * logits).mean()
