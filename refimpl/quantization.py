"""Which weights are kept in 8 or 4 bits: `BitsAndBytesConfig`, in the words of transformers.

Only the weights are narrow; every product is computed in the dtype of the backend.  The formats are
defined in `refimpl.backends.quantized`, their files in `refimpl.quantized_files`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from refimpl.backends import dtype_name
from refimpl.backends.quantized import (
    QuantizedMatrix,
    int8_bytes,
    nf4_bytes,
    quantize_int8,
    quantize_nf4,
)
from refimpl.errors import BackendError, ConfigError, InputError, quote

#: `weight_dtype` can be these too, beside the float types.
QUANTIZED_DTYPES = ("int8", "nf4")

_METHOD = "bitsandbytes"
_COMPUTE_DTYPES = ("float16", "bfloat16", "float32")
_STORAGE_DTYPES = ("float16", "float32", "int8", "uint8", "float64", "bfloat16")

_SWITCHES = (
    "load_in_8bit",
    "load_in_4bit",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "bnb_4bit_use_double_quant",
)


@dataclass
class BitsAndBytesConfig:
    """How the dense layers are kept: int8 (`load_in_8bit`) or NF4 (`load_in_4bit`).

    Args:
        load_in_8bit, load_in_4bit: one of them, or neither (the weights then stay as they are).
        llm_int8_skip_modules: dense layers that stay as they are, also where the others go to 4 bits. A name
            means a module with all that is in it ("gpt_neox.layers.1"), or every module whose name ends so
            ("dense"). None: the output head and the heads of tasks stay. A list replaces that rule, so name
            the head in it where it is to stay ("embed_out" or "lm_head"). Embeddings always stay, and a head
            that is tied to one.
        bnb_4bit_quant_type: "nf4". "fp4", the default that transformers has, is not offered.
        bnb_4bit_use_double_quant: keep the absmax of each block in 8 bits.

    Read and written, and without effect here:
        llm_int8_threshold, llm_int8_has_fp16_weight: about activations in 8 bits, which there are none of.
        llm_int8_enable_fp32_cpu_offload: about a model on two devices.
        bnb_4bit_compute_dtype: the products are computed in the dtype of the backend, at least as exact.
        bnb_4bit_quant_storage: the dtype under which a file holds the packed bytes; any is read.

    Raises: ConfigError.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: list[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: Any = None

    def __post_init__(self) -> None:
        self.bnb_4bit_compute_dtype = _dtype_name(self.bnb_4bit_compute_dtype, "float32")
        self.bnb_4bit_quant_storage = _dtype_name(self.bnb_4bit_quant_storage, "uint8")
        self.validate()

    def validate(self) -> None:
        """Raise ConfigError unless weights can be kept so."""
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise self._error("not a truth value", name, "true or false")
        threshold = self.llm_int8_threshold
        if type(threshold) not in (int, float) or not 0 <= threshold < float("inf"):
            raise self._error("not a possible value", "llm_int8_threshold", "a number from 0")
        for name, allowed in (
            ("bnb_4bit_compute_dtype", _COMPUTE_DTYPES),
            ("bnb_4bit_quant_storage", _STORAGE_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise self._error("not a possible dtype", name, ", ".join(allowed))
        self._validate_skip_modules()
        if self.load_in_8bit and self.load_in_4bit:
            raise self._error("both load_in_8bit and load_in_4bit are set", "load_in_4bit", "one of them")
        if self.load_in_4bit and self.bnb_4bit_quant_type != "nf4":
            raise self._error(
                "weights in 4 bits are kept as NF4 only",
                "bnb_4bit_quant_type",
                "nf4",
                'Pass bnb_4bit_quant_type="nf4"; the default of transformers is "fp4".',
            )

    def _validate_skip_modules(self) -> None:
        skipped = self.llm_int8_skip_modules
        if skipped is None:
            return
        if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
            raise self._error("not a list of names", "llm_int8_skip_modules", "a list of texts, or none")
        # transformers takes regular expressions. One of a downloaded file could run for ever.
        if not all(re.fullmatch(r"[\w.]+", name) for name in skipped):
            raise self._error(
                "an entry is no name of a module",
                "llm_int8_skip_modules",
                "letters, digits, _ and dots; regular expressions are not read",
            )

    def _error(self, what: str, key: str, allowed: str | None = None, hint: str | None = None) -> ConfigError:
        value = getattr(self, key)
        return ConfigError(
            f"{key}: {what}",
            where=type(self).__name__,
            found=quote(value),
            allowed=allowed,
            hint=hint,
            key=key,
            value=value,
        )

    # --- files ---------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """From the `quantization_config` of a `config.json`; keys that no setting has are left out.

        Raises: ConfigError, also for another method than bitsandbytes (GPTQ, AWQ, ...).
        """
        if not isinstance(values, dict):
            raise ConfigError(
                "must be an object",
                where="quantization_config",
                found=quote(values),
                key="quantization_config",
                value=values,
            )
        # Old files have no quant_method, and no other method had these keys then.
        method = values.get("quant_method", _METHOD if "load_in_8bit" in values else None)
        if method != _METHOD:
            raise ConfigError(
                "weights quantized by this method cannot be read",
                where="quantization_config",
                found=f"quant_method {quote(method)}",
                allowed=f"{_METHOD} (int8 or nf4)",
                hint="Take a repository with float16, bfloat16 or float32 weights and quantize on loading.",
                key="quantization_config",
                value=values,
            )
        names = [field.name for field in fields(cls)]
        for unknown in sorted(set(overrides) - set(names)):
            near = difflib.get_close_matches(unknown, names, n=1)
            raise ConfigError(
                "unknown setting",
                where=cls.__name__,
                found=quote(unknown),
                hint=f"Did you mean {near[0]}?" if near else None,
                key=unknown,
                value=overrides[unknown],
            )
        return cls(**{name: value for name, value in {**values, **overrides}.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """The settings as the `quantization_config` of a `config.json` holds them."""
        return {"quant_method": _METHOD, **{field.name: getattr(self, field.name) for field in fields(self)}}

    # --- what it means -------------------------------------------------------------------------

    def quantization_method(self) -> str | None:
        """ "llm_int8", "nf4", or None when the weights stay as they are."""
        return "llm_int8" if self.load_in_8bit else "nf4" if self.load_in_4bit else None

    def kept_as(self, key: str) -> str | None:
        """How the matrix with this key is kept: "int8", "nf4", or None for as it is."""
        self.validate()  # settings may have been changed since
        form = "int8" if self.load_in_8bit else "nf4" if self.load_in_4bit else None
        module = key.removesuffix(".weight")
        if form is None or module == key or module.rpartition(".")[2] == "embed_in":
            return None
        if self.llm_int8_skip_modules is None:
            return form if "layers" in module.split(".") else None
        spellings = (module, "lm_head") if module == "embed_out" else (module,)
        skipped = any(_names(name, one) for name in self.llm_int8_skip_modules for one in spellings)
        return None if skipped else form


def _names(name: str, module: str) -> bool:
    """Whether an entry of `llm_int8_skip_modules` means this module ("layers.1" does not mean layer 11)."""
    return f"{module}.".startswith(f"{name.removesuffix('.')}.") or module.endswith(name)


def _dtype_name(dtype: Any, default: str) -> Any:
    if dtype is None:
        return default
    try:
        return dtype_name(dtype)
    except BackendError:
        return dtype  # `validate` says what is wrong with it


def quantization_of(weight_dtype: Any, quantization_config: Any) -> BitsAndBytesConfig | None:
    """What the arguments `weight_dtype` and `quantization_config` of a model say together.

    `weight_dtype="int8"` is short for `BitsAndBytesConfig(load_in_8bit=True)`, "nf4" for NF4 without double
    quantization. `quantization_config` may also be the dict of a file.

    Returns: None where no weight is to be quantized; a float `weight_dtype` then stands for itself, and
        beside a quantization_config it is about the matrices that are not quantized.
    Raises: ConfigError; InputError when both arguments ask for quantized weights.
    """
    name = None if weight_dtype is None else dtype_name(weight_dtype)
    if isinstance(quantization_config, dict):
        quantization_config = BitsAndBytesConfig.from_dict(quantization_config)
    if quantization_config is not None and not isinstance(quantization_config, BitsAndBytesConfig):
        raise InputError(
            "not a config of quantization",
            where="quantization_config",
            found=quote(type(quantization_config).__name__),
            allowed="BitsAndBytesConfig, or a dict of its settings",
        )
    if name not in QUANTIZED_DTYPES:
        asked = quantization_config is not None and quantization_config.quantization_method() is not None
        return quantization_config if asked else None
    if quantization_config is not None:
        raise InputError(
            "both weight_dtype and quantization_config ask for quantized weights",
            where="weight_dtype",
            found=quote(name),
            allowed="one of the two; beside a quantization_config, weight_dtype is a float type",
        )
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def keep(
    key: str, array: np.ndarray | QuantizedMatrix, quantization: BitsAndBytesConfig | None
) -> np.ndarray | QuantizedMatrix:
    """The weight with this key as it is to be kept: quantized, or as it is.

    A vector, and a matrix that a file holds quantized already, stay what they are.

    Raises: CheckpointValueError naming the key when the matrix holds NaN, infinity or (for int8) a number
        beyond float16.
    """
    if quantization is None or array.ndim != 2 or isinstance(array, QuantizedMatrix):
        return array
    form = quantization.kept_as(key)
    if form == "int8":
        return quantize_int8(np.asarray(array), name=key)
    if form == "nf4":
        return quantize_nf4(np.asarray(array), double_quant=quantization.bnb_4bit_use_double_quant, name=key)
    return array


def kept_bytes(key: str, shape: tuple[int, ...], quantization: BitsAndBytesConfig | None) -> int | None:
    """Bytes of the weight with this key once it is quantized; None where it is not."""
    form = None if quantization is None or len(shape) != 2 else quantization.kept_as(key)
    if quantization is None or form is None:
        return None
    if form == "int8":
        return int8_bytes(shape)
    return nf4_bytes(shape, double_quant=quantization.bnb_4bit_use_double_quant)
