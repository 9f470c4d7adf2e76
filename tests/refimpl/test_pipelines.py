"""`pipeline("text-generation")`: shapes of results, options, batches, and what is refused.

Results for single texts were compared with those of transformers 5.23.0 on the embedded model: equal, token for token.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from refimpl.errors import BackendError, InputError, MissingFileError
from refimpl.pipelines import TASKS, pipeline
from refimpl.pipelines.base import Pipeline
from tests.tiny import tiny_model

CAT = "吾輩は猫である。"
NIGHT = "その夜、雨が降り出した頃から、二人は"
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def writer() -> Pipeline:
    """The pipeline of the embedded model, in float32 for speed."""
    return pipeline("text-generation", device=-1, model_kwargs={"weight_dtype": "float32"})


def generated(writer: Pipeline, text: str, **options: Any) -> str:
    """What `generate()` makes of the text."""
    ids = writer.tokenizer(text, return_tensors="np").input_ids
    row = writer.model.generate(ids, **options)[0, ids.shape[1] :]
    return writer.tokenizer.decode(row, skip_special_tokens=True)


# --- what comes out ------------------------------------------------------------------------------


def test_a_text(writer: Pipeline) -> None:
    (result,) = writer(CAT, **GREEDY)
    assert result == {"generated_text": CAT + generated(writer, CAT, **GREEDY)}
    assert len(result["generated_text"]) > len(CAT)


def test_a_list_has_a_list_for_each_text(writer: Pipeline) -> None:
    alone = [writer(text, **GREEDY) for text in (CAT, NIGHT)]
    assert writer([CAT, NIGHT], **GREEDY) == alone
    assert writer((CAT, NIGHT), **GREEDY) == alone
    assert writer([CAT], **GREEDY) == alone[:1]
    assert writer([], **GREEDY) == []


def test_an_iterator_gives_an_iterator_that_reads_no_further_than_asked(writer: Pipeline) -> None:
    read = []

    def texts() -> Iterator[str]:
        for text in (CAT, NIGHT, CAT):
            read.append(text)
            yield text

    results = writer(texts(), **GREEDY)
    assert not isinstance(results, list)
    assert next(results) == writer(CAT, **GREEDY)
    assert read == [CAT]
    assert len(list(results)) == 2


def test_batches_change_nothing(writer: Pipeline) -> None:
    texts = [CAT, NIGHT, "", NIGHT]
    for options in ({}, {"return_tensors": True}, {"skip_special_tokens": False}):
        alone = writer(texts, **GREEDY, **options)
        assert writer(texts, **GREEDY, **options, batch_size=3) == alone
    assert writer.tokenizer.padding_side == "right"


def test_several_texts_for_one_prompt(writer: Pipeline) -> None:
    options = {"num_return_sequences": 3, "max_new_tokens": 8, "do_sample": True, "seed": 4}
    results = writer([CAT, NIGHT], batch_size=2, **options)
    assert [len(result) for result in results] == [3, 3]
    assert all(r["generated_text"].startswith(CAT) for r in results[0])
    assert all(r["generated_text"].startswith(NIGHT) for r in results[1])
    assert len({r["generated_text"] for r in results[0]}) == 3
    assert len(writer(CAT, **options)) == 3
    with pytest.raises(InputError, match="do_sample=True"):
        writer(CAT, **{**options, "do_sample": False})


def test_the_new_text_alone(writer: Pipeline) -> None:
    (result,) = writer(CAT, return_full_text=False, **GREEDY)
    assert result == {"generated_text": generated(writer, CAT, **GREEDY)}


def test_ids(writer: Pipeline) -> None:
    results = writer([CAT, NIGHT], return_tensors=True, batch_size=2, **GREEDY)
    for text, (result,) in zip((CAT, NIGHT), results, strict=True):
        ids = writer.tokenizer(text).input_ids
        assert list(result) == ["generated_token_ids"]
        assert result["generated_token_ids"][: len(ids)] == ids
        assert len(result["generated_token_ids"]) == len(ids) + 6
        assert all(type(token) is int for token in result["generated_token_ids"])
    with pytest.raises(InputError, match="return_full_text"):
        writer(CAT, return_tensors=True, return_full_text=True)


def test_what_follows_the_end_of_a_text_is_left_out(writer: Pipeline) -> None:
    """A row that ended before its neighbour is filled up by `generate()`."""
    options = {**GREEDY, "return_tensors": True}
    whole = writer(CAT, **options)[0]["generated_token_ids"]
    eos = whole[-3]
    end = whole.index(eos, len(writer.tokenizer(CAT).input_ids)) + 1
    batch = writer([NIGHT, CAT], batch_size=2, eos_token_id=eos, **options)
    assert batch[1] == [{"generated_token_ids": whole[:end]}]
    assert batch == writer([NIGHT, CAT], eos_token_id=eos, **options)


def test_an_empty_prompt_begins_with_bos(writer: Pipeline) -> None:
    ((result,),) = writer([""], return_tensors=True, **GREEDY)
    assert result["generated_token_ids"][0] == writer.model.config.bos_token_id
    assert writer("", **GREEDY)[0]["generated_text"] == generated_from_nothing(writer)
    writer.model.generation_config.bos_token_id, bos = None, writer.model.generation_config.bos_token_id
    try:
        with pytest.raises(InputError, match="bos_token_id"):
            writer("", **GREEDY)
    finally:
        writer.model.generation_config.bos_token_id = bos


def generated_from_nothing(writer: Pipeline) -> str:
    return writer.tokenizer.decode(writer.model.generate(**GREEDY)[0], skip_special_tokens=True)


# --- options -------------------------------------------------------------------------------------


def test_a_stop_sequence_ends_a_text_and_is_part_of_it(writer: Pipeline) -> None:
    options = {"do_sample": False, "max_new_tokens": 40, "return_full_text": False}
    whole = writer(NIGHT, **options)[0]["generated_text"]
    for stop in (whole[3], whole[2:5], [whole[4], "\0never"]):
        first = stop if isinstance(stop, str) else stop[0]
        (result,) = writer(NIGHT, stop_sequence=stop, **options)
        text = result["generated_text"]
        assert first in text
        assert whole.startswith(text)
        assert len(text) < len(whole)
    for batch_size in (1, 2):
        both = writer(
            [NIGHT, CAT], stop_sequence=whole[3], batch_size=batch_size, return_tensors=True, **GREEDY
        )
        assert both[0] == writer(NIGHT, stop_sequence=whole[3], return_tensors=True, **GREEDY)


def test_a_stop_sequence_of_the_prompt_does_not_count(writer: Pipeline) -> None:
    options = {**GREEDY, "return_full_text": False}
    text = writer(CAT, **options)[0]["generated_text"]
    absent = next(c for c in CAT if c not in text)
    assert writer(CAT, stop_sequence=absent, **options)[0]["generated_text"] == text


def test_a_seed_repeats_a_text(writer: Pipeline) -> None:
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 1.2}
    first = writer(CAT, seed=1, **options)
    assert writer(CAT, seed=1, **options) == first
    assert first[0]["generated_text"] == CAT + generated(writer, CAT, seed=1, **options)
    assert writer(CAT, seed=2, **options) != first
    assert writer(CAT, **options) != writer(CAT, **options)
    for batch_size in (1, 2):
        three = writer([CAT] * 3, seed=1, batch_size=batch_size, **options)
        assert three[0] == first
        assert len({result["generated_text"] for (result,) in three}) == 3
        assert writer([CAT] * 3, seed=1, batch_size=batch_size, **options) == three


def test_a_prefix_is_read_and_not_shown(writer: Pipeline) -> None:
    (result,) = writer(CAT, prefix=NIGHT, **GREEDY)
    assert result["generated_text"] == CAT + generated(writer, NIGHT + CAT, **GREEDY)


def test_special_tokens_are_shown_on_request(writer: Pipeline) -> None:
    prompt = writer.tokenizer(NIGHT).input_ids
    first, eos = writer(NIGHT, return_tensors=True, **GREEDY)[0]["generated_token_ids"][len(prompt) :][:2]
    word = writer.tokenizer.convert_ids_to_tokens(eos)
    tokenizer = AutoTokenizer.from_pretrained(refimpl.embedded_model_path(), eos_token=word)
    special = pipeline(
        "text-generation", writer.model, tokenizer=tokenizer, return_full_text=False, eos_token_id=eos
    )
    assert special(NIGHT, **GREEDY)[0]["generated_text"] == tokenizer.decode([first])
    shown = special(NIGHT, skip_special_tokens=False, **GREEDY)[0]["generated_text"]
    assert shown == tokenizer.decode([first, eos]) != tokenizer.decode([first])


def test_arguments_of_the_tokenizer(writer: Pipeline) -> None:
    limited = {"truncation": True, "tokenizer_encode_kwargs": {"max_length": 3}}
    ((result,),) = writer([NIGHT], return_tensors=True, **limited, **GREEDY)
    assert len(result["generated_token_ids"]) == 3 + 6
    assert result["generated_token_ids"][:3] == writer.tokenizer(NIGHT).input_ids[:3]


def test_spaces_are_cleaned_up_on_request(writer: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    decode = writer.tokenizer.decode
    monkeypatch.setattr(writer.tokenizer, "decode", lambda ids, **o: seen.append(o) or decode(ids, **o))
    writer(CAT, clean_up_tokenization_spaces=True, **GREEDY)
    assert seen[0]["clean_up_tokenization_spaces"] is True


def test_options_of_the_pipeline_hold_until_a_call_says_otherwise(writer: Pipeline) -> None:
    fixed = pipeline("text-generation", writer.model, tokenizer=writer.tokenizer, **GREEDY, batch_size=2)
    assert fixed.batch_size == 2
    assert fixed([CAT, NIGHT]) == writer([CAT, NIGHT], **GREEDY)
    assert fixed(CAT, max_new_tokens=2) == writer(CAT, do_sample=False, max_new_tokens=2)
    # A generation_config stands for all generation options, the task's own stay.
    own = pipeline(
        "text-generation", writer.model, tokenizer=writer.tokenizer, **GREEDY, return_full_text=False
    )
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    wanted = writer(CAT, return_full_text=False, do_sample=False, max_new_tokens=3)
    assert own(CAT, generation_config=config) == wanted


def settings(writer: Pipeline, **options: Any) -> dict[str, Any]:
    _, arguments, _ = writer.accept(options)
    return {name: value for name, value in arguments.items() if name != "pad_token_id"}


def test_defaults_where_nobody_says_anything() -> None:
    model = tiny_model(eos_token_id=[2, 3])
    writer = pipeline(
        "text-generation", model, tokenizer=AutoTokenizer.from_pretrained(refimpl.embedded_model_path())
    )
    assert settings(writer) == {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
    assert settings(writer, max_new_tokens=None) == settings(writer)
    assert settings(writer, max_length=9) == {"max_length": 9, "do_sample": True, "temperature": 0.7}
    assert settings(writer, do_sample=False) == {"max_new_tokens": 256, "do_sample": False}
    config = GenerationConfig(max_length=9, do_sample=False)
    assert settings(writer, generation_config=config) == {"generation_config": config}
    assert writer.accept({})[1]["pad_token_id"] == writer.tokenizer.pad_token_id
    assert "pad_token_id" not in writer.accept({"generation_config": GenerationConfig(pad_token_id=0)})[1]
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.5)
    assert settings(writer) == {"max_new_tokens": 256}
    model.generation_config = GenerationConfig(max_length=30, do_sample=False)
    assert settings(writer) == {}


def test_a_streamer_and_criteria_go_to_generate(writer: Pipeline) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, ids: np.ndarray) -> None:
            self.ids.extend(np.ravel(ids).tolist())

        def end(self) -> None:
            pass

    recorder = Recorder()
    (result,) = writer(CAT, streamer=recorder, return_tensors=True, **GREEDY)
    assert recorder.ids == result["generated_token_ids"]
    length = len(writer.tokenizer(CAT).input_ids) + 2
    stopped = writer(
        CAT,
        stopping_criteria=[lambda ids, logits: ids.shape[1] == length],
        stop_sequence="\0never",
        return_tensors=True,
        **GREEDY,
    )
    assert stopped[0]["generated_token_ids"] == result["generated_token_ids"][:length]


# --- making one ----------------------------------------------------------------------------------


def test_public_name() -> None:
    assert refimpl.pipeline is pipeline
    assert set(TASKS) == {
        "feature-extraction",
        "question-answering",
        "text-classification",
        "text-generation",
        "token-classification",
    }


def test_a_folder_and_what_is_in_it(tmp_path: Path) -> None:
    folder = refimpl.embedded_model_path()
    writer = pipeline("text-generation", str(folder), torch_dtype="float16", device="cpu", backend="numpy")
    assert writer.device == "cpu"
    assert writer.dtype == np.float32
    assert writer.model.state_dict()["gpt_neox_japanese.embed_in.weight"].dtype == np.float16
    assert type(writer.tokenizer).__name__ == "GPTNeoXJapaneseTokenizer"
    assert "TextGenerationPipeline" in repr(writer)
    with pytest.raises(MissingFileError):
        pipeline("text-generation", tmp_path)
    with pytest.raises(MissingFileError):
        pipeline("text-generation", folder, tokenizer=tmp_path)


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    folder = refimpl.embedded_model_path()
    config = refimpl.AutoConfig.from_pretrained(folder, layer_norm_eps=0.5)
    assert pipeline("text-generation", folder, config).model.config.layer_norm_eps == 0.5
    config.save_pretrained(tmp_path)
    assert pipeline("text-generation", folder, config=tmp_path).model.config.layer_norm_eps == 0.5


def test_a_model_as_an_object(writer: Pipeline) -> None:
    path = refimpl.embedded_model_path()
    assert pipeline("text-generation", writer.model, tokenizer=path)(CAT, **GREEDY) == writer(CAT, **GREEDY)
    for device in ("cpu", -1, None):
        twin = pipeline("text-generation", writer.model, tokenizer=writer.tokenizer, device=device)
        assert twin.model is writer.model
    with pytest.raises(InputError, match="tokenizer"):
        pipeline("text-generation", writer.model)
    with pytest.raises(InputError, match=r"is loaded; found dtype, revision"):
        pipeline("text-generation", writer.model, tokenizer=path, dtype="float16", revision="main")


def test_hub_options_reach_model_and_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(kind: str) -> Any:
        def from_pretrained(name: Any, **options: Any) -> Any:
            calls.append((kind, name, options))
            return tokenizer if kind == "tokenizer" else model

        return from_pretrained

    path = refimpl.embedded_model_path()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", record("model"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", record("tokenizer"))
    kwargs = {"cache_dir": "c", "weight_dtype": "float32"}
    pipeline("text-generation", "a/b", revision="r", token="t", device=-1, model_kwargs=kwargs)
    hub = {"revision": "r", "token": "t", "cache_dir": "c"}
    assert calls == [
        ("tokenizer", "a/b", hub),
        ("model", "a/b", {**hub, "device": "cpu", "weight_dtype": "float32"}),
    ]
    calls.clear()
    pipeline("text-generation", "a/b", tokenizer="x/y", revision="r", token="t")
    assert calls[0] == ("tokenizer", "x/y", {"token": "t"})  # the revision is one of a/b


def test_devices(writer: Pipeline) -> None:
    try:
        refimpl.get_backend(device="cuda:0")
    except BackendError:
        for device in (0, "cuda", "cuda:0"):
            with pytest.raises(BackendError):
                pipeline("text-generation", device=device)
        with pytest.raises(BackendError):
            pipeline("text-generation", writer.model, tokenizer=writer.tokenizer, device=0)
    for device in (-2, True, 1.5, [0]):
        with pytest.raises(InputError, match="device"):
            pipeline("text-generation", device=device)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["translation", "text-generatoin", "", None, 5, ["text-generation"]])
def test_there_are_no_other_tasks(task: Any) -> None:
    with pytest.raises(InputError, match="allowed: feature-extraction, question-answering, text-cl"):
        pipeline(task)


def test_a_mistyped_task_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean text-generation"):
        pipeline("text-generatoin")


def test_a_model_without_a_head(embedded_model: Path) -> None:
    model = refimpl.AutoModel.from_pretrained(embedded_model)
    with pytest.raises(InputError, match="does not generate text; found GPTNeoXJapaneseModel"):
        pipeline("text-generation", model, tokenizer=embedded_model)


@pytest.mark.parametrize("inputs", [None, 5, b"x", {"text": "x"}, [None], ["x", 5], [["x"]], np.array(["x"])])
def test_what_is_no_text(writer: Pipeline, inputs: Any) -> None:
    with pytest.raises(InputError, match="not a text"):
        writer(inputs, **GREEDY)


def test_an_item_that_is_no_text_is_named(writer: Pipeline) -> None:
    with pytest.raises(InputError, match=r"inputs\[1\]"):
        writer([CAT, 5], **GREEDY)
    results = writer(iter([CAT, 5]), **GREEDY)
    next(results)
    with pytest.raises(InputError, match=r"inputs\[1\]"):
        next(results)


@pytest.mark.parametrize("chat", [[{"role": "user", "content": "x"}], [[{"role": "user", "content": "x"}]]])
def test_a_chat_is_refused_with_a_hint(writer: Pipeline, chat: Any) -> None:
    with pytest.raises(InputError, match="chat template"):
        writer(chat)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"num_return_sequences": 1.0}, "num_return_sequences"),
        ({"seed": -1}, "seed"),
        ({"stop_sequence": ""}, "stop_sequence"),
        ({"stop_sequence": 5}, "stop_sequence"),
        ({"stop_sequence": ["a", None]}, "stop_sequence"),
        ({"prefix": 5}, "prefix"),
        ({"temprature": 1.0}, "Did you mean temperature"),
        ({"top_p": 2.0}, "top_p"),
    ],
)
def test_options_that_mean_nothing(writer: Pipeline, options: dict[str, Any], message: str) -> None:
    """They are refused in a call, and when the pipeline is made, before a long list is begun."""
    with pytest.raises(InputError, match=message):
        writer(CAT, **options)
    with pytest.raises(InputError, match=message):
        pipeline("text-generation", writer.model, tokenizer=writer.tokenizer, **options)


def test_the_base_does_nothing_by_itself(writer: Pipeline) -> None:
    with pytest.raises(TypeError, match="base class"):
        Pipeline(writer.model, writer.tokenizer)
    base = Pipeline.__new__(Pipeline)
    with pytest.raises(TypeError, match="base class"):
        base.accept({})
    with pytest.raises(TypeError, match="base class"):
        base.run([], None, 0)


def test_no_warning_for_an_ordinary_call(writer: Pipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer([CAT, NIGHT], batch_size=2, **GREEDY)


@pytest.mark.parametrize(
    "options",
    [{"tokenizer_encode_kwargs": {"padding": "max_length", "max_length": 10}}, {"return_full_text": 5},
     {"return_tensors": "np"}, {"generation_config": {"max_new_tokens": 3}}],
)  # fmt: skip
def test_options_that_would_mean_something_else(options):
    with pytest.raises(InputError):
        pipeline("text-generation")(CAT, max_new_tokens=2, **options)


def test_one_criterion_need_not_be_a_list():
    found = pipeline("text-generation")(
        CAT, max_new_tokens=5, return_full_text=np.False_, stopping_criteria=lambda ids, logits: True
    )
    assert CAT not in found[0]["generated_text"]


def test_wrong_objects_are_refused():
    for arguments in ({"model_kwargs": {"device": "cpu"}}, {"tokenizer": 5}, {"config": 5}):
        with pytest.raises(InputError):
            pipeline("text-generation", **arguments)


def test_several_texts_of_one_beam_search(writer: Pipeline) -> None:
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    found = writer([CAT, NIGHT], num_return_sequences=2, batch_size=2, return_full_text=False, **options)
    for text, results in zip((CAT, NIGHT), found, strict=True):
        ids = writer.tokenizer(text, return_tensors="np").input_ids
        rows = writer.model.generate(ids, num_return_sequences=2, **options)[:, ids.shape[1] :]
        wanted = [writer.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        assert [result["generated_text"] for result in results] == wanted
        assert len(set(wanted)) == 2
    of_config = writer(CAT, generation_config=GenerationConfig(num_return_sequences=2, **options))
    assert [result["generated_text"].removeprefix(CAT) for result in of_config] == [
        result["generated_text"] for result in found[0]
    ]


def test_a_stop_sequence_ends_a_beam_search(writer: Pipeline) -> None:
    options = {"num_beams": 2, "max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    ids = writer.tokenizer(NIGHT, return_tensors="np").input_ids
    search = {name: value for name, value in options.items() if name != "return_full_text"}
    ended = 0
    for stop in "起立急上、":
        (found,) = writer(NIGHT, stop_sequence=stop, **options)
        row = writer.model.generate(ids, stop_strings=[stop], tokenizer=writer.tokenizer, **search)[0]
        wanted = writer.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)
        assert found["generated_text"] == wanted
        ended += stop in wanted
    assert ended > 0


def test_stop_strings_and_dicts_of_generate(writer: Pipeline) -> None:
    options = {"do_sample": False, "max_new_tokens": 12, "return_full_text": False}
    whole = writer(NIGHT, **options)[0]["generated_text"]
    assert writer(NIGHT, return_dict_in_generate=True, **options) == [{"generated_text": whole}]
    (found,) = writer(NIGHT, stop_strings=whole[3], **options)
    assert whole.startswith(found["generated_text"])
    assert whole[3] in found["generated_text"]
    assert len(found["generated_text"]) < len(whole)
