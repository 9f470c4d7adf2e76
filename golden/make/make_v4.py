"""Golden vectors of what transformers 5 no longer has: head_mask, tuple caches, and token_type_ids beside them.

They need an environment of their own, with Python 3.11:

    python3.11 -m venv .venv-v4
    .venv-v4/bin/pip install -r golden/make/requirements-v4.txt
    .venv-v4/bin/python golden/make/make_v4.py

`python golden/make/make_all.py --v4 .venv-v4/bin/python` runs it with all the others.  It writes
`golden/models/v4/gpt_neox/` and `golden/vectors/v4/FAMILY/*.safetensors`; GPT-NeoX-Japanese is read from
`golden/models/gpt_neox_japanese/tiny-plain/`, which make_models.py makes.

The version is 4.46.3 because it is the newest in which both models do what the documentation says.  From 4.47
on GPT-NeoX turns head_mask round (it keeps what is to go, times -3e38), from 4.49 on it takes no tuple caches,
and transformers 5 does neither for both models.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import rope_types
import torch
import transformers
from common import COMMAND, GOLDEN, numeric_outputs, write_case_file, write_tensors
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXJapaneseForCausalLM

VERSION = "4.46.3"
PAD = 0

FAMILIES = {
    "gpt_neox": ("models/v4/gpt_neox", GPTNeoXForCausalLM),
    "gpt_neox_japanese": ("models/gpt_neox_japanese/tiny-plain", GPTNeoXJapaneseForCausalLM),
}

Arrays = dict[str, np.ndarray]


def source(family: str, how: str) -> dict[str, Any]:
    at = f"v{VERSION}/src/transformers/models/{family}"
    return {
        "kind": "independent",
        "library": "transformers",
        "version": VERSION,
        "address": f"https://github.com/huggingface/transformers/tree/{at}",
        "command": "python golden/make/make_v4.py",
        "how": how,
    }


COMPUTED = (
    "eager attention on CPU, one thread; float32 as the library computes it; float64 is the same code on a "
    "double model with rotary tables in float64"
)
TYPED = (
    "the documentation names the argument; 4.46.3 does not take it, 4.57.3 and 5.23.0 take it and give the "
    "same as without it; these are the outputs without it"
)
REFUSED = "the library raises an error too"


def build_neox(folder: Path) -> None:
    """A tiny GPT-NeoX in the words of version 4: rotary_pct, rotary_emb_base, rope_scaling."""
    config = GPTNeoXConfig(
        vocab_size=37, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=28,
        max_position_embeddings=64, rotary_pct=0.5, bos_token_id=1, eos_token_id=2, pad_token_id=PAD,
        architectures=["GPTNeoXForCausalLM"],
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    numbers = np.random.Generator(np.random.PCG64(46))
    for name, parameter in sorted(model.named_parameters()):
        spread, centre = 0.3, 1.0 if "norm" in name and name.endswith("weight") else 0.0
        values = centre + spread * numbers.standard_normal(tuple(parameter.shape))
        parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stored = json.loads(config.to_json_string())
    (folder / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})


def float64_twin(model: Any) -> Any:
    """A copy of `model` that computes everything in float64, rotary tables included."""
    twin = copy.deepcopy(model).double()
    config = twin.config
    rope = {"rope_type": "default", "rope_theta": config.rotary_emb_base}
    rope["partial_rotary_factor"] = config.rotary_pct
    head_dim = config.hidden_size // config.num_attention_heads

    def tables(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        halves = rope_types.tables(rope, head_dim, config.max_position_embeddings, position_ids.numpy())
        return tuple(torch.from_numpy(np.concatenate([half, half], axis=-1)) for half in halves)

    getattr(twin, twin.base_model_prefix).rotary_emb.forward = tables
    return twin


def run(model: Any, inputs: Arrays) -> Arrays:
    """One call with every output by its name; `past_key_values.N.key` and `.value` are given as tuples."""
    given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    given = {name: t.to(model.dtype) if t.is_floating_point() else t for name, t in given.items()}
    layers = range(model.config.num_hidden_layers)
    if "past_key_values.0.key" in given:
        pairs = [[given.pop(f"past_key_values.{i}.{part}") for part in ("key", "value")] for i in layers]
        given["past_key_values"] = tuple(tuple(pair) for pair in pairs)
    out = model(**given, use_cache=True, output_attentions=True, output_hidden_states=True)
    assert isinstance(out.past_key_values, tuple), "the library did not return a tuple cache"
    named = {"logits": out.logits}
    named |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    named |= {f"attentions.{i}": weights for i, weights in enumerate(out.attentions)}
    for i, (key, value) in enumerate(out.past_key_values):
        named |= {f"past_key_values.{i}.key": key, f"past_key_values.{i}.value": value}
    assert all(tensor.dtype == model.dtype for tensor in named.values()), "computed in another precision"
    return {name: tensor.numpy() for name, tensor in named.items()}


class Maker:
    """Writes the cases of one family."""

    def __init__(self, family: str, golden: Path):
        self.family, self.golden = family, golden
        self.folder, kind = FAMILIES[family]
        self.model = kind.from_pretrained(golden / self.folder, attn_implementation="eager").eval()
        assert self.model.dtype == torch.float32
        self.exact = float64_twin(self.model)
        self.numbers = np.random.Generator(np.random.PCG64(4))

    def ids(self, batch: int, seq: int) -> np.ndarray:
        return self.numbers.integers(3, self.model.config.vocab_size - 1, size=(batch, seq), dtype=np.int64)

    def write(
        self,
        case: str,
        title: str,
        inputs: Arrays,
        wanted: tuple[str, ...],
        features: tuple[str, ...],
        *,
        operation: str = "model",
        real: np.ndarray | None = None,
        unused: Arrays | None = None,
    ) -> Arrays:
        """One case whose outputs are numbers; `unused` inputs are stored, but not given to the library."""
        both = run(self.exact, inputs), run(self.model, inputs)
        exact, single = ({n: a for n, a in r.items() if n.startswith(wanted)} for r in both)
        tensors, expected, tolerance = numeric_outputs(self.file(case), exact, single, real)
        worst = max(entry["measured_float32"] for entry in tolerance.values())
        assert worst < 1e-5, f"{self.family}/{case}: the two precisions did not compute the same"
        if real is not None:
            tensors["real"] = real
            expected["real_tokens"] = "real"
        more = {"expected": expected, "tolerance": tolerance, "operation": operation}
        more["expect"] = {"kind": "return" if real is None else "ignore_rows"}
        more["source"] = source(self.family, COMPUTED if unused is None else TYPED)
        self.save(case, title, inputs | (unused or {}), tensors, features, more)
        return both[0]

    def refuse(self, case: str, title: str, inputs: Arrays, features: tuple[str, ...]) -> None:
        try:
            run(self.model, inputs)
        except (AssertionError, IndexError, RuntimeError, ValueError):
            more: dict[str, Any] = {"expect": {"kind": "error", "error": "input"}, "operation": "model"}
            more["source"] = source(self.family, REFUSED)
            self.save(f"error-{case}", title, inputs, {}, (*features, "errors"), more)
            return
        raise AssertionError(f"{self.family}: the library accepts what the case {case} says is refused")

    def file(self, case: str) -> str:
        return f"vectors/v4/{self.family}/{case}.safetensors"

    def save(
        self,
        case: str,
        title: str,
        inputs: Arrays,
        tensors: Arrays,
        features: tuple[str, ...],
        more: dict[str, Any],
    ) -> None:
        file = self.file(case)
        entry = {
            "id": f"v4/{self.family}/{case}",
            "title": title,
            "level": "model",
            "features": sorted({"transformers-4", *features}),
            "required": False,
            "spec": f"docs/spec/{self.family}.md",
            "model": self.folder,
            "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": {}},
            **more,
        }
        write_case_file(self.golden / file, {**inputs, **tensors}, [entry])


def left_padded(ids: np.ndarray, amounts: list[int]) -> Arrays:
    """`ids` with padding before each row, the mask, and position ids that count real tokens."""
    mask = (np.arange(ids.shape[1]) >= np.array(amounts)[:, None]).astype(np.int64)
    positions = np.where(mask == 1, np.cumsum(mask, axis=1) - 1, 1)
    return {"input_ids": np.where(mask == 1, ids, PAD), "attention_mask": mask, "position_ids": positions}


def head_masks(make: Maker) -> None:
    """Three layers of three heads; a weight of attention is multiplied after the softmax."""
    inputs = {"input_ids": make.ids(2, 4)}
    wanted, features = ("logits", "attentions."), ("head-mask", "attentions")
    heads = np.array([1, 0, 1], dtype=np.float32)
    title = "head_mask [heads]: the second head of every layer is off, also in the attentions returned"
    off = make.write("head-mask", title, inputs | {"head_mask": heads}, wanted, features)
    plain = run(make.exact, inputs)
    assert not off["attentions.1"][:, 1].any()
    assert np.array_equal(off["attentions.0"][:, 0], plain["attentions.0"][:, 0])
    layers = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0]], dtype=np.float32)
    title = "head_mask [layers, heads]: no, two and all heads off"
    given = inputs | {"head_mask": layers}
    make.write("head-mask-layers", title, given, ("logits", "hidden_states."), ("head-mask", "hidden-states"))
    shares = np.array([[1, 0.5, 0.25], [0.75, 1, 0], [0.125, 0.0625, 1]], dtype=np.float32)
    title = "A head_mask of fractions scales what each head gives"
    make.write("head-mask-fractions", title, inputs | {"head_mask": shares}, wanted, features)
    title = "A head_mask with padding on the left"
    inputs = left_padded(make.ids(2, 5), [0, 2])
    real = inputs["attention_mask"] == 1
    features = ("head-mask", "left-padding", "position-ids")
    given = inputs | {"head_mask": shares[::-1].copy()}
    make.write("head-mask-left-padding", title, given, ("logits",), features, real=real)
    inputs = {"input_ids": make.ids(1, 4)}
    for case, title, mask in (
        ("head-mask-of-wrong-length", "A head_mask for four heads where the model has three", np.ones(4)),
        ("head-mask-of-too-few-layers", "A head_mask for two layers of three", np.ones((2, 3))),
        ("head-mask-of-three-dimensions", "A head_mask [batch, layers, heads]", np.ones((1, 3, 3))),
    ):
        make.refuse(case, title, inputs | {"head_mask": mask.astype(np.float32)}, ("head-mask",))


def tuple_caches(make: Maker) -> None:
    """`past_key_values` as a tuple of (key, value) for each layer, given and returned."""
    wanted, features = ("logits", "past_key_values."), ("cache", "tuple-cache")
    more: dict[str, Any] = {"operation": "tuple_cache"}
    title = "Without a cache given: the keys and values of every layer"
    first = {"input_ids": make.ids(2, 3)}
    make.write("tuple-cache-first", title, first, wanted, features)
    past = cache_of(make, first)
    title = "One more token with a tuple cache of three; the cache that comes back holds four"
    make.write("tuple-cache", title, {"input_ids": make.ids(2, 1), **past}, wanted, features, **more)
    title = "Two more tokens at once"
    several = {"input_ids": make.ids(2, 2), **past}
    make.write("tuple-cache-several", title, several, wanted, features, **more)
    title = "A head_mask together with a tuple cache"
    shares = np.array([[1, 0, 0.5], [0.25, 1, 1], [1, 1, 0]], dtype=np.float32)
    inputs = several | {"head_mask": shares}
    make.write("tuple-cache-head-mask", title, inputs, ("logits",), (*features, "head-mask"), **more)
    title = "Padding on the left: the mask speaks of cached and new tokens, position_ids of the new ones"
    whole = left_padded(make.ids(2, 5), [0, 2])
    past = cache_of(make, {name: array[:, :3].copy() for name, array in whole.items()})
    rest = {name: array[:, 3:].copy() for name, array in whole.items() if name != "attention_mask"}
    inputs = rest | {"attention_mask": whole["attention_mask"], **past}
    features = (*features, "left-padding", "position-ids")
    make.write("tuple-cache-left-padding", title, inputs, wanted, features, **more)


def cache_of(make: Maker, inputs: Arrays) -> Arrays:
    """What a call in float32 leaves in the cache: numbers that both precisions can start from."""
    return {name: array for name, array in run(make.model, inputs).items() if name.startswith("past_")}


def token_types(make: Maker) -> None:
    inputs = {"input_ids": make.ids(2, 5)}
    unused = {"token_type_ids": np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])}
    title = "token_type_ids are taken and have no effect"
    make.write("token-type-ids", title, inputs, ("logits",), ("token-type-ids",), unused=unused)


@torch.no_grad()
def make_v4(golden: Path = GOLDEN) -> None:
    assert transformers.__version__ == VERSION, (
        f"transformers {transformers.__version__}: see the head of this file"
    )
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for base in ("models", "vectors"):
        shutil.rmtree(golden / base / "v4", ignore_errors=True)
    build_neox(golden / FAMILIES["gpt_neox"][0])
    for family in FAMILIES:
        make = Maker(family, golden)
        for group in (head_masks, tuple_caches, token_types):
            group(make)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="where to write (default: this folder's parent)"
    )
    make_v4(parser.parse_args().golden)
    print(f"done; {COMMAND} makes the rest and the manifest")


if __name__ == "__main__":
    main()
