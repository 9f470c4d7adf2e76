"""Tiny random models: how their weights are drawn, and how their folders are written.

Which models there are stands in `tiny_gpt_neox.py` and `tiny_gpt_neox_japanese.py`.
"""

from __future__ import annotations

import copy
import json
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_tensors
from families import Family
from huggingface_hub.errors import StrictDataclassError

PAD, BOS = 0, 1

#: The groups of cases that a plain model has.
ALL_GROUPS = (
    "outputs",
    "loss",
    "padding",
    "positions",
    "embeds",
    "cache",
    "mask4d",
    "keep",
    "greedy",
    "hole",
    "layers",
    "long",
    "arguments",
    "masks",
    "unmasked",
    "by_config",
)

Tensors = dict[str, np.ndarray]
Spreads = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Tiny:
    """One tiny model: its config, how its random weights are drawn, and the groups of cases made of it.

    `rotary_pct`, `rotary_emb_base` and `rope_scaling` in `config` are written so (`v4_spelling`), or as one object
    `rope_parameters`; where `config` itself has `rope_parameters`, the file has them as they are there.  `left_out`
    are keys that the file does not have, so that the defaults of the class hold.  `spreads` replaces (centre, spread)
    of the weights whose key contains the name.  `weights_of` takes the weights of another model of the family, and
    `zero_rows` are rows of the output head that are zero.

    `written` are the rotary settings of the file, where they are not spelt like those in `config`.  `analytic` says
    why the library does not read the file as it is meant (and it is made sure that it does not): then the model is
    not loaded from it.  `unchecked` are settings that the config of the library would not take.

    `pickled` weights lie in `pytorch_model.bin`, as old versions of the library wrote them: no program has to read it.
    """

    config: dict[str, Any]
    groups: tuple[str, ...] = ("forward",)
    features: tuple[str, ...] = ()
    v4_spelling: bool = False
    left_out: tuple[str, ...] = ()
    weights_of: str | None = None
    spreads: Spreads = field(default_factory=dict)
    prelu: float | None = None
    stored_head: str = "embed_out.weight"
    stored_dtype: type[np.floating[Any]] = np.float32
    extra_tensors: Callable[[Tensors, Any], Tensors] | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    zero_rows: tuple[int, ...] = ()
    written: dict[str, Any] | None = None
    analytic: str | None = None
    unchecked: dict[str, Any] = field(default_factory=dict)
    pickled: bool = False

    @property
    def source(self) -> dict[str, Any] | None:
        """Where the numbers come from, if not simply from the library."""
        if self.analytic is None:
            return None
        command = "python golden/make/make_models.py"
        return {
            "kind": "analytic",
            "command": command,
            "how": f"computed by transformers 5.23.0; {self.analytic}",
        }


STORED_HEAD = (
    "by docs/spec/gpt_neox_japanese.md (and by version 4 of the library) the config decides; 5.23.0 itself loads the "
    "stored head"
)


def another_head(tensors: Tensors, config: Any) -> Tensors:
    """An output head that is not the embedding: each token has the row of the one before it."""
    embedding = next(tensor for key, tensor in tensors.items() if key.endswith("embed_in.weight"))
    return {"embed_out.weight": np.roll(embedding, 1, axis=0)}


def build(family: Family, name: str, tiny: Tiny, settings: dict[str, Any], folder: Path) -> Any:
    """Draw the weights of `tiny`, write its folder, and load it back as any user would.

    settings: what the models of the family share; the model's own config is added.
    """
    settings = settings | tiny.config
    if "rope_parameters" in settings:
        apart = ("rotary_pct", "rotary_emb_base")
        settings = {key: value for key, value in settings.items() if key not in apart}
    given = copy.deepcopy(settings)  # the library changes what it is given
    config = family.config_class(**given, architectures=[family.model_class.__name__])
    vars(config).update(tiny.unchecked)
    model = family.model_class._from_config(config, attn_implementation="eager").eval()
    draw_weights(model, zlib.crc32((tiny.weights_of or name).encode()), tiny)
    write_folder(family, model, tiny, settings, folder)
    if tiny.analytic is not None:
        assert not _reads_the_same(family, folder, model), (
            f"{name}: the library reads the file as it is meant"
        )
        return model
    loaded = load(family, folder)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), (
            f"{name}: {key} changed on the way through the file"
        )
    assert _without_type(loaded) == _without_type(model), f"{name}: rope parameters changed"
    return loaded


def _reads_the_same(family: Family, folder: Path, model: Any) -> bool:
    try:
        loaded = load(family, folder)
    except StrictDataclassError:
        return False
    weights = loaded.state_dict()
    same = all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    return same and _without_type(loaded) == _without_type(model)


def load(family: Family, folder: Path) -> Any:
    model = family.model_class.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def _without_type(model: Any) -> dict[str, Any]:
    return {key: value for key, value in model.config.rope_parameters.items() if key != "type"}


@torch.no_grad()
def draw_weights(model: Any, seed: int, tiny: Tiny) -> None:
    """Weights large enough that every wrong variant shows: no norm is the identity, no bias is zero."""
    numbers = np.random.Generator(np.random.PCG64(seed))
    for name, parameter in sorted(model.named_parameters()):
        centre, spread = 0.0, 0.25
        if "layernorm" in name or "layer_norm" in name:
            centre, spread = 1.0 if name.endswith("weight") else 0.0, 0.3
        elif name.endswith("dense_bias"):
            spread = 0.5
        elif "embed" in name or "lm_head" in name:
            spread = 0.4
        for part, given in tiny.spreads.items():
            if part in name:
                centre, spread = given
        values = centre + spread * numbers.standard_normal(tuple(parameter.shape))
        if name.endswith("act.weight"):
            values = np.full(tuple(parameter.shape), tiny.prelu)
        parameter.copy_(torch.from_numpy(values.astype(tiny.stored_dtype).astype(np.float32)))
    model.get_output_embeddings().weight[list(tiny.zero_rows)] = 0


def write_folder(family: Family, model: Any, tiny: Tiny, settings: dict[str, Any], folder: Path) -> None:
    config = json.loads(model.config.to_json_string())
    if tiny.v4_spelling:
        del config["rope_parameters"]
        names = ("rotary_pct", "rotary_emb_base", "rope_scaling")
        config |= {name: settings[name] for name in names if name in settings}
    config |= {key: value for key, value in settings.items() if key == "rope_parameters"}
    if tiny.written is not None:
        del config["rope_parameters"]
        config |= tiny.written
    if tiny.stored_dtype != np.float32:
        config["dtype"] = np.dtype(tiny.stored_dtype).name
    for key in tiny.left_out:
        del config[key]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {key: tensor.numpy().astype(tiny.stored_dtype) for key, tensor in model.state_dict().items()}
    head = tensors.pop(family.head)
    if not model.config.tie_word_embeddings:
        tensors[tiny.stored_head] = head
    if tiny.extra_tensors is not None:
        tensors |= tiny.extra_tensors(tensors, model.config)
    if tiny.pickled:
        write_pickled(tensors, folder)
    else:
        write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})


def write_pickled(tensors: Tensors, folder: Path, version: Any = 1) -> None:
    """`pytorch_model.bin` with what a state dict has beside its tensors: the version of each module."""
    weights = OrderedDict((key, torch.from_numpy(array)) for key, array in tensors.items())
    weights._metadata = OrderedDict({"": {"version": version}})  # type: ignore[attr-defined]
    torch.save(weights, folder / "pytorch_model.bin")
