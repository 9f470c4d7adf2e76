"""`pipeline(task, model=...)`: text in, text or labels or answers out, in one call."""

from __future__ import annotations

import difflib
import os
from typing import Any

from refimpl.auto import AutoConfig, AutoTokenizer
from refimpl.config_base import split_hub_options
from refimpl.embedded_model import embedded_model_path
from refimpl.errors import InputError, quote
from refimpl.pipelines.base import Pipeline
from refimpl.pipelines.feature_extraction import FeatureExtractionPipeline
from refimpl.pipelines.question_answering import QuestionAnsweringPipeline
from refimpl.pipelines.text_classification import TextClassificationPipeline
from refimpl.pipelines.text_generation import TextGenerationPipeline
from refimpl.pipelines.token_classification import TokenClassificationPipeline

#: name of the task -> its class
TASKS: dict[str, type[Pipeline]] = {
    made.task: made
    for made in (
        FeatureExtractionPipeline,
        QuestionAnsweringPipeline,
        TextClassificationPipeline,
        TextGenerationPipeline,
        TokenClassificationPipeline,
    )
}

#: Other names of tasks.
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}

#: What the model inside the package can do.
_TASKS_OF_EMBEDDED_MODEL = ("feature-extraction", "text-generation")


def pipeline(
    task: str,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: int | str | None = None,
    device_map: str | None = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    backend: Any = None,
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Pipeline:
    """The pipeline of a task.

    task: one of `TASKS`, or of their other names, `ALIASES`.
    model: a folder, a Hub id, or a model; None: the model that ships inside the package, for the tasks that
        need no head of their own.
    config: settings to use instead of the file's: a config, a folder or a Hub id.
    tokenizer: a tokenizer, a folder or a Hub id; None: that of the model, which must then be a name.
    revision, token: of the Hub.
    device: 0 for the first GPU ("cuda:0"), -1 or "cpu" for the processor, or a name.  None: the backend chooses.
    device_map, dtype, torch_dtype, backend: as in `from_pretrained`, whose other arguments are `model_kwargs`
        (`weight_dtype`, `quantization_config`, `cache_dir`, ...).
    options: `batch_size`, and the options that each call starts from.

    Raises: InputError for a task that there is not, and as the pipeline itself; BackendError for a device that
        there is not; and what `from_pretrained` raises.
    """
    task = _known_task(task)
    if model is None and task not in _TASKS_OF_EMBEDDED_MODEL:
        raise InputError(
            f"the model inside the package has no head for {task}",
            where="model",
            allowed="a folder, a Hub id, or a model",
        )
    model = embedded_model_path() if model is None else model
    place = _device_name(device)
    named = {"config": config, "revision": revision, "token": token, "device_map": device_map}
    named |= {"dtype": dtype, "torch_dtype": torch_dtype, "backend": backend}
    loading = {name: value for name, value in named.items() if value is not None} | (model_kwargs or {})
    hub_options, _ = split_hub_options(loading)
    elsewhere = {name: value for name, value in hub_options.items() if name != "revision"}

    if model_kwargs and "device" in model_kwargs:
        raise InputError(
            "given to the pipeline itself, not to the model", where="model_kwargs", found="device"
        )
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, **elsewhere)
    if isinstance(model, str | os.PathLike):
        if isinstance(config, str | os.PathLike):
            loading["config"] = AutoConfig.from_pretrained(config, **elsewhere)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(model, **hub_options)
        model = TASKS[task].auto_class.from_pretrained(model, device=place, **loading)
    elif loading:
        raise InputError(
            "these arguments are for loading a model, and this one is loaded",
            where="model",
            found=", ".join(sorted(loading)),
        )
    elif place is not None and place != model.device and device != -1:
        model = model.to(place)
    if tokenizer is not None and not callable(tokenizer):
        raise InputError("not a tokenizer", where="tokenizer", found=quote(type(tokenizer).__name__))
    if tokenizer is None:
        raise InputError(
            "a model that is given as an object needs its tokenizer beside it",
            where="tokenizer",
            hint="For example: pipeline(task, model=model, tokenizer=tokenizer).",
        )
    return TASKS[task](model, tokenizer, **options)


def _known_task(task: Any) -> str:
    """The name of a task in `TASKS`.  Raises: InputError."""
    name = ALIASES.get(task, task) if isinstance(task, str) else task
    if isinstance(name, str) and name in TASKS:
        return name
    near = difflib.get_close_matches(task, [*TASKS, *ALIASES], n=1) if isinstance(task, str) else []
    raise InputError(
        "there is no such pipeline",
        where="task",
        found=quote(task),
        allowed=", ".join(sorted(TASKS)),
        hint=f"Did you mean {near[0]}?" if near else None,
    )


def _device_name(device: Any) -> str | None:
    """transformers' way to name a device, in the words of `get_backend`."""
    if device is None or (isinstance(device, str) and device != "cuda"):
        return device
    if device == "cuda":
        return "cuda:0"
    if isinstance(device, int) and not isinstance(device, bool) and device >= -1:
        return "cpu" if device == -1 else f"cuda:{device}"
    raise InputError(
        "not a device", where="device", found=quote(device), allowed='0, 1, ... for a GPU, -1 or "cpu"'
    )
