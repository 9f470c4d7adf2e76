"""Random GPT-NeoX models with heads, with a tokenizer, for the tests of the pipelines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import refimpl
from tests.tiny import tiny_neox

TOKENIZER = Path(__file__).parents[2] / "golden/tokenizer/neox_small"

ENTITY_LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}

#: a name that begins with the task -> (model, its settings)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "feature-extraction": ("GPTNeoXModel", {}),
    "text-classification": ("GPTNeoXForSequenceClassification", {"num_labels": 3}),
    "text-classification of several": (
        "GPTNeoXForSequenceClassification",
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    "text-classification of one": ("GPTNeoXForSequenceClassification", {"num_labels": 1}),
    "text-classification of numbers": (
        "GPTNeoXForSequenceClassification",
        {"num_labels": 2, "problem_type": "regression"},
    ),
    "token-classification": ("GPTNeoXForTokenClassification", {"id2label": ENTITY_LABELS}),
    "question-answering": ("GPTNeoXForQuestionAnswering", {}),
}

TEXTS = [
    "Hello world, my name is Bob and I live in  Tokyo.",
    "the",
    " a text\nwith lines\tand tabs ",
    "吾輩は猫である。名前はまだ無い。",
    "<|endoftext|>after the end, 12345 tokens…",
    "an<|endoftext|>unknown<|endoftext|> word",
]

QUESTIONS = [
    {
        "question": "Where do I live?",
        "context": "My name is Bob and I live in Tokyo, the city of the bay. The Bay is old, and the city is the city.",
    },
    {"question": "Who?", "context": "Bob."},
    {"question": "猫の名前は？", "context": "吾輩は猫である。名前はまだ無い。 どこで生れたか見当がつかぬ。"},
    {"question": "What is it", "context": "  spaces,  and\nlines  "},
]


def save_pipeline_model(folder: Path, name: str) -> Path:
    """Write the random model of a name in `HEADS`, with the small GPT-NeoX tokenizer, into `folder`."""
    model_class, settings = HEADS[name]
    model = tiny_neox(
        getattr(refimpl, model_class),
        vocab_size=672,
        max_position_embeddings=512,
        pad_token_id=1,
        **settings,
    )
    model.save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder
