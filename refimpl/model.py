"""What every model has in common: how it is made, where its weights come from, what it is made of."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from refimpl.backends import dtype_name, get_backend, to_dtype
from refimpl.backends.base import Backend
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.weight_file import WeightFile
from refimpl.config_base import PreTrainedConfig, split_hub_options
from refimpl.errors import BackendError, InputError, quote
from refimpl.inputs import check_seed
from refimpl.layers import Module
from refimpl.matching import Matching
from refimpl.memory import refuse_too_large
from refimpl.model_changes import ChangeableModel
from refimpl.parameter import Parameter
from refimpl.quantization import (
    QUANTIZED_DTYPES,
    BitsAndBytesConfig,
    keep,
    kept_bytes,
    quantization_of,
)
from refimpl.quantized_files import QuantizedTensors

if TYPE_CHECKING:
    from refimpl.conformance.trace import Trace

Array = Any

# Arguments that programs written for transformers pass; whatever they say, the same happens here: weights are
# mapped, attention is computed as it is defined, and no code of a repository is ever run.
_WITHOUT_EFFECT = ("attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors")

# Loading less than this takes no time worth a progress bar.
_PROGRESS_BYTES = 1 << 29


class PreTrainedModel(ChangeableModel):
    """Base of the models.  A subclass says in `build` what it is made of.

    Args:
        config: the settings.
        backend: "auto", "numpy", ... or a backend.
        dtype: the compute dtype; "float16" and "bfloat16" keep the weights so, and compute in float32 but for matrix
            products on a GPU, whose factors then are in 16 bits (see `refimpl.backends.get_backend`).
        weight_dtype: how large matrices are kept; None: as they are in the file (random ones: as `dtype`).
            "int8" and "nf4" quantize the dense layers, except for the head; embeddings stay as they are.
        quantization_config: the same in more words: a `BitsAndBytesConfig`, or a dict of its settings.
        device, threads, matmul_dtype: see `refimpl.backends.get_backend`.
        seed: of the random weights, which are normal with deviation `config.initializer_range`.

    Raises: BackendError, ConfigError.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    base_model_prefix: ClassVar[str]
    config: PreTrainedConfig
    #: The folder or Hub id that the model came from; empty for random weights.
    name_or_path: str = ""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        backend: str | Backend = "auto",
        dtype: Any = None,
        weight_dtype: Any = None,
        quantization_config: BitsAndBytesConfig | dict[str, Any] | None = None,
        device: str | None = None,
        threads: int | None = None,
        matmul_dtype: Any = None,
        seed: int = 0,
    ):
        # A copy: two models of one config can then be changed one by one.
        chosen = get_backend(backend, dtype=dtype, device=device, threads=threads, matmul_dtype=matmul_dtype)
        self._prepare(self._own_config(config), chosen)
        self._asked_dtype = dtype
        quantization = quantization_of(weight_dtype, quantization_config)
        kept = _weight_dtype(dtype, weight_dtype)
        parameters = list(self.named_parameters())
        itemsize = (kept or self.backend.dtype).itemsize
        needed = sum(math.prod(p.shape) for p in parameters) * itemsize
        refuse_too_large(needed, type(self).__name__, None, self.device, self.backend.free_memory())
        self._draw(parameters, kept, quantization, seed)

    def _draw(
        self,
        parameters: Iterable[Parameter],
        weight_dtype: np.dtype | None,
        quantization: BitsAndBytesConfig | None,
        seed: int,
    ) -> None:
        """Give random values to `parameters`."""
        rng = np.random.default_rng(check_seed(seed))
        for parameter in parameters:
            if parameter.initial is None:
                values = rng.normal(0.0, abs(self.config.initializer_range), parameter.shape)  # type: ignore[attr-defined]
            else:
                values = np.full(parameter.shape, parameter.initial)
            values = values.astype(self.backend.dtype)
            parameter.assign(keep(parameter.key, values, quantization), weight_dtype or self.backend.dtype)

    @classmethod
    def skeleton(cls, config: PreTrainedConfig, backend: Backend) -> Self:
        """The model without the values of its weights: nothing is allocated."""
        model = cls.__new__(cls)
        model._prepare(config, backend)
        return model

    def _prepare(self, config: PreTrainedConfig, backend: Backend) -> None:
        Module.__init__(self, backend)
        config.validate()
        self.config = config
        self.build(backend)

    @classmethod
    def _own_config(cls, config: Any, **overrides: Any) -> Any:
        """A copy of `config` with some settings replaced.  Raises: InputError for one of another model."""
        if not isinstance(config, cls.config_class):
            raise InputError(
                "not a config of this model",
                where="config",
                found=quote(type(config).__name__),
                allowed=cls.config_class.__name__,
            )
        return config.updated(**overrides)

    def build(self, backend: Backend) -> None:
        """Make the parts of the model as attributes; to be said by each model."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the models")

    # --- from files ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        backend: str | Backend = "auto",
        dtype: Any = None,
        torch_dtype: Any = None,
        weight_dtype: Any = None,
        quantization_config: BitsAndBytesConfig | dict[str, Any] | None = None,
        device: str | None = None,
        device_map: str | None = None,
        mmap: bool = True,
        max_memory: int | str | None = None,
        threads: int | None = None,
        matmul_dtype: Any = None,
        config: PreTrainedConfig | None = None,
        **options: Any,
    ) -> Self:
        """The model of a folder or a Hub repository: `config.json` and the weights.

        Weights are `model.safetensors`, else the parts that `model.safetensors.index.json` names, else a packed copy
        (docs/saving.md), else `pytorch_model.bin` or its parts, which is read without ever running anything in it.

        The arguments are those of the class, and:
        mmap: map the weights from the file (default), or read them into memory.
        max_memory: bytes that the weights may take, or text such as "10GB"; by default 80 % of what is free.
            Mapped weights that stay as they are in the file take none.
        config: settings to use instead of the file's.
        torch_dtype, device_map: other names of `dtype` and `device`; device_map "auto" lets the backend choose.
        options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` say where files come
            from; `attn_implementation`, `low_cpu_mem_usage`, `trust_remote_code` and `use_safetensors` have no
            effect; every other keyword overrides a setting of the config.

        Raises: MissingFileError, ConfigError, CheckpointFormatError, CheckpointMismatchError (one error
            that lists every missing, unexpected and mis-shaped tensor), CheckpointValueError for NaN, infinity or
            a number that a dtype cannot hold (matrices that stay mapped are not looked through),
            ResourceLimitError before anything is allocated, BackendError.
        """
        hub_options, overrides = split_hub_options(options)
        overrides = {name: value for name, value in overrides.items() if name not in _WITHOUT_EFFECT}
        dtype = torch_dtype if dtype is None else dtype
        dtype = None if isinstance(dtype, str) and dtype == "auto" else dtype
        if device is None and device_map not in (None, "auto"):
            device = device_map
        if config is None:
            loaded = cls.config_class.from_pretrained(name_or_path, **hub_options, **overrides)
        else:
            loaded = cls._own_config(config, **overrides)
        refuse_other_quantization(loaded)
        quantization = quantization_of(weight_dtype, quantization_config)
        chosen = get_backend(backend, dtype=dtype, device=device, threads=threads, matmul_dtype=matmul_dtype)
        model = cls.skeleton(loaded, chosen)
        model.name_or_path, model._asked_dtype = os.fspath(name_or_path), dtype
        path = find_weights(name_or_path, **hub_options)
        kept = _weight_dtype(dtype, weight_dtype)
        tensors = open_weights(path, mmap=True)
        needed = model._needed_bytes(tensors, kept, quantization, path)
        free = chosen.free_memory()
        if not mmap:
            refuse_too_large(tensors.stored_bytes + (needed if free is None else 0), path, max_memory)
        refuse_too_large(needed, path, max_memory, chosen.device, free)
        if not mmap:
            tensors = open_weights(path, mmap=False)
        model.load_weights(tensors, weight_dtype=kept, quantization=quantization, where=path)
        model.load_generation_config(name_or_path, **hub_options)
        return model

    def load_generation_config(self, name_or_path: str | os.PathLike[str], **hub_options: Any) -> None:
        """Nothing to do for a model that does not generate; `GenerationMixin` reads the file."""

    def load_weights(
        self,
        tensors: Mapping[str, np.ndarray],
        weight_dtype: Any = None,
        where: object = None,
        quantization: BitsAndBytesConfig | None = None,
    ) -> None:
        """Take every weight of the model from `tensors`; nothing may be missing, left over or of another shape.

        Matrices that bitsandbytes has quantized stay as they are stored; `quantization` is for the others.

        Raises: CheckpointMismatchError; the model then has no weights.
        """
        tensors = QuantizedTensors(tensors, where)
        match = Matching(self, tensors)
        match.refuse(where)
        for parameter in _with_progress(match.parameters, tensors):
            stored = tensors[match.file_keys[parameter.key]]
            parameter.assign(keep(parameter.key, stored, quantization), weight_dtype)
        self._draw(match.new_head, weight_dtype, quantization, seed=0)
        for remark in match.remarks():
            warnings.warn(remark, stacklevel=3)

    def _needed_bytes(
        self,
        tensors: WeightFile,
        weight_dtype: np.dtype | None,
        quantization: BitsAndBytesConfig | None,
        where: object,
    ) -> int:
        """What loading allocates beside the file: vectors, new heads, and matrices that do not stay as they are stored.

        Those that the file holds quantized do; so do all others, but in another dtype and where their numbers lie
        at places from which a processor cannot read them (then they are copied); unless the backend copies them.

        Raises: CheckpointMismatchError.
        """
        shown, needed = QuantizedTensors(tensors, where), 0
        match, quantized = Matching(self, shown), set(shown.quantized)
        match.refuse(where)
        for parameter in self.named_parameters():
            name, size = match.file_keys.get(parameter.key), math.prod(parameter.shape)
            if not parameter.is_matrix:
                needed += size * self.backend.dtype.itemsize
            elif name in quantized:
                needed += self.backend.copied_bytes(shown[name])
            elif (packed := kept_bytes(parameter.key, parameter.shape, quantization)) is not None:
                needed += packed
            elif name is None:
                needed += size * (weight_dtype or self.backend.dtype).itemsize
            else:
                kept = weight_dtype or tensors.dtype(name)
                stays = kept == tensors.dtype(name) and tensors.is_view(name)
                needed += self.backend.copied_bytes(shown[name]) if stays else size * kept.itemsize
        return needed

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
        """Write config, generation settings and weights into `folder`, as transformers reads them.

        max_shard_size: files of at most so many bytes (or text such as "500MB"); a single tensor is never cut.
        After a failure at any point the folder holds the old model or the new one, never a mix (see
        `refimpl.checkpoints.saving`).
        Raises: SaveError.
        """
        from refimpl.checkpoints.saving import save_model

        save_model(self, folder, max_shard_size)

    # --- what it is ----------------------------------------------------------------------------

    @property
    def base_model(self) -> Any:
        """The model without its head; itself, if it has none."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dtype(self) -> np.dtype:
        """The compute dtype."""
        return self.backend.dtype

    @property
    def device(self) -> str:
        return self.backend.device

    def num_parameters(self) -> int:
        """How many numbers the model has learned; a tied head counts once."""
        return sum(int(np.prod(parameter.shape)) for parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Array]:
        """Every weight by its key, as this backend keeps it."""
        return {
            parameter.key: getattr(parameter.owner, parameter.name) for parameter in self.named_parameters()
        }

    def eval(self) -> Self:
        """The model itself: there is no training mode to leave."""
        return self

    def trace(self, names: Iterable[str] | str | None = None) -> AbstractContextManager[Trace]:
        """Record what is computed on the way: `with model.trace() as t: model(ids)`, then `t[name]`.

        names: which steps, as patterns such as "gpt_neox.layers.*.attention.*"; None: all.
        Raises: InputError, as `refimpl.conformance.trace.tracing`.
        """
        from refimpl.conformance.trace import tracing

        return tracing(self, names)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {self.num_parameters():,} parameters, {self.backend!r}>"


def refuse_other_quantization(config: PreTrainedConfig) -> None:
    """Raise ConfigError for a checkpoint whose weights are packed in a way that is not read here."""
    stored = config.unused_keys.get("quantization_config")
    if stored is not None:
        BitsAndBytesConfig.from_dict(stored)


def _weight_dtype(dtype: Any, weight_dtype: Any) -> np.dtype | None:
    """The dtype in which large matrices are kept that are not quantized; None: as in the file."""
    names = ("float64", "float32", "float16", "bfloat16")
    name = None
    if weight_dtype is not None and dtype_name(weight_dtype) not in QUANTIZED_DTYPES:
        name = dtype_name(weight_dtype)
        if name not in names:
            raise BackendError(
                "weights cannot be kept in this dtype",
                found=quote(name),
                allowed=", ".join(names + QUANTIZED_DTYPES),
            )
    elif dtype is not None and dtype_name(dtype) in ("float16", "bfloat16"):
        name = dtype_name(dtype)
    return None if name is None else to_dtype(name)


def _with_progress(parameters: list[Parameter], tensors: Mapping[str, np.ndarray]) -> Iterator[Parameter]:
    """The parameters one by one, with a bar on a terminal when there is much to load."""
    if getattr(tensors, "nbytes", 0) < _PROGRESS_BYTES:
        return iter(parameters)
    # The bar of huggingface_hub, which obeys HF_HUB_DISABLE_PROGRESS_BARS; None: only on a terminal.
    from huggingface_hub.utils import tqdm

    return iter(tqdm(parameters, desc="Loading weights", unit="tensor", disable=None, leave=False))
