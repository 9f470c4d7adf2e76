"""From labelled tokens to entities: words of one label, neighbours of one tag, and pieces that overlap.

Source: https://huggingface.co/docs/transformers/v5.5.3/en/main_classes/pipelines, "TokenClassificationPipeline"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

STRATEGIES = ("none", "simple", "first", "average", "max")

#: Tokens -> the text that they spell.
Join = Callable[[list[str]], str]

Entity = dict[str, Any]


class LabelledToken(NamedTuple):
    """A token with the scores `[num_labels]` of its labels.

    start, end: its characters in the text.
    place: its place in the row.
    goes_on: whether it goes on with the word of the token before.
    """

    token: str
    scores: np.ndarray
    start: int
    end: int
    place: int
    goes_on: bool


def entities_of(
    tokens: Iterable[LabelledToken], strategy: str, labels: Mapping[int, str], join: Join
) -> list[Entity]:
    """The entities of one row; "none" gives one for each token."""
    if strategy in ("none", "simple"):
        single = [_token_entity(token, labels) for token in tokens]
        return single if strategy == "none" else _groups(single, join)
    return _groups([_word_entity(word, strategy, labels, join) for word in _words(tokens)], join)


def _token_entity(token: LabelledToken, labels: Mapping[int, str]) -> Entity:
    best = int(token.scores.argmax())
    return {
        "entity": labels[best],
        "score": float(token.scores[best]),
        "index": token.place,
        "word": token.token,
        "start": token.start,
        "end": token.end,
    }


def _words(tokens: Iterable[LabelledToken]) -> list[list[LabelledToken]]:
    words: list[list[LabelledToken]] = []
    for token in tokens:
        if token.goes_on and words:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word_entity(word: list[LabelledToken], strategy: str, labels: Mapping[int, str], join: Join) -> Entity:
    """One entity of all tokens of a word, whatever they say by themselves."""
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: float(token.scores.max())).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    best = int(scores.argmax())
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "word": join([token.token for token in word]),
        "start": word[0].start,
        "end": word[-1].end,
    }


def _groups(entities: list[Entity], join: Join) -> list[Entity]:
    """Neighbours of one tag as one entity; "B-" begins a new one."""
    groups: list[list[Entity]] = []
    for entity in entities:
        begins, tag = _begins_and_tag(entity["entity"])
        if groups and not begins and tag == _begins_and_tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [_group_entity(group, join) for group in groups]


def _begins_and_tag(label: str) -> tuple[bool, str]:
    """A label without its prefix, and whether that is "B-"; a label without one goes on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _group_entity(group: list[Entity], join: Join) -> Entity:
    return {
        # The name of a group is what follows the first hyphen of its label, whatever stands before.
        "entity_group": group[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([entity["score"] for entity in group])),
        "word": join([entity["word"] for entity in group]),
        "start": group[0]["start"],
        "end": group[-1]["end"],
    }


def without_overlaps(entities: list[Entity]) -> list[Entity]:
    """The entities of pieces that overlap, in the order of the text.

    Where one begins inside the other, the longer stays, and of two that are equally long the one with the higher score.
    """
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda found: found["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif _importance(entity) > _importance(kept[-1]):
            kept[-1] = entity
    return kept


def _importance(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
