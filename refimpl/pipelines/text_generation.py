"""The task `text-generation`: prompts in, prompts with their continuations out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from refimpl.auto import AutoModelForCausalLM
from refimpl.errors import InputError, quote
from refimpl.generation.config import GenerationConfig
from refimpl.generation.random import fresh_seed
from refimpl.generation.request import fill_id
from refimpl.inputs import check_seed, padded
from refimpl.pipelines.base import Pipeline, whole_number

#: What holds where neither the call, the pipeline nor the files of the model say anything.
DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}

#: Arguments of `generate()` that are no settings.
_OBJECTS = (
    "generation_config", "streamer", "logits_processor", "stopping_criteria", "tokenizer",
    "negative_prompt_ids", "negative_prompt_attention_mask", "prefix_allowed_tokens_fn",
)  # fmt: skip


@dataclass
class TextGenerationOptions:
    """The options of the task itself; all others are those of `generate()`.  Raises: InputError."""

    #: The prompt with its continuation, or (False) the continuation alone.
    return_full_text: bool | None = None
    #: `{"generated_token_ids": [...]}`, prompt and continuation, instead of text.
    return_tensors: bool = False
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None
    #: So many texts for each prompt, each drawn for itself or found by one beam search; None: as the settings say.
    num_return_sequences: int | None = None
    #: A text ends where one of these is complete; it is part of the text.
    stop_sequence: str | list[str] = field(default_factory=list)
    #: Stands before each prompt, and not in the text of the result (its ids do).
    prefix: str = ""
    add_special_tokens: bool | None = None
    truncation: bool | str | None = None
    #: Further arguments of the tokenizer's call.
    tokenizer_encode_kwargs: dict[str, Any] = field(default_factory=dict)
    #: Of sampling; None draws a new one for each call.
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("return_full_text", "return_tensors", "skip_special_tokens"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool | np.bool_):
                raise InputError("not a truth value", where=name, found=quote(value), allowed="True or False")
        if "padding" in self.tokenizer_encode_kwargs:
            raise InputError(
                "texts of a batch are padded here, and padding is never part of a prompt",
                where="tokenizer_encode_kwargs",
                found="padding",
            )
        if self.return_tensors and self.return_full_text is not None:
            raise InputError("ids are no text: give one of return_tensors and return_full_text")
        if self.num_return_sequences is not None:
            whole_number("num_return_sequences", self.num_return_sequences)
        if self.seed is not None:
            check_seed(self.seed)
        if not isinstance(self.prefix, str):
            raise InputError("not a text", where="prefix", found=quote(self.prefix))
        if not all(isinstance(stop, str) and stop for stop in self.stop_strings):
            found = quote(self.stop_sequence)
            raise InputError("not a text, nor a list of texts", where="stop_sequence", found=found)

    @property
    def stop_strings(self) -> list[Any]:
        return [*self.stop_sequence] if isinstance(self.stop_sequence, list | tuple) else [self.stop_sequence]

    @property
    def encode(self) -> dict[str, Any]:
        """What the tokenizer is called with."""
        named = {"add_special_tokens": self.add_special_tokens, "truncation": self.truncation}
        given = {name: value for name, value in named.items() if value is not None}
        return {**given, **self.tokenizer_encode_kwargs}


#: What a call means: the task's own options, the arguments of `generate()`, and the settings that these add up to.
Accepted = tuple[TextGenerationOptions, dict[str, Any], GenerationConfig]


class TextGenerationPipeline(Pipeline):
    """Continues texts: `[{"generated_text": "..."}]` for each, with `num_return_sequences` entries.

    The options of a call are those of `TextGenerationOptions` and of `generate()`.  What nobody says is 256 new
    tokens, drawn at temperature 0.7; `do_sample=False` gives the likeliest text.  A `generation_config` in the
    call replaces the generation options of the pipeline.

    Texts of one batch are padded on the left, whatever the tokenizer's `padding_side`; padding is never part of
    a result.  With a `seed`, the same list in the same `batch_size` gives the same texts, and one prompt the text of
    `model.generate(..., seed=seed)`.
    """

    task = "text-generation"
    auto_class = AutoModelForCausalLM

    def check_model(self, model: Any) -> None:
        if not callable(getattr(model, "generate", None)):
            raise InputError(
                "this model does not generate text",
                where="model",
                found=type(model).__name__,
                allowed="a language model, such as GPTNeoXJapaneseForCausalLM",
            )

    def combined(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("generation_config") is None:
            return {**self.options, **options}
        own = {name: value for name, value in self.options.items() if name in _OWN}
        return {**own, **options}

    def accept(self, options: dict[str, Any]) -> Accepted:
        given = {name: value for name, value in options.items() if value is not None}
        own = TextGenerationOptions(**{name: value for name, value in given.items() if name in _OWN})
        base = given.get("generation_config", GenerationConfig())
        if not isinstance(base, GenerationConfig):
            raise InputError(
                "not a generation config",
                where="generation_config",
                found=quote(type(base).__name__),
                allowed="GenerationConfig",
            )
        arguments = self._with_defaults({name: v for name, v in given.items() if name not in _OWN})
        settings = {name: value for name, value in arguments.items() if name not in _OBJECTS}
        config = base.updated(**settings).completed(self.model.generation_config)
        if own.num_return_sequences is None:
            own.num_return_sequences = config.num_return_sequences or 1
        if own.num_return_sequences > 1 and config.is_greedy and not _is_search(config):
            raise InputError(
                "there is one likeliest text",
                where="num_return_sequences",
                found=str(own.num_return_sequences),
                hint="Use do_sample=True to draw several, or num_beams to search for several.",
            )
        return own, arguments, config

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate()`, with the defaults of the task for what nobody says."""
        said = {
            name: value
            for config in (self.model.generation_config, arguments.get("generation_config"))
            for name, value in vars(config or GenerationConfig()).items()
            if value is not None
        }
        said.update(arguments)
        added = {name: value for name, value in DEFAULTS.items() if name not in said}
        if "max_length" in said:
            added.pop("max_new_tokens", None)
        if not {**added, **said}["do_sample"]:
            added.pop("temperature", None)
        if "pad_token_id" not in said and self.tokenizer.pad_token_id is not None:
            added["pad_token_id"] = self.tokenizer.pad_token_id
        return {**arguments, **added}

    def run(self, texts: list[str], accepted: Accepted, first: int) -> list[list[dict[str, Any]]]:
        own, arguments, config = accepted
        prompts = [self._encode(own.prefix + text, own, config) for text in texts]
        ids, mask = padded(prompts, fill_id(config, self.model.config.vocab_size), side="left")
        count, width = own.num_return_sequences or 1, ids.shape[1]
        call = {"tokenizer": self.tokenizer, **arguments, "num_return_sequences": count}
        stop = StopAt(self.tokenizer, own.stop_strings, width)
        search = _is_search(config)
        if own.stop_strings and search:  # beams change their rows: only the search itself can follow them
            call["stop_strings"] = [*_as_list(config.stop_strings), *own.stop_strings]
        elif own.stop_strings:
            given = call.get("stopping_criteria") or ()
            call["stopping_criteria"] = [*([given] if callable(given) else given), stop]
        seed = _seed_of_batch(own.seed, first)
        found = self.model.generate(input_ids=ids, attention_mask=mask, seed=seed, **call)
        rows = getattr(found, "sequences", found)
        if own.stop_strings and search:
            for length in range(width + 1, rows.shape[1] + 1):
                stop(rows[:, :length])
        ends = [
            min(_end(row, width, config.eos_token_ids), stop.ends.get(index, len(row)))
            for index, row in enumerate(rows)
        ]
        return [
            [
                self._record(text, rows[row, width - len(prompt) : ends[row]], len(prompt), own)
                for row in range(place * count, (place + 1) * count)
            ]
            for place, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        ]

    def _encode(self, text: str, own: TextGenerationOptions, config: GenerationConfig) -> list[int]:
        """The ids of a prompt; one without tokens begins with bos, as in `generate()`."""
        ids = self.tokenizer(text, **own.encode)["input_ids"]
        if not ids and config.bos_token_id is None:
            raise InputError("an empty prompt needs a bos_token_id", where="inputs")
        return ids or [config.bos_token_id]

    def _record(self, prompt: str, ids: np.ndarray, new: int, own: TextGenerationOptions) -> dict[str, Any]:
        """The result of one row: `ids` without padding, of which those from `new` on were generated."""
        if own.return_tensors:
            return {"generated_token_ids": ids.tolist()}
        text = self.tokenizer.decode(
            ids[new:].tolist(),
            skip_special_tokens=own.skip_special_tokens,
            clean_up_tokenization_spaces=own.clean_up_tokenization_spaces,
        )
        return {"generated_text": prompt + text if own.return_full_text in (None, True) else text}


_OWN = {setting.name for setting in fields(TextGenerationOptions)}


class StopAt:
    """A stopping criterion: the new text of a row, from token `start` on, holds one of some strings.

    `ends` says where: row -> length with the token that completed the string.
    """

    def __init__(self, tokenizer: Any, strings: list[str], start: int):
        self.tokenizer, self.strings, self.start = tokenizer, strings, start
        self.ends: dict[int, int] = {}

    def __call__(self, ids: np.ndarray, logits: Any = None) -> np.ndarray:
        """[batch, seq] -> [batch] bool"""
        for row in range(len(ids)):
            if row not in self.ends:
                text = self.tokenizer.decode(ids[row, self.start :].tolist())
                if any(string in text for string in self.strings):
                    self.ends[row] = ids.shape[1]
        return np.array([row in self.ends for row in range(len(ids))])


def _is_search(config: GenerationConfig) -> bool:
    return (config.num_beams or 1) > 1


def _as_list(strings: str | list[str] | None) -> list[str]:
    return [strings] if isinstance(strings, str) else list(strings or [])


def _end(row: np.ndarray, width: int, eos_ids: list[int]) -> int:
    """Where the text of a row ends: after its first eos token; what follows only fills up the batch."""
    ended = np.flatnonzero(np.isin(row[width:], eos_ids))
    return width + int(ended[0]) + 1 if ended.size else len(row)


def _seed_of_batch(seed: int | None, first: int) -> int:
    """Another seed for each later batch, so that equal prompts get different texts wherever they stand."""
    if seed is None:
        return fresh_seed()
    if first == 0:
        return seed
    return int(np.random.SeedSequence([seed, first]).generate_state(1, np.uint64)[0])
