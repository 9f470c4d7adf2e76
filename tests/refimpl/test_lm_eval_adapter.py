"""The adapter without the harness; with it, `tests/conformance/test_lm_eval_live.py` compares the two."""

from __future__ import annotations

import importlib
import sys

import pytest

from refimpl.errors import BackendError


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "refimpl.lm_eval_adapter", raising=False)
    with pytest.raises(BackendError, match=r"refimpl\[lm-eval\]"):
        importlib.import_module("refimpl.lm_eval_adapter")
