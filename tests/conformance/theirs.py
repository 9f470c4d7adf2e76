"""transformers as the other side of a comparison: as it is in float32, and the same code in float64."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from tests.conformance.comparison import FAMILIES, Call, Expected, Outputs, Tables, outputs_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Small products are quickest, and reproducible, on one thread.
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def load_theirs(folder: Path, model_class: str = "ForCausalLM") -> Any:
    """The model of a folder, in float32 and with the attention that is written out.

    model_class: the class without the name of its family.
    """
    family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library warns of is not what these tests are about
        return (
            getattr(transformers, FAMILIES[family] + model_class)
            .from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
            .eval()
        )


@contextmanager
def computing_in_float64() -> Iterator[None]:
    """The library asks for float32 by name in rotary tables, softmax and losses: here it gets float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(torch, "float32", torch.float64),
            patch.object(torch, "float", torch.float64),
            patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            yield
    finally:
        torch.set_default_dtype(default)


def run_theirs(model: Any, call: Call, dtype: str) -> Outputs:
    """What a model of the library gives for a call, by name; as if it had seen nothing before.

    dtype: "float32", or "float64" for the same weights and the same code in double precision.
    """
    if dtype == "float64":
        with computing_in_float64():
            return _run(copy.deepcopy(model).double(), call)
    return _run(model, call)


def expect(model: Any, calls: dict[str, Call]) -> Expected:
    """What a model of the library gives for all these calls, in both precisions."""
    single, exact = (
        {name: run_theirs(model, call, dtype) for name, call in calls.items()}
        for dtype in ("float32", "float64")
    )
    return Expected(single, exact, calls)


def _run(model: Any, call: Call) -> Outputs:
    def give(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.from_numpy(value)
        return tensor.to(model.dtype) if tensor.is_floating_point() else tensor

    # The tables of the type "dynamic" depend on earlier calls, and the kind of a problem is remembered.
    base, problem_type = model.base_model, model.config.problem_type
    base.rotary_emb = type(base.rotary_emb)(model.config)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return outputs_of(model, call, give, lambda tensor: tensor.numpy())
        finally:
            model.config.problem_type = problem_type


def their_tables(settings: dict[str, Any], positions: np.ndarray, dtype: str) -> Tables:
    """The same of transformers, whose tables have every angle twice, side by side."""
    family = FAMILIES[settings["model_type"]]
    config = getattr(transformers, f"{family}Config").from_dict(
        copy.deepcopy(settings)
    )  # it writes into them
    modeling = getattr(transformers.models, settings["model_type"])
    make = getattr(getattr(modeling, f"modeling_{settings['model_type']}"), f"{family}RotaryEmbedding")
    if dtype == "float64":
        with computing_in_float64():
            tables = make(config)(torch.zeros(1, dtype=torch.float64), torch.from_numpy(positions))
    else:
        tables = make(config)(torch.zeros(1), torch.from_numpy(positions))
    half = tables[0].shape[-1] // 2
    for table in tables:
        assert np.array_equal(table[..., :half], table[..., half:], equal_nan=True)
    cos, sin = (table[..., :half].numpy() for table in tables)
    return cos, sin
