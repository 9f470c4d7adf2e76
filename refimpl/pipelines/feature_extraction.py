"""The task `feature-extraction`: texts in, the last hidden states of their tokens out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from refimpl.auto import AutoModel
from refimpl.errors import InputError, quote
from refimpl.model import PreTrainedModel
from refimpl.pipelines.heads import HeadPipeline, check_row, check_truth, without_padding


@dataclass
class FeatureExtractionOptions:
    """The options of the task.  Raises: InputError."""

    #: An array instead of a list.
    return_tensors: bool = False
    #: As in the call of a tokenizer.
    truncation: bool | str | None = None
    #: Further arguments of the tokenizer's call.
    tokenize_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_truth("return_tensors", self.return_tensors)
        if not isinstance(self.tokenize_kwargs, dict):
            raise InputError(
                "not arguments",
                where="tokenize_kwargs",
                found=quote(self.tokenize_kwargs),
                allowed="a dict of arguments of the tokenizer",
            )
        if self.truncation is not None and "truncation" in self.tokenize_kwargs:
            raise InputError(
                "said twice", where="truncation", hint="Say it once, here or in tokenize_kwargs."
            )
        without_padding("tokenize_kwargs", self.tokenize_kwargs)

    @property
    def encode(self) -> dict[str, Any]:
        """What the tokenizer is called with."""
        given = {} if self.truncation is None else {"truncation": self.truncation}
        return {**given, **without_padding("tokenize_kwargs", self.tokenize_kwargs)}


class FeatureExtractionPipeline(HeadPipeline):
    """The last hidden states of each text: nested lists of numbers `[1, seq, hidden]`, or an array of this shape.

    They are those of the model without its head, after the last norm.  A text has one row for each of its tokens,
    whatever batch it is in.
    """

    task = "feature-extraction"
    auto_class = AutoModel
    options_class = FeatureExtractionOptions
    model_classes = (PreTrainedModel,)

    def __init__(self, model: Any, tokenizer: Any, **options: Any):
        super().__init__(model, tokenizer, **options)
        self.model = model.base_model

    def run(self, items: list[str], accepted: FeatureExtractionOptions, first: int) -> list[Any]:
        rows = [
            check_row(self.tokenizer(text, **accepted.encode)["input_ids"], place)
            for place, text in enumerate(items, start=first)
        ]
        found = (states[None] for (states,) in self.outputs(rows, len(items), "last_hidden_state"))
        return [states.copy() if accepted.return_tensors else states.tolist() for states in found]
