"""refimpl itself as an engine of the protocol: every operation of the suite on one of its backends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

import refimpl
from refimpl.auto import class_by_architecture
from refimpl.backends import get_backend
from refimpl.backends.mask import AttentionMask
from refimpl.backends.quantized import Int8Matrix, NestedAbsmax, NF4Matrix, quantize_int8, quantize_nf4
from refimpl.conformance.our_layers import inside
from refimpl.conformance.our_tokenizers import OurTokenizers
from refimpl.conformance.protocol import INTERNAL
from refimpl.conformance.wrong_operations import rotary_config
from refimpl.errors import (
    BackendError,
    CheckpointMismatchError,
    ConfigError,
    InputError,
    RefimplError,
    TextInputError,
    TokenizerFileError,
    UnsafeCheckpointError,
)
from refimpl.generation.chain import ScoreProcessing
from refimpl.generation.config import GenerationConfig
from refimpl.generation.processors import PADDING, ClassifierFreeGuidance
from refimpl.rotary import RotaryEmbedding

#: The kinds of refusals, by the error that is raised; the first that fits.
_KINDS: tuple[tuple[type[RefimplError], str], ...] = (
    (TextInputError, "text"),
    (TokenizerFileError, "tokenizer_file"),
    (CheckpointMismatchError, "checkpoint"),
    (UnsafeCheckpointError, "checkpoint"),
    (ConfigError, "config"),
    (InputError, "input"),
)

Request = dict[str, Any]
Outputs = dict[str, Any]


class OurEngine:
    """Answers requests of the protocol with this package.

    Args:
        backend: name of the backend.
        dtype: `float32` or `float64`.
    """

    def __init__(self, backend: str = "numpy", dtype: str = "float32"):
        self._backend, self._dtype = backend, dtype
        self._ops = get_backend(backend, dtype=dtype)
        self._tokenizers = OurTokenizers()
        self._model = lru_cache(maxsize=4)(self._load)
        self._operations: dict[str, Callable[[Request], Outputs]] = {
            "activation": self._activation,
            "attention": self._attention,
            "layer_norm": self._operation,
            "linear": self._operation,
            "rotary": self._operation,
            "rotary_tables": self._rotary_tables,
            "softmax": self._softmax,
            "quantize": self._quantize,
            "process_scores": self._process_scores,
            "layers": self._layers,
            "load": self._load_only,
            "model": self._forward,
            "tuple_cache": self._tuple_cache,
            "cached_model": self._cached_model,
            "generate": self._generate,
            "tokenizer": self._tokenizers,
        }

    def __call__(self, request: Request) -> dict[str, Any]:
        """The answer to a request whose tensors are arrays; outputs are arrays too."""
        if request["operation"] == "hello":
            return {
                "name": "refimpl",
                "version": refimpl.__version__,
                "dtype": self._dtype,
                "details": {"backend": self._backend},
            }
        operation = self._operations.get(request["operation"])
        if operation is None:
            return {"unsupported": f"the operation {request['operation']}"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = operation(request)
        except BackendError as error:
            return {"unsupported": str(error)}  # a package that an extra installs is not there
        except RefimplError as error:
            kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), INTERNAL)
            return {"error": {"kind": kind, "message": f"{type(error).__name__}: {error}"}}
        wanted = set(request["outputs"])
        return {"outputs": {name: value for name, value in outputs.items() if name in wanted}}

    # ---- operations

    def _given(self, request: Request) -> dict[str, Any]:
        ops = self._ops
        return {
            name: ops.asarray(array, dtype=ops.dtype if array.dtype.kind == "f" else None)
            for name, array in request["tensors"].items()
        }

    def _operation(self, request: Request) -> Outputs:
        operation = getattr(self._ops, request["operation"])
        return {"y": refimpl.to_numpy(operation(**self._given(request), **request["arguments"]))}

    def _softmax(self, request: Request) -> Outputs:
        return {"y": refimpl.to_numpy(self._ops.softmax(self._given(request)["x"]))}

    def _activation(self, request: Request) -> Outputs:
        arguments, given = request["arguments"], self._given(request)
        parameters = tuple(given[name] for name in arguments["parameters"])
        return {"y": refimpl.to_numpy(self._ops.activation(given["x"], arguments["name"], parameters))}

    def _rotary_tables(self, request: Request) -> Outputs:
        tables = RotaryEmbedding(self._ops, rotary_config(request["arguments"]))
        cos, sin = tables(self._given(request)["position_ids"])
        return {"cos": refimpl.to_numpy(cos), "sin": refimpl.to_numpy(sin)}

    def _attention(self, request: Request) -> Outputs:
        arguments, given = request["arguments"], self._given(request)
        if "past" in arguments:
            visible = given.get("key_visible")
            mask = AttentionMask(offset=arguments["past"], key_visible=visible)
        else:
            mask = AttentionMask(offset=0, bias=given["mask"])
        context, weights = self._ops.attention(
            given["query"], given["key"], given["value"], mask, arguments["scale"], need_weights=True
        )
        return {"context": refimpl.to_numpy(context), "weights": refimpl.to_numpy(weights)}

    def _quantize(self, request: Request) -> Outputs:
        arguments = dict(request["arguments"])
        quantize: Any = {"int8": quantize_int8, "nf4": quantize_nf4}[arguments.pop("method")]
        matrix = quantize(request["tensors"]["weight"], **arguments)
        if isinstance(matrix, Int8Matrix):
            return {"CB": matrix.CB, "SCB_bits": _bits(matrix.SCB), "weight_bits": _bits(matrix.dense())}
        assert isinstance(matrix, NF4Matrix)
        outputs = {"packed": matrix.packed, "weight_bits": _bits(matrix.dense())}
        if not isinstance(matrix.absmax, NestedAbsmax):
            return {**outputs, "absmax_bits": _bits(matrix.absmax)}
        nested = {
            f"{name}_bits": _bits(getattr(matrix.absmax, name))
            for name in ("nested_absmax", "nested_quant_map", "nested_offset")
        }
        return {**outputs, **nested, "absmax": matrix.absmax.absmax, "scales_bits": _bits(matrix.scales)}

    def _process_scores(self, request: Request) -> Outputs:
        given, options = request["tensors"], dict(request["arguments"])
        prompt_length = options.pop("prompt_length")
        ids, mask, scores = given["ids"], given["mask"], given["scores"].astype(self._dtype)
        prompt = np.where(mask == 1, ids, PADDING)[:, :prompt_length]
        guidance = None
        if "guidance_scale" in options:
            negative = given["negative_scores"].astype(self._dtype)
            guidance = ClassifierFreeGuidance(options["guidance_scale"], lambda ids: negative)
        config = GenerationConfig(**options)
        run = ScoreProcessing(
            config, prompt, config.length_limit(prompt_length), scores.shape[1], guidance=guidance
        )
        found = run.whole(ids, scores)
        limits, extreme = np.finfo(found.dtype), np.zeros(found.shape, dtype=np.int64)
        for number, code in ((-np.inf, -2), (limits.min, -1), (limits.max, 1)):
            extreme[found == number] = code
        return {"extreme": extreme, "scores": np.where(extreme == 0, found, 0).astype(self._dtype)}

    # ---- models

    def _load(self, folder: str) -> Any:
        config = refimpl.AutoConfig.from_pretrained(folder)
        cls = class_by_architecture(config, folder)
        return cls.from_pretrained(folder, backend=self._backend, dtype=self._dtype)

    def _load_only(self, request: Request) -> Outputs:
        self._load(request["model"])
        return {}

    def _forward(self, request: Request) -> Outputs:
        wanted = request["outputs"]
        out = self._model(request["model"])(
            **request["tensors"],
            **request["arguments"],
            output_attentions=any(name.startswith("attentions.") for name in wanted),
            output_hidden_states=any(name.startswith(("hidden_states.", "last_hidden")) for name in wanted),
            use_cache=any(name.startswith("past_key_values.") for name in wanted),
        )
        return _named(out)

    def _tuple_cache(self, request: Request) -> Outputs:
        model, given = self._model(request["model"]), dict(request["tensors"])
        past = tuple(
            tuple(given.pop(f"past_key_values.{i}.{part}").astype(self._dtype) for part in ("key", "value"))
            for i in range(model.config.num_hidden_layers)
        )
        out = model(
            **given, past_key_values=past, output_attentions=True, output_hidden_states=True, use_cache=True
        )
        return _named(out)

    def _cached_model(self, request: Request) -> Outputs:
        model = self._model(request["model"])
        ways = request["arguments"]["feed_lengths"]
        return {f"logits.{way}": _in_pieces(model, request["tensors"], ways[way]) for way in range(len(ways))}

    def _generate(self, request: Request) -> Outputs:
        ids = self._model(request["model"]).generate(**request["tensors"], **request["arguments"])
        return {"sequences": refimpl.to_numpy(ids)}

    def _layers(self, request: Request) -> Outputs:
        # A model of its own: its parts are watched.
        return inside(self._load(request["model"]), request["tensors"], request["outputs"])


def _bits(values: Any) -> np.ndarray:
    """The bits of float32 numbers as whole numbers."""
    return np.atleast_1d(np.asarray(values, dtype=np.float32)).view(np.uint32).astype(np.int64)


def _named(out: Any) -> Outputs:
    """The outputs of a forward call by the names of the suite."""
    named = {name: value for name, value in out.items() if not isinstance(value, tuple)}
    cache = named.pop("past_key_values", None)
    if "hidden_states" in out:
        named["last_hidden_state"] = out["hidden_states"][-1]
    for key in {"hidden_states", "attentions"} & set(out):
        named |= {f"{key}.{i}": array for i, array in enumerate(out[key])}
    for i, (key, value) in enumerate(() if cache is None else cache):
        named |= {f"past_key_values.{i}.key": key, f"past_key_values.{i}.value": value}
    return {name: refimpl.to_numpy(value) for name, value in named.items() if value is not None}


def _in_pieces(model: Any, given: dict[str, np.ndarray], lengths: list[int]) -> np.ndarray:
    """The logits of a text that goes through the cache in pieces of these lengths."""
    past, start, pieces = None, 0, []
    for length in lengths:
        part = {k: a[:, start : start + length] for k, a in given.items() if k != "attention_mask"}
        if "attention_mask" in given:
            part["attention_mask"] = given["attention_mask"][:, : start + length]
        out = model(**part, past_key_values=past, use_cache=True)
        past, start = out.past_key_values, start + length
        pieces.append(refimpl.to_numpy(out.logits))
    return np.concatenate(pieces, axis=1)
