"""The task `question-answering`: questions with a context in, the part of the context that answers out.

transformers 5 has no such pipeline any more; this one follows that of transformers 4.

Source: https://huggingface.co/docs/transformers/v4.51.1/main_classes/pipelines, "QuestionAnsweringPipeline"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refimpl.auto import AutoModelForQuestionAnswering
from refimpl.errors import InputError, quote
from refimpl.generation.logits import probabilities
from refimpl.gpt_neox_heads import GPTNeoXForQuestionAnswering
from refimpl.pipelines.base import whole_number
from refimpl.pipelines.heads import HeadPipeline, check_truth
from refimpl.tokenizer.encoding import Encoding

# Without other limits: the tokens of question and context in one pass, and those that two passes share.
_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128

# In place of the logits of what cannot be part of an answer: exp of it is 0 beside any other.
_IMPOSSIBLE = -10000.0


@dataclass
class QuestionAnsweringOptions:
    """The options of the task.  Raises: InputError."""

    #: So many answers, the best first; with 1 a dict in place of a list.
    top_k: int = 1
    #: A context that is too long is read in pieces that share so many tokens; None: 128, or half of a piece.
    doc_stride: int | None = None
    #: In tokens.
    max_answer_len: int = 15
    #: Tokens of question and context together in one piece; None: 384, or what the tokenizer allows.
    max_seq_len: int | None = None
    #: The question is cut after so many tokens; None: it is not cut.
    max_question_len: int | None = None
    #: Whether "no answer" may be an answer: an empty text.
    handle_impossible_answer: bool = False
    #: Answers are made longer until they are whole words; not for languages without spaces.
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name))
        if self.doc_stride is not None:
            whole_number("doc_stride", self.doc_stride, least=0)
        for name in ("handle_impossible_answer", "align_to_words"):
            check_truth(name, getattr(self, name))

    def lengths(self, model_max_length: int) -> tuple[int, int]:
        """The tokens of a piece, and those that two pieces share.  Raises: InputError."""
        length = min(model_max_length, _MAX_SEQ_LEN) if self.max_seq_len is None else self.max_seq_len
        shared = min(length // 2, _DOC_STRIDE) if self.doc_stride is None else self.doc_stride
        if shared > length:
            raise InputError(
                "pieces cannot share more than a whole piece",
                where="doc_stride",
                found=str(shared),
                allowed=f"at most max_seq_len, {length}",
            )
        return length, shared


class _Span(NamedTuple):
    """Tokens `start` to `end` (inclusive) of a row."""

    start: int
    end: int
    score: float


class QuestionAnsweringPipeline(HeadPipeline):
    """Finds answers: `{"score": 0.9, "start": 34, "end": 40, "answer": "Berlin"}`, places in characters of the context.

    Questions are given as `question=` and `context=` (texts, or lists of them; one context serves several
    questions), as a dict with these two names, or as a list or an iterator of such dicts.  The result of a single
    question is not in a list, even if the question is.  With `top_k` above 1 it is a list of answers, fewer where
    there are not so many.

    The score of an answer is the product of the probabilities of its first and its last token.  Equal texts (but for
    upper and lower case) are one answer, with the sum of their scores.
    """

    task = "question-answering"
    auto_class = AutoModelForQuestionAnswering
    options_class = QuestionAnsweringOptions
    model_classes = (GPTNeoXForQuestionAnswering,)

    def __call__(
        self,
        *inputs: Any,
        question: Any = None,
        context: Any = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """See the class.  Raises: InputError for anything else, and for options that mean nothing."""
        given = _questions(inputs, question, context)
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        return super().__call__(given, batch_size=batch_size, **options)

    def check_item(self, item: Any, where: str, accepted: QuestionAnsweringOptions) -> None:
        if not isinstance(item, dict) or item.keys() != {"question", "context"}:
            raise InputError(
                "not a question with its context",
                where=where,
                found=quote(item),
                allowed='{"question": "...", "context": "..."}',
            )
        for name, text in item.items():
            if not isinstance(text, str) or not text:
                found = "an empty text" if text == "" else quote(text)
                raise InputError("not a text to read", where=f"{where}[{name!r}]", found=found)

    def run(self, items: list[Any], accepted: QuestionAnsweringOptions, first: int) -> list[Any]:
        pieces = [self._pieces(item, accepted) for item in items]
        rows = [piece.ids for item_pieces in pieces for piece in item_pieces]
        ends = self.outputs(rows, len(items), "start_logits", "end_logits")
        return [
            self._answer(item["context"], item_pieces, ends, accepted)
            for item, item_pieces in zip(items, pieces, strict=True)
        ]

    def _pieces(self, item: dict[str, str], accepted: QuestionAnsweringOptions) -> list[Encoding]:
        """The question with each part of the context that fits beside it."""
        question, context = item["question"], item["context"]
        longest = accepted.max_question_len
        if longest is not None:
            offsets = self.tokenizer(question, add_special_tokens=False).encodings[0].offsets
            question = question[: offsets[longest - 1][1]] if len(offsets) > longest else question
        max_length, stride = accepted.lengths(self.tokenizer.model_max_length)
        texts = (question, context) if self._question_first else (context, question)
        return self.tokenizer(
            *texts,
            truncation="only_second" if self._question_first else "only_first",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        ).encodings

    @property
    def _question_first(self) -> bool:
        return self.tokenizer.padding_side == "right"

    def _answer(
        self,
        context: str,
        pieces: list[Encoding],
        ends: Iterator[tuple[np.ndarray, ...]],
        accepted: QuestionAnsweringOptions,
    ) -> Any:
        answers: dict[str, dict[str, Any]] = {}
        no_answer = float("inf")
        # Different spans of tokens may be the same words.
        count = accepted.top_k * 2 + 10 if accepted.align_to_words else accepted.top_k
        for piece in pieces:
            possible = self._possible(piece)
            start, end = (probabilities(np.where(possible, logits, _IMPOSSIBLE)) for logits in next(ends))
            no_answer = min(no_answer, float(start[0] * end[0]))
            possible[0] = False  # its score is that of "no answer"
            for span in best_spans(start, end, possible, count, accepted.max_answer_len):
                first, last = self._characters(piece, span, accepted.align_to_words)
                text = context[first:last]
                known = answers.get(text.lower())
                if known is not None:
                    known["score"] += span.score
                else:
                    answers[text.lower()] = {
                        "score": span.score,
                        "start": first,
                        "end": last,
                        "answer": text,
                    }
        found = list(answers.values())
        if accepted.handle_impossible_answer:
            found.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: answer["score"], reverse=True)[: accepted.top_k]
        return found[0] if len(found) == 1 else found

    def _possible(self, piece: Encoding) -> np.ndarray:
        """Which tokens may be part of an answer, or (the class token) stand for "no answer".  -> [seq] bool"""
        text = 1 if self._question_first else 0
        possible = np.array([sequence == text for sequence in piece.sequence_ids])
        class_token = self.tokenizer.cls_token_id
        return possible if class_token is None else possible | (np.array(piece.ids) == class_token)

    def _characters(self, piece: Encoding, span: _Span, align_to_words: bool) -> tuple[int, int]:
        """The characters of a span of tokens, or of the words of which it is a part."""
        text = 1 if self._question_first else 0
        if align_to_words:
            first_word, last_word = piece.token_to_word(span.start), piece.token_to_word(span.end)
            first = None if first_word is None else piece.word_to_chars(first_word, text)
            last = None if last_word is None else piece.word_to_chars(last_word, text)
            if first is not None and last is not None:
                return first.start, last.end
        return piece.offsets[span.start][0], piece.offsets[span.end][1]


def best_spans(
    start: np.ndarray, end: np.ndarray, possible: np.ndarray, count: int, max_answer_len: int
) -> list[_Span]:
    """The spans of tokens with the highest start[first] * end[last], the best first.

    start, end, possible: [seq].
    """
    places = np.flatnonzero(possible)
    # [answer length, seq]: the score of the span that begins at each place and has this length.
    spans = [
        _Span(int(place), int(place) + more, float(start[place] * end[place + more]))
        for more in range(min(max_answer_len, len(start)))
        for place in places
        if place + more < len(start) and possible[place + more]
    ]
    spans.sort(key=lambda span: span.score, reverse=True)
    return spans[:count]


def _questions(inputs: tuple[Any, ...], question: Any, context: Any) -> Any:
    """What was asked, as a list of dicts (or the iterator that was given).  Raises: InputError."""
    if inputs and (question is not None or context is not None):
        raise InputError("give question= and context=, or dicts that have both, not both ways")
    if len(inputs) == 2 and all(isinstance(text, str) for text in inputs):
        question, context = inputs
    elif len(inputs) == 1:
        (given,) = inputs
        return [given] if isinstance(given, dict) else list(given) if isinstance(given, tuple) else given
    elif inputs:
        return list(inputs)
    if question is None or context is None:
        raise InputError(
            "there is nothing to answer",
            where="question" if question is None else "context",
            allowed="question= and context=, or dicts that have both",
        )
    questions = list(question) if isinstance(question, list | tuple) else [question]
    contexts = list(context) if isinstance(context, list | tuple) else [context] * len(questions)
    if len(questions) != len(contexts):
        raise InputError(
            "there must be a context for each question, or one for all",
            where="context",
            found=f"{len(questions)} questions and {len(contexts)} contexts",
        )
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
