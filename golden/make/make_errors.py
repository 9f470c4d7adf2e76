"""Calls and model folders that must be refused, each with the kind of refusal that is meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_case_file, write_tensors
from families import JAPANESE, NEOX, Family
from huggingface_hub.errors import StrictDataclassError
from safetensors.numpy import load_file
from tiny_models import Tensors, Tiny, build, load

CALLED = "tiny-one-layer"
STRICT_LOADING = {
    "kind": "analytic",
    "how": "follows from the rule that loading is strict; the library only warns and goes on",
}
STRICT_MASK = {
    "kind": "analytic",
    "how": "a mask speaks of every token; the library takes the missing places for padding, without a word",
}
STRICT_FACTOR = {
    "kind": "analytic",
    "how": "the documentation asks for a factor of more than 1 (version 4 raises an error); version 5 only warns",
}

TINY: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
TINY |= {"eos_token_id": 15, "rotary_pct": 1.0}
OWN: dict[str, dict[str, Any]] = {
    JAPANESE.name: {"intermediate_multiple_size": 2},
    NEOX.name: {"intermediate_size": 16},
}


@dataclass(frozen=True)
class Broken:
    """A sound folder with one thing wrong: in the config, among the tensors, or both."""

    title: str
    error: str
    config: dict[str, Any] | None = None
    tensors: Callable[[Tensors, Family], None] | None = None
    #: Why it is refused where the library goes on.
    source: dict[str, Any] | None = None


def _rope(rope_type: str, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": rope_type, "rope_theta": 10000, "partial_rotary_factor": 1.0, **more}
    return {"rope_parameters": rope}


def _norm(family: Family) -> str:
    return f"{family.name}.final_layer_norm.weight"


def _cut_norm(tensors: Tensors, family: Family) -> None:
    tensors[_norm(family)] = tensors[_norm(family)][:-1].copy()


def _drop_norm(tensors: Tensors, family: Family) -> None:
    del tensors[_norm(family)]


def _add_bias(tensors: Tensors, family: Family) -> None:
    """A bias that the family does not have there."""
    if family is JAPANESE:
        tensors[f"{family.name}.layers.0.attention.query_key_value.bias"] = np.zeros(24, dtype=np.float32)
    else:
        tensors[f"{family.name}.layers.0.attention.dense_bias"] = np.zeros(8, dtype=np.float32)


BROKEN = {
    "unknown-activation": Broken("hidden_act names no activation", "config", {"hidden_act": "gelu_exact"}),
    "heads-do-not-divide": Broken(
        "hidden_size is not a multiple of num_attention_heads", "config", {"num_attention_heads": 3}
    ),
    "wrong-shape": Broken(
        "A tensor has another shape than the config asks for", "checkpoint", tensors=_cut_norm
    ),
    "missing-tensor": Broken(
        "A tensor that the model needs is not in the file", "checkpoint", None, _drop_norm, STRICT_LOADING
    ),
    "unexpected-tensor": Broken(
        "A tensor that no part of the model reads is in the file",
        "checkpoint",
        None,
        _add_bias,
        STRICT_LOADING,
    ),
    "rope-type-unknown": Broken("A rope_type that does not exist", "config", _rope("ntk", factor=2.0)),
    "rope-factor-missing": Broken("The type linear without its factor", "config", _rope("linear")),
    "rope-factor-below-one": Broken(
        "A factor that would stretch positions", "config", _rope("linear", factor=0.5), source=STRICT_FACTOR
    ),
    "longrope-list-too-long": Broken(
        "Three factors of longrope for two frequencies",
        "config",
        _rope("longrope", short_factor=[1.0, 1.0], long_factor=[1.0, 2.0, 4.0], factor=2.0),
    ),
    "longrope-list-missing": Broken(
        "longrope without the factors of long texts", "config", _rope("longrope", short_factor=[1.0, 1.0])
    ),
    "dynamic-two-dimensions": Broken(
        "The type dynamic divides by the rotated width less 2",
        "config",
        _rope("dynamic", factor=2.0, partial_rotary_factor=0.5),
    ),
}
BROKEN_JAPANESE = {
    "odd-rotary-width": Broken(
        "int(head_dim * rotary_pct) is odd: dimensions cannot be paired",
        "config",
        _rope("default", partial_rotary_factor=0.75),
    )
}
BROKEN_NEOX = {
    "bias-despite-config": Broken(
        "attention_bias is false, but the file has the biases",
        "checkpoint",
        {"attention_bias": False},
        source=STRICT_LOADING,
    ),
}


def make_errors(golden: Path, family: Family, shared: dict[str, Any]) -> None:
    """Write all cases of refusal of a family.  shared: what its tiny models have in common."""
    for base in (family.model_folder(""), family.vector_folder("")):
        for old in (golden / base).glob("broken-*"):
            shutil.rmtree(old)
    _calls(golden, family)
    for name, broken in (BROKEN | (BROKEN_NEOX if family is NEOX else BROKEN_JAPANESE)).items():
        _folder(golden, family, shared, f"broken-{name}", broken)


def _calls(golden: Path, family: Family) -> None:
    model = load(family, golden / family.model_folder(CALLED))
    vocab = model.config.vocab_size
    ids = np.array([[5, 6, 7]])
    embeds = np.zeros((1, 3, model.config.hidden_size), dtype=np.float32)
    calls: dict[str, tuple[str, Tensors, dict[str, Any] | None]] = {
        "id-too-large": ("An id of vocab_size or more", {"input_ids": np.array([[5, vocab, 7]])}, None),
        "id-negative": ("A negative id", {"input_ids": np.array([[5, -1, 7]])}, None),
        "ids-are-floats": ("Ids that are not whole numbers", {"input_ids": ids.astype(np.float32)}, None),
        "no-tokens": ("A text of no tokens", {"input_ids": np.zeros((1, 0), dtype=np.int64)}, None),
        "ids-and-embeds": (
            "Both input_ids and inputs_embeds",
            {"input_ids": ids, "inputs_embeds": embeds},
            None,
        ),
        "no-input": ("Neither input_ids nor inputs_embeds", {}, None),
        "mask-of-wrong-length": (
            "An attention mask shorter than the sequence",
            {"input_ids": ids, "attention_mask": np.ones((1, 2), dtype=np.int64)},
            STRICT_MASK,
        ),
    }
    for name, (title, inputs, source) in calls.items():
        tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
        _assert_refused(lambda given=tensors: model(**given), source is None)
        _write(golden, family, CALLED, f"error-{name}", title, "model", inputs, "input", source)


def _folder(golden: Path, family: Family, shared: dict[str, Any], name: str, broken: Broken) -> None:
    folder = golden / family.model_folder(name)
    tiny = Tiny(TINY | OWN[family.name])
    build(family, "broken", tiny, shared, folder)
    tensors = load_file(folder / "model.safetensors")
    if broken.tensors is not None:
        broken.tensors(tensors, family)
        write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    if broken.config is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | broken.config
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
    _assert_refused(lambda: load(family, folder)(torch.tensor([[3, 4, 5]])), broken.source is None)
    _write(golden, family, name, "error-load", broken.title, "load", {}, broken.error, broken.source)


def _assert_refused(call: Callable[[], Any], refuses: bool) -> None:
    """Raises: AssertionError unless the library refuses the call, or accepts it where that is said."""
    refusals = (ValueError, LookupError, RuntimeError, TypeError, ZeroDivisionError, StrictDataclassError)
    try:
        call()
    except refusals:
        assert refuses, "the library refuses what this case says is accepted"
    else:
        assert not refuses, "the library accepts what this case says is refused"


def _write(
    golden: Path,
    family: Family,
    model: str,
    case: str,
    title: str,
    operation: str,
    inputs: Tensors,
    error: str,
    source: dict[str, Any] | None,
) -> None:
    """source: why the case is refused, if the library does not."""
    file = family.vector_file(model, case)
    entry = {
        "id": f"{family.name}/{model}/{case}",
        "title": title,
        "level": "model",
        "operation": operation,
        "features": ["errors"],
        "required": True,
        "spec": family.spec,
        "model": family.model_folder(model),
        "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": {}},
        "expect": {"kind": "error", "error": error},
        "source": source or {**family.source, "how": "the library raises an error too"},
    }
    write_case_file(golden / file, inputs, [entry])
