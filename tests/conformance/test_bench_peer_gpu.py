"""The peer of `refimpl bench model` that is for a GPU: compiled with a static cache, here tried on the processor."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from refimpl.cli.bench.model_cases import adapter
from tests.tiny import save_tiny

torch = pytest.importorskip("torch")

OPTIONS = {"random": False, "revision": None, "dtype": "float32", "device": "cpu", "longest": 24}


@pytest.fixture(scope="module")
def peer() -> Any:
    specification = importlib.util.spec_from_file_location("peer", adapter("transformers"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with torch.no_grad():  # the adapter turns gradients off for its whole process
        yield module


@pytest.mark.skipif(
    "REFIMPL_COMPILED" not in os.environ, reason="compiles for a minute; make check-long does"
)
@pytest.mark.filterwarnings("ignore")  # of the compiler's own packages
def test_compiled_gives_the_same_tokens(peer, tmp_path):
    """After nothing, after a prompt, and after the same prompt again, whose keys are still there."""
    folder = save_tiny(tmp_path / "model", vocab_size=300)
    made = []
    for compiled in (False, True):
        said = peer.prepare(str(folder), 2, {**OPTIONS, "compiled": compiled})
        assert ("static cache" in said["what"]) is compiled
        assert said["operations"]["memory"](None) is None
        found = []
        for ids in ([], [7, 8, 9, 10], [7, 8, 9, 10], []):
            said["operations"]["fill"]({"ids": ids})
            found.append(said["operations"]["decode"]({"first": 5, "tokens": 12}))
        found.append(said["operations"]["prefill"]({"ids": [3, 4, 5]}))
        made.append(found)
    assert made[0] == made[1]
    assert made[1][1] == made[1][2] != made[1][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_no_gpu(peer):
    with pytest.raises(NotImplementedError, match="sees no GPU"):
        peer.prepare("", 1, {**OPTIONS, "device": "cuda:0"})
