"""Golden vectors of single operations: activations, layer norm, rotary, softmax, attention, linear.

`python golden/make/make_ops.py` writes `golden/vectors/ops/*.safetensors`.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import rope_types
import torch
from common import COMMAND, GOLDEN, numeric_outputs, write_case_file
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXJapaneseConfig
from transformers.activations import ACT2FN
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.gpt_neox_japanese import modeling_gpt_neox_japanese as modeling

SPEC = "docs/spec/operations.md"
TORCH = {
    "kind": "independent",
    "library": "torch",
    "version": "2.13.0",
    "address": "https://docs.pytorch.org/docs/2.13/",
    "command": "python golden/make/make_ops.py",
}
TRANSFORMERS = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers",
    "command": "python golden/make/make_ops.py",
}

Arrays = dict[str, np.ndarray]


class OpMaker:
    """Runs one operation in both precisions on inputs that float32 holds exactly, and stores it."""

    def __init__(self, golden: Path):
        self.golden = golden
        self.numbers = np.random.Generator(np.random.PCG64(11))

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * self.numbers.standard_normal(shape)).astype(np.float32)

    def make(
        self,
        name: str,
        title: str,
        operation: str,
        inputs: Arrays,
        compute: Callable[..., Any],
        *,
        outputs: tuple[str, ...] = ("y",),
        arguments: dict[str, Any] | None = None,
        source: dict[str, Any] = TORCH,
        features: tuple[str, ...] = (),
        scale: str = "largest",
    ) -> None:
        """`compute` takes the dtype and the inputs by name, and returns one tensor for each of `outputs`."""
        exact = self._run(inputs, compute, outputs, torch.float64)
        single = self._run(inputs, compute, outputs, torch.float32)
        file = f"vectors/ops/{name}.safetensors"
        tensors, expected, tolerance = numeric_outputs(file, exact, single, scale=scale)
        entry = {
            "id": f"ops/{name}",
            "title": title,
            "level": "op",
            "operation": operation,
            "features": sorted(features),
            "required": True,
            "spec": f"{SPEC}#{operation.replace('_', '-')}",
            "inputs": {"file": file, "tensors": {key: key for key in inputs}, "arguments": arguments or {}},
            "expected": expected,
            "tolerance": tolerance,
            "expect": {"kind": "return"},
            "source": source,
        }
        write_case_file(self.golden / file, {**inputs, **tensors}, [entry])

    @staticmethod
    @torch.no_grad()
    def _run(
        inputs: Arrays, compute: Callable[..., Any], outputs: tuple[str, ...], dtype: torch.dtype
    ) -> Arrays:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
        given = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        result = compute(dtype, **given)
        results = result if isinstance(result, tuple) else (result,)
        assert all(tensor.dtype == dtype for tensor in results), (
            "computed in another precision than asked for"
        )
        return {name: tensor.numpy() for name, tensor in zip(outputs, results, strict=True)}


# --- activations ---------------------------------------------------------------------------------

#: Parameters of the two activations that learn some; far from their defaults, exact in bfloat16.
PARAMETERS = {
    "prelu": {"weight": np.array([-0.375], dtype=np.float32)},
    "xielu": {
        "alpha_p": np.array([0.75], dtype=np.float32),
        "alpha_n": np.array([-0.5], dtype=np.float32),
        "beta": np.array(0.625, dtype=np.float32),
        "eps": np.array(-(2.0**-20), dtype=np.float32),
    },
}


def activation_grid() -> np.ndarray:
    """Quarter steps around zero, extremes, both zeros, tiny values, and the kinks of the clipped forms.

    Nothing lies between 20 and 30: there torch's softplus is its argument, not the true value.
    """
    middle = np.arange(-8, 8.25, 0.25)
    outer = [-30.0, -25.0, -20.0, -15.0, -12.0, -10.0, -9.0, 9.0, 10.0, 12.0, 15.0, 20.0, 30.0]
    small = [1e-1, 1e-2, 1e-3, 1e-6, 1e-20, 1e-38]
    zeros = [0.0, -0.0]
    kinks = [2.9999, 3.0001, -2.9999, -3.0001, 5.9999, 6.0001]
    values = np.concatenate([middle, outer, small, np.negative(small), zeros, kinks])
    return values.astype(np.float32)


def make_activations(make: OpMaker) -> None:
    grid = activation_grid()
    for name in ACT2FN:
        parameters = PARAMETERS.get(name, {})

        def compute(dtype: Any, x: torch.Tensor, name: str = name, **given: torch.Tensor) -> torch.Tensor:
            function = ACT2FN[name].to(dtype)
            for key, value in given.items():
                getattr(function, key).data = value
            return function(x)

        make.make(
            f"activation-{name}",
            f"The activation {name}, on a grid with its extremes",
            "activation",
            {"x": grid, **parameters},
            compute,
            arguments={"name": name, "parameters": list(parameters)},
            source=TRANSFORMERS,
            features=("activation-parameters",) if parameters else (),
            scale="element",
        )


# --- the other operations ------------------------------------------------------------------------


def make_layer_norms(make: OpMaker) -> None:
    weight, bias = 1 + make.normal(24, scale=0.3), make.normal(24, scale=0.3)
    far = make.normal(2, 3, 24) + np.array([1000.0, -300.0, 0.0], dtype=np.float32)[:, None]
    flat = np.full((1, 2, 24), 7.0, dtype=np.float32)
    flat[0, 1] += make.normal(24, scale=1e-3)
    cases = {
        "layer-norm": ("Layer norm of ordinary numbers", make.normal(2, 3, 24, scale=2.0), 1e-5),
        "layer-norm-offset": ("Rows whose mean is far larger than their spread", far, 1e-5),
        "layer-norm-eps": ("A large eps, on small numbers", make.normal(2, 3, 24, scale=0.05), 1e-2),
        "layer-norm-flat": ("A row of equal numbers, and one that is nearly so", flat, 1e-5),
    }
    for name, (title, x, eps) in cases.items():

        def compute(dtype: Any, x: torch.Tensor, eps: float = eps, **given: torch.Tensor) -> torch.Tensor:
            return functional.layer_norm(x, x.shape[-1:], **given, eps=eps)

        inputs = {"x": x, "weight": weight, "bias": bias}
        make.make(name, title, "layer_norm", inputs, compute, arguments={"eps": eps})


def make_softmaxes(make: OpMaker) -> None:
    hidden = float(np.finfo(np.float32).min)
    rows = np.stack(
        [make.normal(9, scale=3.0), make.normal(9, scale=60.0), np.full(9, 2.5), make.normal(9) + 900]
    )
    rows[0, 4:], rows[1, 0] = hidden, -np.inf
    title = "Softmax of sharp, flat, offset and partly hidden rows"
    make.make("softmax", title, "softmax", {"x": rows.astype(np.float32)}, lambda dtype, x: x.softmax(-1))


def make_linears(make: OpMaker) -> None:
    inputs = {"x": make.normal(2, 5, 24), "weight": make.normal(17, 24), "bias": make.normal(17)}
    make.make("linear-bias", "x @ weight.T + bias", "linear", inputs, lambda dtype, **given: dense(**given))
    del inputs["bias"]
    make.make("linear", "x @ weight.T", "linear", inputs, lambda dtype, **given: dense(**given))


def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return functional.linear(x, weight, bias)


def make_rotaries(make: OpMaker) -> None:
    far = np.array([[0, 1, 2, 63, 64, 1023, 2047, 2048, 4095, 4096]])
    for name, head_dim, share, base, title in (
        ("rotary-tables", 8, 1.0, 10000, "cos and sin for the whole head, at positions up to 4096"),
        ("rotary-tables-partial", 10, 0.45, 10000, "cos and sin for 4 of 10 dimensions: int() truncates 4.5"),
        ("rotary-tables-base", 8, 1.0, 100, "cos and sin with base 100"),
    ):
        rope = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}
        config = GPTNeoXJapaneseConfig(
            hidden_size=2 * head_dim, num_attention_heads=2, num_hidden_layers=1, vocab_size=40000,
            rotary_pct=share, rotary_emb_base=base,
        )  # fmt: skip
        embedding = modeling.GPTNeoXJapaneseRotaryEmbedding(config)
        arguments = {"head_dim": head_dim, "rotary_pct": share, "rotary_emb_base": base}
        how = "float32 by transformers, whose angles are float32 products; float64 by the definition"
        compute = _tables(embedding, rope, head_dim, config.max_position_embeddings)
        make.make(
            name, title, "rotary_tables", {"position_ids": far}, compute, outputs=("cos", "sin"),
            arguments=arguments, source={**TRANSFORMERS, "how": how}, features=("rotary",),
        )  # fmt: skip
    make_rope_types(make)
    for name, head_dim, width, title in (
        ("rotary", 8, 8, "Rotating the whole head: dimension i is paired with i + half"),
        ("rotary-partial", 10, 4, "Rotating the first 4 of 10 dimensions; the rest passes unchanged"),
    ):
        angles = make.normal(2, 5, width // 2, scale=3.0).astype(np.float64)
        inputs = {
            "x": make.normal(2, 3, 5, head_dim),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
        }
        make.make(name, title, "rotary", inputs, rotate, source=TRANSFORMERS, features=("rotary",))


def make_rope_types(make: OpMaker) -> None:
    """Every rope type, for whole and for partly rotated heads."""
    for name, case in rope_types.CASES.items():
        for width in rope_types.WIDTHS:
            head_dim, rope = rope_types.settings(case, width)
            config = GPTNeoXConfig(
                hidden_size=2 * head_dim, num_attention_heads=2, num_hidden_layers=1, vocab_size=9,
                max_position_embeddings=case.longest, rope_parameters=dict(rope),
            )  # fmt: skip
            how = (
                "float64 by the definition, with NumPy alone; float32 by transformers 5.23.0 (GPTNeoXConfig)"
            )
            source = {"kind": "analytic", "address": case.source, "command": "python golden/make/make_ops.py"}
            arguments = {
                "head_dim": head_dim, "rope_parameters": rope, "max_position_embeddings": case.longest
            }  # fmt: skip
            features = ["rotary", f"rope-{rope['rope_type']}"] + ["partial-rotary"] * (width == "partial")
            make.make(
                f"rotary-tables-{name}-{width}", case.title, "rotary_tables",
                {"position_ids": np.array(case.positions)},
                _tables(GPTNeoXRotaryEmbedding(config), rope, head_dim, case.longest),
                outputs=("cos", "sin"), arguments=arguments, source=source | {"how": how},
                features=tuple(features),
            )  # fmt: skip


def _tables(embedding: Any, rope: dict[str, Any], head_dim: int, longest: int) -> Callable[..., Any]:
    """cos and sin [batch, seq, width / 2]: float64 by the definition, float32 by the library's own module."""
    half = rope_types.rotated_width(head_dim, rope) // 2

    def compute(dtype: Any, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if dtype == torch.float64:
            cos, sin = rope_types.tables(rope, head_dim, longest, position_ids.numpy())
            return torch.from_numpy(cos), torch.from_numpy(sin)
        cos, sin = embedding(torch.zeros(1), position_ids)
        return cos[..., :half].contiguous(), sin[..., :half].contiguous()

    return compute


def rotate(dtype: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The library's rotation of the first dimensions of each head; the rest is joined unchanged."""
    width = 2 * cos.shape[-1]
    twice = [torch.cat([table, table], dim=-1) for table in (cos, sin)]
    rotated, _ = modeling.apply_rotary_pos_emb(x[..., :width], x[..., :width], *twice)
    return torch.cat([rotated, x[..., width:]], dim=-1)


def make_attentions(make: OpMaker) -> None:
    heads, head_dim = 3, 8
    config = GPTNeoXJapaneseConfig(
        hidden_size=heads * head_dim, num_attention_heads=heads, num_hidden_layers=1, attention_dropout=0.0
    )
    layer = modeling.GPTNeoXJapaneseAttention(config, layer_idx=0).eval()

    def attend(dtype: Any, **given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return layer._attn(given["query"], given["key"], given["value"], given["mask"])

    for name, title, queries, keys, sharpness in (
        ("attention-causal", "Every query sees the keys up to its own place", 7, 7, 1.5),
        ("attention-cached", "Two queries after five cached keys", 2, 7, 1.5),
        ("attention-padded", "Keys that are padding stay hidden", 7, 7, 1.5),
        ("attention-sharp", "Scores so large that one key takes nearly all", 6, 6, 8.0),
        ("attention-biased", "A mask with finite numbers, added to the scores", 5, 5, 1.5),
    ):
        inputs = {
            "query": make.normal(2, heads, queries, head_dim, scale=sharpness),
            "key": make.normal(2, heads, keys, head_dim, scale=sharpness),
            "value": make.normal(2, heads, keys, head_dim),
        }
        arguments: dict[str, Any] = {"scale": 1 / math.sqrt(head_dim)}
        seen = np.tril(np.ones((2, 1, queries, keys), dtype=bool), keys - queries)
        if name == "attention-biased":
            bias = make.normal(2, 1, queries, keys)
        else:
            bias = np.zeros((2, 1, queries, keys), dtype=np.float32)
            arguments["past"] = keys - queries  # the mask is the causal rule after so many cached keys
        if name == "attention-padded":
            inputs["key_visible"] = np.ones((2, keys), dtype=bool)
            inputs["key_visible"][0, 2:4] = inputs["key_visible"][1, 5:] = False
            seen &= inputs["key_visible"][:, None, None]
        inputs["mask"] = np.where(seen, bias, np.finfo(np.float32).min)
        make.make(
            name, title, "attention", inputs, attend, outputs=("context", "weights"),
            arguments=arguments, source=TRANSFORMERS, features=("attention",),
        )  # fmt: skip


def make_ops(golden: Path = GOLDEN) -> None:
    oracle.be_reproducible()
    shutil.rmtree(golden / "vectors" / "ops", ignore_errors=True)
    make = OpMaker(golden)
    for group in (
        make_activations,
        make_layer_norms,
        make_softmaxes,
        make_linears,
        make_rotaries,
        make_attentions,
    ):
        group(make)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="where to write (default: this folder's parent)"
    )
    make_ops(parser.parse_args().golden)
    print(f"done; {COMMAND} also makes the rest and the manifest")


if __name__ == "__main__":
    main()
