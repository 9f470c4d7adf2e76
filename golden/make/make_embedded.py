"""Cases of the trained model that ships inside the package.

Its texts are given as ids, so that no tokenizer is needed to use them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import oracle
from common import REPOSITORY, significant
from families import JAPANESE
from generation_cases import SMALLEST_LEAD
from maker import Maker
from tiny_models import load
from transformers import GPTNeoXJapaneseTokenizer

EMBEDDED = REPOSITORY / "refimpl" / "embedded_model"

#: The logits of one position take 100 kB; the rest of the texts is continued only.
TEXTS_WITH_LOGITS = 3
SHORT_TEXT = "その夜、雨が降った。"
TEXTS = (
    "吾輩は猫である。名前はまだ無い。",
    "むかしむかし、あるところに",
    "雨が降って来た。私は",
    "「どうしたんです」と彼は",
    "その夜、",
    "東京の町を歩きながら、僕は考えた。",
)


def make_embedded(golden: Path, folder: Path) -> None:
    tokenizer = GPTNeoXJapaneseTokenizer(str(folder / "vocab.txt"), str(folder / "emoji.json"))
    shutil.rmtree(golden / JAPANESE.vector_folder("embedded"), ignore_errors=True)
    make = Maker("embedded", load(JAPANESE, folder), "../refimpl/embedded_model", golden, ("trained",))
    ids = np.array([tokenizer(SHORT_TEXT)["input_ids"]], dtype=np.int64)
    inputs = {"input_ids": ids, "labels": ids}
    title = f"All hidden states, all attentions and the loss of {SHORT_TEXT}"
    wanted = ("hidden_states.", "attentions.", "loss")
    features = ("hidden-states", "attentions", "loss")
    make.write("outputs", title, inputs, make.both(inputs), wanted, features=features, text=SHORT_TEXT)
    for number, text in enumerate(TEXTS, start=1):
        inputs = {"input_ids": np.array([tokenizer(text)["input_ids"]], dtype=np.int64)}
        greedy_text(make, f"greedy-{number}", f"Greedy continuation of {text}", inputs["input_ids"], text)
        if number <= TEXTS_WITH_LOGITS:
            title = f"Hidden states and the last logits after {text}"
            wanted, arguments = ("logits", "last_hidden_state"), {"logits_to_keep": 1}
            results = make.both(inputs, 1)
            make.write(f"text-{number}", title, inputs, results, wanted, arguments=arguments, text=text)


def greedy_text(make: Maker, case: str, title: str, ids: np.ndarray, text: str) -> None:
    """Greedy ids up to the last step at which the winner leads clearly; no case where it never does."""
    eos = make.model.config.eos_token_id
    for new_tokens in range(16, 0, -1):
        asked: dict[str, Any] = {"new_tokens": new_tokens, "eos": eos, "pad": eos}
        exact, lead = oracle.greedy(make.exact, {"input_ids": ids}, **asked)
        if lead > SMALLEST_LEAD:
            break
    else:
        return
    arguments = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": eos, "pad_token_id": eos}
    more = {"arguments": arguments, "features": ("greedy",), "smallest_lead": significant(lead), "text": text}
    make.write_ids(case, title, {"input_ids": ids}, exact, **more)
