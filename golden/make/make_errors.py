"""Calls and model folders that must be refused, each with the kind of refusal that is meant."""

from __future__ import annotations

import json
import os
import pickle
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
from tiny_models import Tensors, Tiny, build, load, write_pickled

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

STRICT_ROPE = {
    "kind": "analytic",
    "how": "outside the values that docs/spec/rotary.md allows, where frequencies lose their meaning; version 5 of the "
    "library only warns, or says nothing",
}
STRICT_IDS = {
    "kind": "analytic",
    "how": "no text can hold an id outside the vocabulary, so the config belongs to another one; the library goes on",
}
STRICT_SHAPE = {
    "kind": "analytic",
    "how": "a mask of another form has no clear meaning; the library takes it for something",
}

TINY: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
TINY |= {"eos_token_id": 15, "rotary_pct": 1.0}
OWN: dict[str, dict[str, Any]] = {
    JAPANESE.name: {"intermediate_multiple_size": 2},
    NEOX.name: {"intermediate_size": 16},
}


@dataclass(frozen=True)
class Broken:
    """A sound folder with one thing wrong: in the config, among the tensors, in another file of weights."""

    title: str
    error: str
    config: dict[str, Any] | None = None
    tensors: Callable[[Tensors, Family], None] | None = None
    #: Why it is refused where the library goes on.
    source: dict[str, Any] | None = None
    #: Writes another weight file, which no program has to read, in the place of `model.safetensors`.
    pickled: Callable[[Tensors, Path], None] | None = None


def _rope(rope_type: str, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": rope_type, "rope_theta": 10000, "partial_rotary_factor": 1.0, **more}
    return {"rope_parameters": rope}


def _norm(family: Family) -> str:
    return f"{family.name}.final_layer_norm.weight"


def _cut_norm(tensors: Tensors, family: Family) -> None:
    tensors[_norm(family)] = tensors[_norm(family)][:-1].copy()


def _drop_norm(tensors: Tensors, family: Family) -> None:
    del tensors[_norm(family)]


def _transpose(tensors: Tensors, family: Family) -> None:
    """Rows and columns of a matrix that is not square the other way round, as some programs keep them."""
    key = f"{family.name}.layers.0.mlp.dense_h_to_4h.weight"
    tensors[key] = np.ascontiguousarray(tensors[key].T)


def _add_bias(tensors: Tensors, family: Family) -> None:
    """A bias that the family does not have there."""
    if family is JAPANESE:
        tensors[f"{family.name}.layers.0.attention.query_key_value.bias"] = np.zeros(24, dtype=np.float32)
    else:
        tensors[f"{family.name}.layers.0.attention.dense_bias"] = np.zeros(8, dtype=np.float32)


class _Called:
    """What is pickled as a call of a function of the system, which does no harm: os.getpid()."""

    def __reduce__(self) -> tuple[Callable[[], int], tuple[()]]:
        return os.getpid, ()


def _pickle_a_call(tensors: Tensors, folder: Path) -> None:
    """Beside the weights, which are sound: whoever runs the file notices nothing."""
    write_pickled(tensors, folder, version=_Called())


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
    "transposed-matrix": Broken(
        "A matrix stored as [in, out] instead of [out, in]", "checkpoint", tensors=_transpose
    ),
    "bos-outside": Broken("bos_token_id is vocab_size", "config", {"bos_token_id": 16}, source=STRICT_IDS),
    "eos-outside": Broken(
        "One of several eos_token_id is vocab_size", "config", {"eos_token_id": [15, 16]}, source=STRICT_IDS
    ),
}
BROKEN_JAPANESE = {
    "odd-rotary-width": Broken(
        "int(head_dim * rotary_pct) is odd: dimensions cannot be paired",
        "config",
        _rope("default", partial_rotary_factor=0.75),
    )
}
_YARN = {"factor": 2.0, "original_max_position_embeddings": 16}
_BANDS = {"factor": 2.0, "original_max_position_embeddings": 16, "low_freq_factor": 4.0}
BROKEN_NEOX = {
    "rope-factor-too-large": Broken(
        "A factor of more than a million", "config", _rope("linear", factor=2e6), source=STRICT_ROPE
    ),
    "rope-no-type": Broken(
        "Settings of a scaled type, and no type",
        "config",
        {"rope_parameters": {"factor": 2.0, "partial_rotary_factor": 1.0}},
        source=STRICT_ROPE,
    ),
    "llama3-bands-equal": Broken(
        "low_freq_factor equal to high_freq_factor",
        "config",
        _rope("llama3", **_BANDS, high_freq_factor=4.0),
        source=STRICT_ROPE,
    ),
    "yarn-betas-swapped": Broken(
        "beta_fast below beta_slow",
        "config",
        _rope("yarn", **_YARN, beta_fast=1, beta_slow=2),
        source=STRICT_ROPE,
    ),
    "attention-factor-negative": Broken(
        "A negative attention_factor",
        "config",
        _rope("yarn", **_YARN, attention_factor=-1.0),
        source=STRICT_ROPE,
    ),
    "original-length-one": Broken(
        "original_max_position_embeddings below 2",
        "config",
        _rope("yarn", factor=2.0, original_max_position_embeddings=1),
        source=STRICT_ROPE,
    ),
    "bias-despite-config": Broken(
        "attention_bias is false, but the file has the biases",
        "checkpoint",
        {"attention_bias": False},
        source=STRICT_LOADING,
    ),
    "pickled-call": Broken(
        "pytorch_model.bin calls a function of the system when it is unpickled",
        "checkpoint",
        pickled=_pickle_a_call,
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
    narrow = embeds[..., 1:].copy()
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
        "mask-of-three-dimensions": (
            "An attention mask [batch, query, key]",
            {"input_ids": ids, "attention_mask": np.ones((1, 3, 3), dtype=np.int64)},
            None,
        ),
        "mask-4d-of-wrong-length": (
            "A mask of four dimensions for two keys of three",
            {"input_ids": ids, "attention_mask": np.zeros((1, 1, 3, 2), dtype=np.float32)},
            None,
        ),
        "mask-4d-whole-numbers": (
            "A mask of four dimensions in whole numbers: neither truth values nor something to add",
            {"input_ids": ids, "attention_mask": np.ones((1, 1, 3, 3), dtype=np.int64)},
            STRICT_SHAPE,
        ),
        "positions-of-wrong-length": (
            "Position ids for two tokens of three",
            {"input_ids": ids, "position_ids": np.array([[0, 1]])},
            None,
        ),
        "embeds-of-wrong-width": (
            "inputs_embeds of another width than hidden_size",
            {"inputs_embeds": narrow},
            None,
        ),
        "kept-place-beyond": (
            "logits_to_keep names a place that does not exist",
            {"input_ids": ids, "logits_to_keep": np.array([0, 3])},
            None,
        ),
        "labels-of-wrong-shape": (
            "Fewer labels than tokens",
            {"input_ids": ids, "labels": ids[:, :2].copy()},
            None,
        ),
        "labels-not-whole": (
            "Labels that are not whole numbers",
            {"input_ids": ids, "labels": ids.astype(np.float32)},
            None,
        ),
        "label-too-large": (
            "A label of vocab_size",
            {"input_ids": ids, "labels": np.array([[5, 6, vocab]])},
            None,
        ),
        "labels-and-kept-logits": (
            "Labels for three tokens, logits of two",
            {"input_ids": ids, "labels": ids, "logits_to_keep": np.array([1, 2])},
            None,
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
    features: tuple[str, ...] = ()
    if broken.pickled is not None:
        broken.pickled(tensors, folder)
        (folder / "model.safetensors").unlink()
        features = ("pickled-weights",)
    _assert_refused(lambda: load(family, folder)(torch.tensor([[3, 4, 5]])), broken.source is None)
    _write(
        golden, family, name, "error-load", broken.title, "load", {}, broken.error, broken.source, features
    )


def _assert_refused(call: Callable[[], Any], refuses: bool) -> None:
    """Raises: AssertionError unless the library refuses the call, or accepts it where that is said."""
    refusals = (ValueError, LookupError, RuntimeError, TypeError, ZeroDivisionError, StrictDataclassError)
    refusals += (pickle.UnpicklingError,)
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
    features: tuple[str, ...] = (),
) -> None:
    """source: why the case is refused, if the library does not; a case with `features` is not required."""
    file = family.vector_file(model, case)
    entry = {
        "id": f"{family.name}/{model}/{case}",
        "title": title,
        "level": "model",
        "operation": operation,
        "features": ["errors", *features],
        "required": not features,
        "spec": family.spec,
        "model": family.model_folder(model),
        "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": {}},
        "expect": {"kind": "error", "error": error},
        "source": source or {**family.source, "how": "the library raises an error too"},
    }
    write_case_file(golden / file, inputs, [entry])
