"""The one fixed substitution that turns an example of transformers' documentation into one of ours.

`docs/from_transformers.md` shows the same list; a test compares the two.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """What is written, what is written instead, and the same as a pattern; an empty `after` leaves it out."""

    before: str
    after: str
    pattern: str
    replacement: str | Callable[[re.Match[str]], str]


def _block(match: re.Match[str]) -> str:
    """The statements under a `with` line, without their indentation."""
    return textwrap.dedent(match[1])


#: In this order.
RULES = (
    Rule(
        "from transformers import pipeline",
        "from refimpl import pipeline",
        r"\btransformers\b",
        "refimpl",
    ),
    Rule("import torch", "import numpy as np", r"^import torch$", "import numpy as np"),
    Rule(
        'tokenizer(text, return_tensors="pt")',
        'tokenizer(text, return_tensors="np")',
        r'return_tensors="pt"',
        'return_tensors="np"',
    ),
    Rule("with torch.no_grad():", "", r"^with torch\.no_grad\(\):\n((?: +.*\n?)+)", _block),
    Rule("input_ids.to(model.device)", "input_ids", r"\.to\(model\.device\)", ""),
    Rule(
        "labels.to(torch.float)", "labels.astype(np.float32)", r"\.to\(torch\.float\)", ".astype(np.float32)"
    ),
    Rule("torch.float16", '"float16"', r"\btorch\.(float16|bfloat16)\b", r'"\1"'),
    Rule("torch.tensor([1])", "np.array([1])", r"\btorch\.tensor\(", "np.array("),
    Rule(
        "torch.sigmoid(x)", "(1 / (1 + np.exp(-x)))", r"\btorch\.sigmoid\((\w+)\)", r"(1 / (1 + np.exp(-\1)))"
    ),
    Rule(
        "torch.nn.functional.one_hot(x, num_classes=n)",
        "np.eye(n)[x]",
        r"\btorch\.nn\.functional\.one_hot\((.+?), num_classes=(\w+)\)",
        r"np.eye(\2)[\1]",
    ),
    Rule("x.clone()", "x.copy()", r"\.clone\(\)", ".copy()"),
    Rule("x.squeeze(dim=0)", "x.squeeze(axis=0)", r"\bdim=", "axis="),
    Rule("torch.sum(x)", "np.sum(x)", r"\btorch\.", "np."),
)


def substitute(code: str) -> str:
    """`code` after the substitution."""
    for rule in RULES:
        code = re.sub(rule.pattern, rule.replacement, code, flags=re.MULTILINE)
    return code
