"""What every pipeline has in common: lists, iterators, batches, and options given once for all calls.

A task is a class: it says which kind of model it needs (`auto_class`), takes its own options out of a call
(`accept`), and turns the items of a batch into as many results (`run`).  The tasks are
listed in `refimpl/pipelines/__init__.py`.

Source: https://huggingface.co/docs/transformers/v5.5.3/en/main_classes/pipelines
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from refimpl.errors import InputError, quote

# A list that takes less than so many seconds needs no bar.
_SECONDS_WITHOUT_PROGRESS = 1.0


class Pipeline:
    """Base of the tasks: a model, its tokenizer, and the options that every call starts from.

    Args:
        model: a model with the head that the task needs.
        tokenizer: turns text into ids and back.
        batch_size: how many texts of a list go through the model together.
        options: of each call, unless the call says otherwise.

    Raises: InputError for a model that cannot do this, and for options that mean nothing.
    """

    #: The name of the task.
    task: ClassVar[str]

    #: The class of `refimpl.auto` that finds the model.
    auto_class: ClassVar[Any]

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 1, **options: Any):
        self.check_model(model)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size = whole_number("batch_size", batch_size)
        self.options = options
        self.accept(options)

    @property
    def device(self) -> str:
        return self.model.device

    @property
    def dtype(self) -> np.dtype:
        """The compute dtype of the model."""
        return self.model.dtype

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}>"

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The result of a text; a list of results for a list of texts; an iterator for an iterator.

        An iterator is read one batch at a time, when its results are asked for.  A list that takes a while
        shows a bar on a terminal.
        Raises: InputError for anything but text, and for options that mean nothing.
        """
        size = self.batch_size if batch_size is None else whole_number("batch_size", batch_size)
        accepted = self.accept(self.combined(options))
        if isinstance(inputs, list | tuple):
            for index, item in enumerate(inputs):
                self.check_item(item, f"inputs[{index}]", accepted)
            return list(self._with_progress(self._results(inputs, size, accepted), inputs))
        if isinstance(inputs, Iterator):
            return self._results(inputs, size, accepted)
        self.check_item(inputs, "inputs", accepted)
        return self.run([inputs], accepted, first=0)[0]

    def _results(self, items: Iterable[Any], size: int, accepted: Any) -> Iterator[Any]:
        rest, done = iter(items), 0
        while batch := list(islice(rest, size)):
            for index, item in enumerate(batch, start=done):
                self.check_item(item, f"inputs[{index}]", accepted)
            yield from self.run(batch, accepted, first=done)
            done += len(batch)

    def _with_progress(self, results: Iterator[Any], items: Sized) -> Iterable[Any]:
        """The results, with a bar on a terminal when they take a while."""
        if len(items) < 2:
            return results
        # The bar of huggingface_hub, which obeys HF_HUB_DISABLE_PROGRESS_BARS; None: only on a terminal.
        from huggingface_hub.utils import tqdm

        return tqdm(
            results,
            total=len(items),
            desc=self.task,
            unit="text",
            disable=None,
            leave=False,
            delay=_SECONDS_WITHOUT_PROGRESS,
        )

    def combined(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call on top of those of the pipeline."""
        return {**self.options, **options}

    # --- to be said by each task ---------------------------------------------------------------

    def check_item(self, item: Any, where: str, accepted: Any) -> None:
        """Raise InputError for what this task cannot read; most tasks read a text."""
        check_text(item, where)

    def check_model(self, model: Any) -> None:
        """Raise InputError for a model that cannot do this."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the tasks")

    def accept(self, options: dict[str, Any]) -> Any:
        """The checked options, in the form that `run` takes; an option that is None is not there.

        Raises: InputError.
        """
        raise TypeError(f"{type(self).__name__} is a base class; use one of the tasks")

    def run(self, items: list[Any], accepted: Any, first: int) -> list[Any]:
        """One result for each item of a batch; `first` is the place of its first item in the whole list."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the tasks")


def check_text(value: Any, where: str) -> None:
    """Raise InputError for what is no text."""
    if isinstance(value, str):
        return
    chat = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
    raise InputError(
        "not a text",
        where=where,
        found=quote(value),
        allowed="a text, or a list of texts",
        hint="These models have no chat template: write the conversation as one text." if chat else None,
    )


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A number of at least `least` as a Python int.  Raises: InputError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        allowed = f"a whole number of at least {least}"
        raise InputError("not a possible value", where=name, found=quote(value), allowed=allowed)
    return int(value)
