"""The task `token-classification` (named entities and the like): texts in, labelled tokens or entities out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from refimpl.auto import AutoModelForTokenClassification
from refimpl.errors import InputError, quote
from refimpl.generation.logits import probabilities
from refimpl.gpt_neox_heads import GPTNeoXForTokenClassification
from refimpl.pipelines.base import check_text, whole_number
from refimpl.pipelines.entities import STRATEGIES, LabelledToken, entities_of, without_overlaps
from refimpl.pipelines.heads import HeadPipeline, check_choice, check_row, check_truth
from refimpl.tokenizer.encoding import Encoding


@dataclass
class TokenClassificationOptions:
    """The options of the task.  Raises: InputError."""

    #: How tokens become entities; see `TokenClassificationPipeline`.
    aggregation_strategy: str = "none"
    #: Labels, or names of groups, that are left out.
    ignore_labels: list[str] = field(default_factory=lambda: ["O"])
    #: A text longer than the tokenizer's `model_max_length` is read in pieces that share so many tokens; without it
    #: the rest is cut off.
    stride: int | None = None
    #: Texts are lists of words.
    is_split_into_words: bool = False
    #: Stands between words, where they are put together as one text.
    delimiter: str = " "

    def __post_init__(self) -> None:
        name = "aggregation_strategy"
        self.aggregation_strategy = check_choice(name, self.aggregation_strategy, STRATEGIES)
        labels = self.ignore_labels
        if not isinstance(labels, list | tuple | set) or not all(isinstance(label, str) for label in labels):
            raise InputError(
                "not labels", where="ignore_labels", found=quote(labels), allowed="a list of names"
            )
        check_truth("is_split_into_words", self.is_split_into_words)
        if not isinstance(self.delimiter, str):
            raise InputError("not a text", where="delimiter", found=quote(self.delimiter))
        if self.stride is not None:
            whole_number("stride", self.stride, least=0)
            if self.aggregation_strategy == "none":
                raise InputError(
                    "pieces that overlap are put together as entities",
                    where="stride",
                    found='aggregation_strategy "none"',
                    allowed=", ".join(STRATEGIES[1:]),
                )


class _Text(NamedTuple):
    """A text, and where in it each word begins (None: it was not given as words)."""

    text: str
    words: list[str] | None
    word_starts: list[int] | None


class TokenClassificationPipeline(HeadPipeline):
    """Labels the tokens of texts, and puts them together as entities: a list of dicts for each text.

    `aggregation_strategy`:

    - "none": a dict for each token: "entity" (its label), "score", "index" (its place among the tokens), "word" (the
      token), "start" and "end" (of its characters in the text).
    - "simple": neighbours of one tag are one entity, with "entity_group" (the tag) in place of "entity".  Labels may
      have the prefixes "B-", which begins a new entity, and "I-", which goes on with the last one.  The score is the
      mean of its tokens.
    - "first", "average", "max": the same, but all tokens of a word first get one label: that of the first token, that
      of the mean of their scores, or that of the token with the highest score.  A word ends before a space.

    Labels of `ignore_labels` are left out ("O" by default).
    With `is_split_into_words` a text is a list of words, and "start" and "end" are places in the words joined by
    `delimiter`; for one such text the result is a list of one list, as in transformers.
    """

    task = "token-classification"
    auto_class = AutoModelForTokenClassification
    options_class = TokenClassificationOptions
    model_classes = (GPTNeoXForTokenClassification,)

    def accept(self, options: dict[str, Any]) -> TokenClassificationOptions:
        accepted: TokenClassificationOptions = super().accept(options)
        longest = self.tokenizer.model_max_length
        if accepted.stride is not None and accepted.stride >= longest:
            raise InputError(
                "pieces must share less than a whole piece",
                where="stride",
                found=str(accepted.stride),
                allowed=f"less than the tokenizer's model_max_length, {longest}",
            )
        return accepted

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """See the class.  Raises: InputError for anything but text, and for options that mean nothing."""
        split = self.combined(options).get("is_split_into_words")
        if (
            split
            and isinstance(inputs, list | tuple)
            and not any(isinstance(i, list | tuple) for i in inputs)
        ):
            inputs = [inputs]
        return super().__call__(inputs, batch_size=batch_size, **options)

    def check_item(self, item: Any, where: str, accepted: TokenClassificationOptions) -> None:
        if not accepted.is_split_into_words:
            check_text(item, where)
            return
        if not isinstance(item, list | tuple) or not all(isinstance(word, str) for word in item):
            raise InputError("not a list of words", where=where, found=quote(item))

    def run(self, items: list[Any], accepted: TokenClassificationOptions, first: int) -> list[Any]:
        texts = [_text(item, accepted) for item in items]
        pieces = [self._pieces(text, accepted, place) for place, text in enumerate(texts, start=first)]
        rows = [piece.ids for text_pieces in pieces for piece in text_pieces]
        logits = self.outputs(rows, len(items), "logits")
        return [
            self._entities(text, text_pieces, logits, accepted)
            for text, text_pieces in zip(texts, pieces, strict=True)
        ]

    def _pieces(self, text: _Text, accepted: TokenClassificationOptions, place: int) -> list[Encoding]:
        """The text as rows that the model takes: one, or with a stride as many as it needs."""
        cut: dict[str, Any] = {"truncation": bool(self.tokenizer.model_max_length)}
        if accepted.stride is not None:
            cut |= {"stride": accepted.stride, "return_overflowing_tokens": True}
        if text.words is not None:
            cut["is_split_into_words"] = True
        encoding = self.tokenizer(text.words or text.text, return_offsets_mapping=True, **cut)
        pieces = encoding.encodings
        check_row(pieces[0].ids, place)
        return pieces

    def _entities(
        self,
        text: _Text,
        pieces: list[Encoding],
        logits: Iterator[tuple[Any, ...]],
        accepted: TokenClassificationOptions,
    ) -> list[dict[str, Any]]:
        found = []
        for piece in pieces:
            tokens = self._tokens(text, piece, probabilities(next(logits)[0]))
            for entity in entities_of(
                tokens, accepted.aggregation_strategy, self.model.config.id2label, self._joined
            ):
                if entity.get("entity", entity.get("entity_group")) not in accepted.ignore_labels:
                    found.append(entity)
        return without_overlaps(found) if len(pieces) > 1 else found

    def _joined(self, tokens: list[str]) -> str:
        return self.tokenizer.convert_tokens_to_string(tokens)

    def _tokens(self, text: _Text, piece: Encoding, scores: Any) -> Iterator[LabelledToken]:
        """The tokens of the text in a row, with their scores `[seq, num_labels]`."""
        columns = zip(piece.ids, piece.tokens, piece.offsets, piece.word_ids, strict=True)
        special = piece.special_tokens_mask
        for index, (token_id, token, (start, end), word) in enumerate(columns):
            if special[index]:
                continue
            if text.word_starts is not None and word is not None:
                start, end = start + text.word_starts[word], end + text.word_starts[word]
            goes_on = start > 0 and " " not in text.text[start - 1 : start + 1]
            if token_id == self.tokenizer.unk_token_id:
                token, goes_on = text.text[start:end], False
            yield LabelledToken(token, scores[index], start, end, index, goes_on)


def _text(item: Any, accepted: TokenClassificationOptions) -> _Text:
    if not accepted.is_split_into_words:
        return _Text(item, None, None)
    words = list(item)
    starts = [0]
    for word, _ in pairwise(words):
        starts.append(starts[-1] + len(word) + len(accepted.delimiter))
    return _Text(accepted.delimiter.join(words), words, starts)
