"""Every reader of tokenizer files, fed broken files: only errors of this package come out.

`REFIMPL_FUZZ` is the number of inputs for each reader; `make fuzz` sets a larger one.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.child import run_in_child
from tests.fuzz.harness import run
from tests.fuzz.readers import READERS

INPUTS = int(os.environ.get("REFIMPL_FUZZ", "100000"))
PARTS = 8  # so that several processes can share the work


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", READERS)
def test_only_our_errors_come_out(name: str, part: int) -> None:
    first, last = part * INPUTS // PARTS, (part + 1) * INPUTS // PARTS
    reader = READERS[name]
    if name == "spiece.model":
        pytest.importorskip("sentencepiece")
    tally = (run_in_child if reader.native else run)(reader, first, last - first)
    assert tally.accepted + tally.refused == last - first
    if last - first >= 1000:  # changes that break everything, or nothing, would show nothing
        assert min(tally.accepted, tally.refused) > (last - first) // 50
