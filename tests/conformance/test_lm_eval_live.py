"""Live comparison with the lm-evaluation-harness: its own model for transformers beside ours, on one tiny model.

Needs the package lm_eval; without it everything here is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.errors import InputError
from tests.conformance.theirs import transformers
from tests.refimpl.pipeline_models import TEXTS, TOKENIZER
from tests.tiny import tiny_neox

lm_eval = pytest.importorskip("lm_eval", reason="needs the package lm_eval: pip install 'refimpl[lm-eval]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and what it imports warn of many things

CONTEXT = 48

CHOICES = [
    ("Hello world, my name is", " Bob"),
    ("Hello world, my name is", " Alice and I live here"),
    ("Hello world, my name is ", "Bob"),  # the space moves to the continuation
    ("", "Hello world"),
    ("", "<|endoftext|>Hello"),
    ("the", " "),
    ("吾輩は", "猫である。名前はまだ無い。"),
    ("ab", "c"),
    ("1 2 3 4 5 6 7 8 9 " * 8, "10 11 12"),  # longer than the context: loses its beginning
    ("x\n\n", "y"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer that both sides read by its file."""
    path = tmp_path_factory.mktemp("lm_eval") / "model"
    model = tiny_neox(
        vocab_size=672, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    model.save_pretrained(path)
    settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (path / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=CONTEXT, batch_size=1)


@pytest.fixture(params=[1, 3])
def ours(folder: Path, request: pytest.FixtureRequest) -> Any:
    from refimpl.lm_eval_adapter import RefimplLM

    return RefimplLM(str(folder), batch_size=request.param)


def requests(kind: str, arguments: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def test_what_the_harness_asks(ours: Any, theirs: Any) -> None:
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(theirs, name)
    for text in TEXTS:
        assert ours.tok_encode(text) == theirs.tok_encode(text)


def test_loglikelihood(ours: Any, theirs: Any) -> None:
    asked = requests("loglikelihood", CHOICES)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    wanted = theirs.loglikelihood(asked, disable_tqdm=True)
    for (score, greedy), (their_score, their_greedy) in zip(found, wanted, strict=True):
        assert type(score) is float
        assert score == pytest.approx(their_score, abs=1e-4)
        assert greedy is bool(their_greedy)


def test_what_greedy_choice_gives_is_called_so(ours: Any, theirs: Any) -> None:
    """Continuations that the model itself writes, and ones that end otherwise."""
    asked = []
    for text in TEXTS[:3]:
        ids = ours.tok_encode(text)
        row = ours.model.generate([ids], max_new_tokens=4, do_sample=False)[0, len(ids) :].tolist()
        asked += [((text, "a"), ids, row), ((text, "b"), ids, [*row[:-1], (row[-1] + 1) % 672])]
    found = ours._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False] * 3
    for ours_, theirs_ in zip(found, theirs._loglikelihood_tokens(asked, disable_tqdm=True), strict=True):
        assert ours_ == (pytest.approx(theirs_[0], abs=1e-4), theirs_[1])


def test_rolling(ours: Any, theirs: Any) -> None:
    long = " ".join(f"word{i} and" for i in range(30))
    counts = [len(ours.tok_encode(long[:end])) for end in range(len(long))]
    exact = long[: counts.index(CONTEXT)]  # just the context, and one token more
    more = long[: counts.index(CONTEXT + 1)]
    asked = requests("loglikelihood_rolling", [(text,) for text in [*TEXTS, long, exact, more]])
    found = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(found, theirs.loglikelihood_rolling(asked, disable_tqdm=True), atol=1e-3)


def test_a_rolling_text_by_hand(ours: Any) -> None:
    """Each token once; the last window is a full context, of which only what is new is scored."""
    text = " ".join(f"word{i} and" for i in range(30))
    ids = [ours.prefix_token_id, *ours.tok_encode(text)]
    total = 0.0
    for place in range(1, len(ids)):
        window = (place - 1) // CONTEXT
        end = min((window + 1) * CONTEXT, len(ids) - 1)
        begin = window * CONTEXT if window == 0 or end == (window + 1) * CONTEXT else end - CONTEXT
        logits = np.asarray(ours.model(np.array([ids[begin:place]])).logits[0, -1], dtype=np.float64)
        total += logits[ids[place]] - np.log(np.exp(logits).sum())
    (found,) = ours.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    assert found == pytest.approx(total, abs=1e-3)


def test_generate_until(ours: Any, theirs: Any) -> None:
    greedy = {"do_sample": False, "temperature": 0.0}
    first = theirs.generate_until(
        requests("generate_until", [(TEXTS[0], {"until": [], "max_gen_toks": 12, **greedy})]),
        disable_tqdm=True,
    )[0]
    assert len(first) > 4
    asked = [
        (text, {"until": until, "max_gen_toks": count, **greedy})
        for count in (1, 12)
        for until in (["\n\n"], [first[3:5]], [])
        for text in (*TEXTS, "1 2 3 4 5 6 7 8 9 " * 8)
    ]
    found = ours.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert any(first[3:5] not in text and len(text) < len(first) for text in found)


def test_a_task_gives_the_same_results(folder: Path, theirs: Any, tmp_path: Path) -> None:
    """A task of multiple choice and one of perplexity, run by the harness with "refimpl" as its model."""
    from lm_eval.tasks import TaskManager

    import refimpl.lm_eval_adapter

    assert refimpl.lm_eval_adapter.RefimplLM is not None
    rows = [
        {"q": text, "choices": [" Bob", " Tokyo", " the city"], "a": i % 3} for i, text in enumerate(TEXTS)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (tmp_path / "choice.yaml").write_text(
        f"task: tiny_choice\n{common}output_type: multiple_choice\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{a}}"\ntarget_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (tmp_path / "rolling.yaml").write_text(
        f'task: tiny_rolling\n{common}output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
        'doc_to_target: "{{q}}"\nmetric_list:\n'
        "  - metric: word_perplexity\n  - metric: byte_perplexity\n  - metric: bits_per_byte\n"
    )
    names = ["tiny_choice", "tiny_rolling"]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    options: dict[str, Any] = {"tasks": names, "task_manager": manager, "bootstrap_iters": 0}
    arguments = {"pretrained": str(folder), "batch_size": 2}
    ours = lm_eval.simple_evaluate(model="refimpl", model_args=arguments, **options)["results"]
    wanted = lm_eval.simple_evaluate(model=theirs, **options)["results"]
    for name in names:
        measured = {key: value for key, value in wanted[name].items() if isinstance(value, float)}
        assert measured
        for key, value in measured.items():
            assert ours[name][key] == pytest.approx(value, rel=1e-3), key


def test_what_cannot_be_scored(ours: Any) -> None:
    for context, continuation in (([], [1]), ([1], []), ([1], [2] * (CONTEXT + 1))):
        with pytest.raises(InputError):
            ours._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
    with pytest.raises(InputError, match="no room for a context"):
        ours.generate_until(requests("generate_until", [("x", {"max_gen_toks": CONTEXT})]))
    with pytest.raises(InputError, match="chat template"):
        ours.apply_chat_template([])
    from refimpl.lm_eval_adapter import RefimplLM

    for batch_size in (0, "many", -1, 1.5):
        with pytest.raises(InputError, match="batch_size"):
            RefimplLM(ours.model, ours.tokenizer, batch_size=batch_size)
    with pytest.raises(InputError, match="tokenizer"):
        RefimplLM(ours.model)
    assert RefimplLM(ours.model, ours.tokenizer, batch_size="auto").batch_size == 8
