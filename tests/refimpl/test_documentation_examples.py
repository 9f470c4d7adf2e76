"""Every example of transformers' documentation of both models works after one fixed substitution.

The examples stand in `tests/documentation/examples.py` as on their pages, the substitution in
`tests/documentation/substitution.py`; the repositories that they name are tiny models in a cache of the Hub.  What the
pages show and trained weights do not decide (ids, shapes, decoded text) must come out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

import refimpl
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.errors import BackendError
from tests.documentation.examples import EXAMPLES
from tests.documentation.hub import build_hub
from tests.documentation.player import play, program
from tests.documentation.substitution import RULES, substitute

REPOSITORY = Path(__file__).parents[2]
PROMPT = "人とAIが協調するためには、"
EMBEDDING = "gpt_neox_japanese.embed_in.weight"

#: "日本語のGPT-neoxがHugging Faceで使えます😀" in the published vocabulary.
JAPANESE_IDS = [
    *(77, 28459, 26637, 31622, 31631, 31635, 31597, 31661, 31652, 31662, 31671, 26653, 31623, 31668, 31654),
    *(31654, 31656, 31661, 31654, 31719, 31621, 31648, 31650, 31652, 26666, 28779, 656, 26625, 31729),
]

#: The default sizes are those of the published models, 2.7 and 20 billion numbers; these are the only other change.
SMALLER = {
    "GPTNeoXJapaneseConfig()": "GPTNeoXJapaneseConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)",
    "GPTNeoXConfig()": (
        "GPTNeoXConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)"
    ),
}


def has_gpu() -> bool:
    try:
        refimpl.get_backend(device="cuda:0")
    except BackendError:
        return False
    return True


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(autouse=True)
def _offline_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `HF_HUB_CACHE` and `HF_HUB_OFFLINE=1` in the environment, which were read when the tests began."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def is_finite(array: Any) -> bool:
    return bool(np.isfinite(refimpl.to_numpy(array)).all())


# --- GPT-NeoX-Japanese ---------------------------------------------------------------------------


def test_japanese_pipeline() -> None:
    if not has_gpu():
        with pytest.raises(BackendError):
            play("japanese_pipeline")
    where = {} if has_gpu() else {"device=0": "device=-1"}
    played = play("japanese_pipeline", where)
    result = eval(played.printed)
    assert list(result[0]) == ["generated_text"]
    assert result[0]["generated_text"].startswith(PROMPT)
    assert played.names["pipeline"].model.state_dict()[EMBEDDING].dtype == np.float16


def test_japanese_auto_classes() -> None:
    played = play("japanese_auto_classes")
    assert played.printed.startswith(PROMPT)
    assert played.names["input_ids"].tolist() == [
        [28579, 26632, 31616, 31624, 26653, 21242, 5, 80, 36, 31678]
    ]
    assert played.names["outputs"].shape == (1, 30)  # without a length: 20 new tokens
    assert played.names["model"].state_dict()[EMBEDDING].dtype == np.float16


def test_japanese_quantization() -> None:
    played = play("japanese_quantization")
    assert played.printed.startswith(PROMPT)
    assert played.names["output"].shape == (1, 30)
    model = played.names["model"]
    weights = (
        model.gpt_neox_japanese.layers[0].mlp.dense_h_to_4h.weight,
        model.gpt_neox_japanese.embed_in.weight,
    )
    assert [isinstance(weight, QuantizedMatrix) for weight in weights] == [True, False]


def test_japanese_attention_mask() -> None:
    played = play("japanese_attention_mask")
    tokens = played.names["visualizer"].tokenizer.tokenize("What is shown in this image?")
    rows = [line for line in played.printed.splitlines() if re.match(r" *\d+ ", line)]
    assert len(rows) == len(tokens) == 28
    for index, row in enumerate(rows):  # causal: token 0 to itself
        assert row.split()[2:] == ["◼"] * (index + 1) + ["."] * (27 - index)


def test_japanese_configuration() -> None:
    played = play("japanese_configuration", SMALLER)
    assert played.names["configuration"] is played.names["model"].config
    assert played.names["configuration"].vocab_size == 32000


def test_japanese_tokenizer() -> None:
    played = play("japanese_tokenizer")
    assert len(played.shown) == 2
    for wanted, found in played.shown:
        assert found == wanted


def test_japanese_model() -> None:
    played = play("japanese_model")
    ids = played.names["inputs"].input_ids
    assert ids.tolist() == [JAPANESE_IDS]
    assert played.names["tokenizer"].decode(ids[0]) == "日本語のGPT-neoxがHugging Faceで使えます😀"
    assert played.names["last_hidden_states"].shape == (1, 29, 32)
    assert is_finite(played.names["last_hidden_states"])


def test_japanese_causal_lm() -> None:
    played = play("japanese_causal_lm")
    assert played.names["model"].config.is_decoder is True
    assert played.names["inputs"].input_ids.tolist() == [JAPANESE_IDS]
    assert played.names["prediction_logits"].shape == (1, 29, 32000)
    assert is_finite(played.names["prediction_logits"])


def test_japanese_generation() -> None:
    played = play("japanese_generation")
    ((wanted, found),) = played.shown
    assert wanted.startswith(PROMPT)
    assert found.startswith(PROMPT)
    assert played.names["gen_tokens"].shape[1] <= 100


# --- GPT-NeoX ------------------------------------------------------------------------------------


def test_neox_half_on_gpu() -> None:
    names = {"GPTNeoXForCausalLM": refimpl.GPTNeoXForCausalLM}
    if has_gpu():
        model = play("neox_half_on_gpu", **names).names["model"]
        assert model.device == "cuda:0"
    else:
        with pytest.raises(BackendError):
            play("neox_half_on_gpu", **names)
        model = play("neox_half_on_gpu", {".cuda()": ""}, **names).names["model"]
    assert model.state_dict()["embed_out.weight"].dtype == np.float16


def test_neox_generation() -> None:
    played = play("neox_generation")
    assert played.names["gen_text"].startswith(played.names["prompt"])
    assert played.names["gen_tokens"].shape[1] <= 100


def test_neox_configuration() -> None:
    played = play("neox_configuration", SMALLER)
    assert played.names["configuration"] is played.names["model"].config
    assert played.names["configuration"].vocab_size == 50432


def test_neox_tokenizer() -> None:
    played = play("neox_tokenizer")
    assert len(played.shown) == 2
    for wanted, found in played.shown:
        assert found == wanted


def test_neox_model() -> None:
    played = play("neox_model")
    ids = played.names["inputs"].input_ids
    assert played.names["last_hidden_states"].shape == (*ids.shape, 32)
    assert is_finite(played.names["last_hidden_states"])
    assert played.names["tokenizer"].decode(ids[0]) == "Hello, my dog is cute"


def test_neox_causal_lm() -> None:
    played = play("neox_causal_lm")
    assert played.names["model"].config.is_decoder is True
    assert played.names["prediction_logits"].shape == (*played.names["inputs"].input_ids.shape, 50432)
    assert is_finite(played.names["prediction_logits"])


def test_neox_question_answering() -> None:
    with pytest.warns(UserWarning, match="qa_outputs"):
        names = play("neox_question_answering").names
    seq = names["inputs"].input_ids.shape[1]
    assert names["outputs"].start_logits.shape == names["outputs"].end_logits.shape == (1, seq)
    assert names["answer_start_index"] == names["outputs"].start_logits[0].argmax()
    span = slice(names["answer_start_index"], names["answer_end_index"] + 1)
    assert names["predict_answer_tokens"].tolist() == names["inputs"].input_ids[0, span].tolist()
    assert names["loss"].shape == ()
    assert is_finite(names["loss"])


def test_neox_sequence_classification() -> None:
    with pytest.warns(UserWarning, match="score"):
        names = play("neox_sequence_classification").names
    assert names["logits"].shape == (1, 2)
    assert names["predicted_class_id"] in (0, 1)
    assert names["num_labels"] == 2
    logits = refimpl.to_numpy(names["logits"])[0].astype(
        np.float64
    )  # the new head is the same in both models
    assert float(names["loss"]) == pytest.approx(np.log(np.exp(logits - logits[1]).sum()), rel=1e-5)


def test_neox_multi_label_classification() -> None:
    with pytest.warns(UserWarning, match="score"):
        names = play("neox_multi_label_classification").names
    assert names["model"].config.problem_type == "multi_label_classification"
    logits = refimpl.to_numpy(names["logits"]).astype(np.float64)
    assert names["labels"].tolist() == (logits > 0).tolist()
    assert names["labels"].dtype == np.float32
    # Binary cross entropy of the likelier label of each class.
    assert float(names["loss"]) == pytest.approx(np.log1p(np.exp(-np.abs(logits))).mean(), rel=1e-5)


def test_neox_token_classification() -> None:
    played = play("neox_token_classification")
    seq = played.names["inputs"].input_ids.shape[1]
    assert played.names["logits"].shape == (1, seq, 2)
    assert played.names["predicted_token_class_ids"].shape == (1, seq)
    assert len(played.names["predicted_tokens_classes"]) == seq
    assert set(played.names["predicted_tokens_classes"]) <= {"LABEL_0", "LABEL_1"}
    ((wanted, found),) = played.shown
    assert float(wanted) == 0.25  # of trained weights
    assert 0 < float(found) <= round(np.log(2), 2)  # no predicted label of two has less than half


# --- the substitution itself, and the list -----------------------------------------------------------


def test_every_example_has_a_test() -> None:
    names = [example.name for example in EXAMPLES]
    assert len(set(names)) == len(names)
    assert all(callable(globals().get(f"test_{name}")) for name in names)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.before)
def test_each_rule_does_what_it_says_and_is_needed(rule: Any) -> None:
    indented = f"{rule.before}\n    pass" if rule.before.endswith(":") else rule.before
    assert substitute(indented) == (rule.after or "pass")
    assert any(re.search(rule.pattern, example.code, re.MULTILINE) for example in EXAMPLES) or any(
        re.search(
            rule.pattern, re.sub(r"^(>>>|\.\.\.) ?", "", example.code, flags=re.MULTILINE), re.MULTILINE
        )
        for example in EXAMPLES
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_nothing_of_the_frameworks_is_left(example: Any) -> None:
    code = "\n".join(source for source, _ in program(example.name))
    assert not re.search(r"transformers|torch|dim=|\.to\(|\"pt\"", code)


def test_the_list_in_the_documentation_is_this_one() -> None:
    page = (REPOSITORY / "docs" / "from_transformers.md").read_text(encoding="utf-8")
    table = re.search(r"^\| in the documentation \| here \|\n\|[-| ]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert table is not None
    rows = [re.findall(r"`([^`]+)`", line) for line in table[1].splitlines()]
    assert rows == [[rule.before, rule.after] if rule.after else [rule.before] for rule in RULES]


# --- as a user does it -----------------------------------------------------------------------------


def test_a_program_of_its_own(hub_cache: Path) -> None:
    """An example as a program in a process of its own, which finds the Hub by its environment."""
    text = "\n".join(source for source, _ in program("japanese_generation"))
    result = subprocess.run(
        [sys.executable, "-c", text],
        env={
            **os.environ,
            "HF_HUB_CACHE": str(hub_cache),
            "HF_HUB_OFFLINE": "1",
            "PYTHONIOENCODING": "utf-8",
        },
        capture_output=True,
        encoding="utf-8",
        cwd=REPOSITORY,
        check=True,
    )
    assert result.stdout.startswith(PROMPT)
