"""This package as an engine of the protocol: what it says where it refuses and where it lacks something."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from refimpl.conformance.our_engine import OurEngine
from tests.goldens import GOLDEN


def answer(operation: str, model: str, **arguments: Any) -> dict[str, Any]:
    request = {"operation": operation, "model": str(GOLDEN / model), "arguments": arguments}
    return OurEngine("numpy")({**request, "tensors": {}, "outputs": ["ids"]})


def test_weights_that_would_run_something_are_refused_as_a_checkpoint() -> None:
    refusal = answer("load", "models/gpt_neox/broken-pickled-call")["error"]
    assert refusal["kind"] == "checkpoint"
    assert "posix.getpid" in refusal["message"]


def test_without_the_package_sentencepiece_its_cases_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    said = answer("tokenizer", "tokenizer/sentencepiece_small", text="猫")
    assert list(said) == ["unsupported"]
    assert "refimpl[sentencepiece]" in said["unsupported"]
    assert "outputs" in answer("tokenizer", "tokenizer/neox_small", text="a")
