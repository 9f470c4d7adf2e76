"""Calls and model folders that must be refused, each with the kind of refusal that is meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import SOURCE, SPEC
from common import write_case_file, write_tensors
from safetensors.numpy import load_file
from tiny_models import FAMILY, Tiny, build, load, model_folder

CALLED = "tiny-one-layer"
REFUSED = {**SOURCE, "how": "the library raises an error too"}
STRICT_LOADING = {
    "kind": "analytic",
    "how": "follows from the rule that loading is strict; the library only warns and goes on",
}
STRICT_MASK = {
    "kind": "analytic",
    "how": "a mask speaks of every token; the library takes the missing places for padding, without a word",
}

TINY: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
NORM, QKV = f"{FAMILY}.final_layer_norm.weight", f"{FAMILY}.layers.0.attention.query_key_value.weight"


def make_errors(golden: Path) -> None:
    """Write all cases of refusal."""
    for base in ("models", "vectors"):
        for old in (golden / base / FAMILY).glob("broken-*"):
            shutil.rmtree(old)
    _calls(golden)
    _folder(
        golden, "unknown-activation", "hidden_act names no activation", "config", {"hidden_act": "gelu_exact"}
    )
    title = "hidden_size is not a multiple of num_attention_heads"
    _folder(golden, "heads-do-not-divide", title, "config", {"num_attention_heads": 3})
    title = "int(head_dim * rotary_pct) is odd: dimensions cannot be paired"
    rope = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.75}
    _folder(golden, "odd-rotary-width", title, "config", {"rope_parameters": rope})
    _folder(
        golden, "wrong-shape", "A tensor has another shape than the config asks for", "checkpoint", _cut_norm
    )
    title = "A tensor that the model needs is not in the file"
    _folder(golden, "missing-tensor", title, "checkpoint", _drop_norm, refuses=False)
    title = "A tensor that no part of the model reads is in the file"
    _folder(golden, "unexpected-tensor", title, "checkpoint", _add_bias, refuses=False)


def _calls(golden: Path) -> None:
    model = load(golden / model_folder(CALLED))
    vocab = model.config.vocab_size
    ids = np.array([[5, 6, 7]])
    embeds = np.zeros((1, 3, model.config.hidden_size), dtype=np.float32)
    calls = {
        "id-too-large": ("An id of vocab_size or more", {"input_ids": np.array([[5, vocab, 7]])}),
        "id-negative": ("A negative id", {"input_ids": np.array([[5, -1, 7]])}),
        "ids-and-embeds": ("Both input_ids and inputs_embeds", {"input_ids": ids, "inputs_embeds": embeds}),
        "no-input": ("Neither input_ids nor inputs_embeds", {}),
        "mask-of-wrong-length": (
            "An attention mask shorter than the sequence",
            {"input_ids": ids, "attention_mask": np.ones((1, 2), dtype=np.int64)},
        ),
    }
    for name, (title, inputs) in calls.items():
        source = STRICT_MASK if name == "mask-of-wrong-length" else REFUSED
        tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
        if source is REFUSED:
            _assert_refused(lambda given=tensors: model(**given))
        _write(golden, CALLED, f"error-{name}", title, "model", inputs, "input", source)


def _folder(
    golden: Path,
    name: str,
    title: str,
    error: str,
    change: dict[str, Any] | Callable[[dict[str, np.ndarray]], None],
    refuses: bool = True,
) -> None:
    """A sound folder with one thing wrong: either in the config, or among the tensors."""
    folder = golden / model_folder(f"broken-{name}")
    build_tiny(folder)
    if callable(change):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | change
        (folder / "config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    if refuses:
        _assert_refused(lambda: load(folder)(torch.tensor([[3, 4, 5]])))
    _write(
        golden,
        f"broken-{name}",
        "error-load",
        title,
        "load",
        {},
        error,
        REFUSED if refuses else STRICT_LOADING,
    )


def build_tiny(folder: Path) -> None:
    """The sound model that the broken ones are made of."""
    build("broken", Tiny(TINY | {"eos_token_id": 15, "intermediate_multiple_size": 2}), folder)


def _cut_norm(tensors: dict[str, np.ndarray]) -> None:
    tensors[NORM] = tensors[NORM][:-1].copy()


def _drop_norm(tensors: dict[str, np.ndarray]) -> None:
    del tensors[NORM]


def _add_bias(tensors: dict[str, np.ndarray]) -> None:
    tensors[QKV.replace("weight", "bias")] = np.zeros(24, dtype=np.float32)


def _assert_refused(call: Callable[[], Any]) -> None:
    try:
        call()
    except (ValueError, IndexError, KeyError, RuntimeError, TypeError):
        return
    raise AssertionError("the library accepts what this case says is refused")


def _write(
    golden: Path,
    model: str,
    case: str,
    title: str,
    operation: str,
    inputs: dict[str, np.ndarray],
    error: str,
    source: dict[str, Any],
) -> None:
    file = f"vectors/{FAMILY}/{model}/{case}.safetensors"
    entry = {
        "id": f"{FAMILY}/{model}/{case}",
        "title": title,
        "level": "model",
        "operation": operation,
        "features": ["errors"],
        "required": True,
        "spec": SPEC,
        "model": model_folder(model),
        "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": {}},
        "expect": {"kind": "error", "error": error},
        "source": source,
    }
    write_case_file(golden / file, inputs, [entry])
