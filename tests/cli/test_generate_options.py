"""The options of `refimpl generate`: each reaches the text, several prompts and texts, stops, files, errors."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest

from refimpl import GPTNeoXJapaneseForCausalLM
from refimpl.cli.stop_text import StopText
from refimpl.generation.config import CHECKS
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer
from tests.cli.conftest import LINES, write_model
from tests.cli.test_generate import PROMPT, PROMPT_TOKENS, as_json
from tests.cli.test_main import error_of

EOS = LINES.index("<|endoftext|>")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that never comes to an end."""
    return write_model(tmp_path_factory.mktemp("cli") / "endless", eos_token_id=None)


def lines(result: subprocess.CompletedProcess[bytes]) -> list[dict]:
    assert result.returncode == 0, result.stderr.decode()
    return [json.loads(line) for line in result.stdout.decode().splitlines()]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--min-p", "0.1"], {"min_p": 0.1}),
        (["--top-h", "0.5"], {"top_h": 0.5}),
        (["--typical-p", "0.9"], {"typical_p": 0.9}),
        (["--typical", "0.9"], {"typical_p": 0.9}),
        (["--epsilon-cutoff", "0.001"], {"epsilon_cutoff": 0.001}),
        (["--eta-cutoff", "0.001"], {"eta_cutoff": 0.001}),
        (["--do-sample", "--renormalize-logits"], {"do_sample": True, "renormalize_logits": True}),
        (["--repeat-penalty", "1.3"], {"repetition_penalty": 1.3}),
        (["--encoder-repetition-penalty", "1.3"], {"encoder_repetition_penalty": 1.3}),
        (["--no-repeat-ngram-size", "2"], {"no_repeat_ngram_size": 2}),
        (["--encoder-no-repeat-ngram-size", "2"], {"encoder_no_repeat_ngram_size": 2}),
        (["--bad-words-ids", "[[3, 4], [5]]"], {"bad_words_ids": [[3, 4], [5]]}),
        (["--sequence-bias", "[[[3], 5.5]]"], {"sequence_bias": [[[3], 5.5]]}),
        (["--suppress-tokens", "3,4"], {"suppress_tokens": [3, 4]}),
        (["--begin-suppress-tokens", "3"], {"begin_suppress_tokens": [3]}),
        (["--forced-eos-token-id", "7"], {"forced_eos_token_id": [7]}),
        (["--exponential-decay-length-penalty", "[2, 1.5]"], {"exponential_decay_length_penalty": [2, 1.5]}),
        (["--remove-invalid-values"], {"remove_invalid_values": True}),
        (["--guidance-scale", "1.5", "--negative-prompt", "は"], {"guidance_scale": 1.5}),
        (["--eos-token-id", "3,4"], {"eos_token_id": [3, 4]}),
        (["--ignore-eos"], {"eos_token_id": [], "suppress_tokens": [EOS]}),
        (["--min-new-tokens", "3"], {"min_new_tokens": 3}),
        (["--min-length", "7"], {"min_length": 7}),
        (["--max-time", "100"], {"max_time": 100.0}),
        (["--num-beams", "2", "--length-penalty", "0.5"], {"num_beams": 2, "length_penalty": 0.5}),
        (["--num-beams", "2", "--early-stopping", "never"], {"num_beams": 2, "early_stopping": "never"}),
        (["--num-beams", "2", "--early-stopping", "true"], {"early_stopping": True}),
        (["--prompt-lookup-num-tokens", "3"], {"prompt_lookup_num_tokens": 3}),
        (["--max-matching-ngram-size", "3"], {"max_matching_ngram_size": 3}),
        (["--no-use-cache"], {"use_cache": False}),
        (["--cache-implementation", "static"], {"cache_implementation": "static"}),
        (["--context-overflow", "slide"], {"context_overflow": "slide"}),
    ],
)
def test_an_option_is_that_of_generate(inside, model, options, settings):
    value = as_json(inside("generate", PROMPT, "-m", model, "-n", "5", "--seed", "1", *options, "--json"))
    assert {name: value["settings"].get(name) for name in settings} == settings
    assert set(settings) <= set(CHECKS)
    called = GPTNeoXJapaneseForCausalLM.from_pretrained(model)
    negative = [[LINES.index("は")]] if "--negative-prompt" in options else None
    known = [token_id for token_id in range(len(LINES), called.config.vocab_size)]
    suppressed = [*known, *settings.get("suppress_tokens", [])]
    further = {name: made for name, made in value["settings"].items() if name in CHECKS and made is not None}
    expected = called.generate(
        [value["prompt_ids"]],
        seed=1,
        negative_prompt_ids=negative,
        **{**further, "suppress_tokens": suppressed},
    )
    ids = expected[0, PROMPT_TOKENS:].tolist()
    assert value["ids"] == ids[: len(value["ids"])]
    assert len(value["ids"]) == len(ids) or set(ids[len(value["ids"]) :]) <= {EOS}


def test_logprobs_are_those_of_the_model(inside, model):
    for options in (["--temperature", "2"], ["--num-beams", "3"]):
        value = as_json(inside("generate", PROMPT, "-m", model, "-n", "6", *options, "--json"))
        called = GPTNeoXJapaneseForCausalLM.from_pretrained(model, dtype="float64")
        logits = called(np.array([[*value["prompt_ids"], *value["ids"]]])).logits[0].astype(float)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = [logits[PROMPT_TOKENS - 1 + step, token] for step, token in enumerate(value["ids"])]
        assert value["logprobs"] == pytest.approx(expected, abs=1e-4)


def test_max_length_counts_the_prompt(inside, endless):
    value = as_json(inside("generate", PROMPT, "-m", endless, "--max-length", "9", "--json"))
    assert len(value["ids"]) == 9 - PROMPT_TOKENS


# ---- several texts


def test_several_texts_of_a_prompt(inside, endless):
    call = ("generate", PROMPT, "-m", endless, "-n", "8", "--temp", "1", "--seed", "4")
    found = lines(inside(*call, "--n", "3", "--json"))
    assert len(found) == 3
    assert len({tuple(value["ids"]) for value in found}) == 3
    assert found == [
        {**value, "tokens_per_second": mine["tokens_per_second"], "prompt_tokens_per_second": speed}
        for value, mine in zip(
            lines(inside(*call, "--num-return-sequences", "3", "--json")), found, strict=True
        )
        for speed in [mine["prompt_tokens_per_second"]]
    ]
    # The first row is what one text alone is.
    assert as_json(inside(*call, "--json"))["ids"] == found[0]["ids"]
    shown = inside(*call, "--n", "3")
    texts = [value["prompt"] + value["text"] + "\n" for value in found]
    assert shown.stdout.decode() == "----\n".join(texts)
    assert shown.stderr.startswith(b"24 tokens, ")


def test_several_beams(inside, endless):
    call = ("generate", PROMPT, "-m", endless, "-n", "6", "--num-beams", "4", "--n", "2")
    found = lines(inside(*call, "--json"))
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(endless)
    known = list(range(len(LINES), model.config.vocab_size))
    expected = model.generate(
        [found[0]["prompt_ids"]], max_new_tokens=6, num_beams=4, num_return_sequences=2, suppress_tokens=known
    )
    assert [value["ids"] for value in found] == expected[:, PROMPT_TOKENS:].tolist()
    assert [value["finish_reason"] for value in found] == ["length", "length"]


@pytest.mark.parametrize("kind", ["lines", "json", "stdin"])
def test_several_prompts(inside, endless, tmp_path, kind):
    prompts = ["吾輩は", "猫 である。", PROMPT]
    as_lines = [json.dumps({"prompt": prompt, "id": 1}) for prompt in prompts] if kind == "json" else prompts
    data = ("\r\n\n".join(as_lines) + "\n").encode()
    (tmp_path / "prompts").write_bytes(data)
    call = ("generate", "-m", endless, "-n", "5", "--temp", "1", "--seed", "4")
    path = "-" if kind == "stdin" else tmp_path / "prompts"
    found = lines(inside(*call, "--prompts", path, "--json", stdin=data))
    assert [value["prompt"] for value in found] == prompts
    for value in found:  # each text is what it is alone
        assert as_json(inside(*call, "--json", "--", value["prompt"]))["ids"] == value["ids"]
    shown = inside(*call, "--prompts", path, stdin=data)
    assert shown.stdout.decode() == "----\n".join(value["prompt"] + value["text"] + "\n" for value in found)
    assert len(re.findall(rb"(?m)^5 tokens, ", shown.stderr)) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "there are no prompts"),
        ("\n \n", "there are no prompts"),
        ('{"prompt": "a"}\nb\n', "prompts: line 2: not a JSON object with a \"prompt\"; found 'b'"),
        ('{"prompt": "a"}\n\n{"prompt": ""}\n', 'line 3: not a JSON object with a "prompt"'),
        ('{"prompt": "a"}\n{"prompt": "\\ud800"}\n', "line 2: not UTF-8"),
    ],
)
def test_prompts_that_are_none(inside, model, tmp_path, content, expected):
    (tmp_path / "prompts").write_text(content)
    assert expected in error_of(inside("generate", "-m", model, "--prompts", tmp_path / "prompts"), 2)


# ---- stops


@pytest.mark.parametrize("texts", [1, 3])
def test_a_stop_ends_before_it(inside, endless, texts):
    call = ("generate", PROMPT, "-m", endless, "-n", "30", "--temp", "1", "--seed", "4", "--n", str(texts))
    whole = lines(inside(*call, "--json"))
    stop = whole[0]["text"][5:7]
    cut = lines(inside(*call, "--json", "--stop", "never there", "--stop", stop))
    for before, after in zip(whole, cut, strict=True):
        assert after["text"] == before["text"].partition(stop)[0]
        assert after["finish_reason"] == ("stop" if stop in before["text"] else "length")
        assert after["ids"] == before["ids"][: len(after["ids"])]
    assert cut[0]["finish_reason"] == "stop"
    shown = inside(*call, "--stop", stop).stdout.decode()
    assert shown == "----\n".join(PROMPT + value["text"] + "\n" for value in cut)


def test_a_stop_of_a_beam_search(inside, endless):
    call = ("generate", PROMPT, "-m", endless, "-n", "12", "--num-beams", "2", "--json")
    whole = as_json(inside(*call))
    stop = whole["text"][3]
    cut = as_json(inside(*call, "--stop", stop))
    assert cut["finish_reason"] == "stop"
    assert stop not in cut["text"]
    assert 0 < len(cut["ids"]) < 12


def test_a_special_token_as_stop(inside, endless):
    """No text shows it; at this temperature all ids are about equally likely."""
    arguments = ("--temperature", "1e6", "--top-k", "0", "--seed", "2", "-n", "500", "--json")
    value = as_json(inside("generate", PROMPT, "-m", endless, *arguments, "--stop", "<|endoftext|>"))
    assert value["finish_reason"] == "eos"
    assert value["ids"].index(EOS) == len(value["ids"]) - 1


def test_what_may_become_a_stop_is_held_back():
    part = StopText(["<human>:", "ab"])
    assert [part.put(piece) for piece in ("x<", "hum", "or", "<h", "uman>:a")] == ["x", "", "<humor", "", ""]
    assert (part.text, part.found) == ("x<humor", "<human>:")
    assert (part.put("more"), part.finish()) == ("", "")
    part = StopText(["ab"])
    assert [part.put("xa"), part.finish(), part.text, part.found] == ["x", "a", "xa", None]
    part = StopText(["cd", "bcd"])
    assert [part.put("ab"), part.put("c"), part.put("d"), part.text] == ["a", "", "", "a"]
    part = StopText([])
    assert [part.put("a"), part.put("b"), part.finish(), part.text] == ["a", "b", "", "ab"]


# ---- streams and files


def test_without_a_stream_the_text_is_the_same(inside, endless):
    call = ("generate", PROMPT, "-m", endless, "-n", "9", "--temp", "1", "--seed", "4")
    assert inside(*call, "--no-stream").stdout == inside(*call, "--stream").stdout
    alone = inside(*call, "--no-display-prompt").stdout
    assert PROMPT.encode() + alone == inside(*call).stdout


def test_a_cache_in_a_file(inside, endless, tmp_path):
    path = tmp_path / "cache.safetensors"
    call = ("generate", "-m", endless, "--temp", "1", "--seed", "4", "--prompt-cache", path)
    first = inside(*call, "-n", "9", PROMPT)
    assert b"; prompt: 5 tokens, " in first.stderr
    again = inside(*call, "-n", "9", PROMPT)
    assert again.stdout == first.stdout
    assert b"; prompt: 1 tokens and 4 reused, " in again.stderr
    longer = as_json(inside(*call[:-2], "-n", "30", "--json", PROMPT))
    start = GPTNeoXJapaneseTokenizer.from_pretrained(endless).decode(longer["prompt_ids"] + longer["ids"][:2])
    assert inside(*call, "-n", "3", start).returncode == 0
    assert path.is_file()


def test_a_cache_of_another_model(inside, endless, model, tmp_path):
    path = tmp_path / "cache"
    assert inside("generate", PROMPT, "-m", endless, "-n", "2", "--prompt-cache", path).returncode == 0
    wrong = inside("generate", PROMPT, "-m", model, "-n", "2", "--prompt-cache", path)
    assert "the cache was filled by another model" in error_of(wrong, 2)
    path.write_bytes(b"no cache")
    assert inside("generate", PROMPT, "-m", model, "-n", "2", "--prompt-cache", path).returncode == 1


def test_profile(inside, endless):
    shown = inside("generate", PROMPT, "-m", endless, "-n", "9", "--profile", "--quiet")
    names = [re.split(r" {2,}", line)[0] for line in shown.stderr.decode().splitlines()]
    assert names[:3] == ["load the model", "read the prompt: 5 tokens", "model, further tokens: 8 calls"]
    assert names[3:6] == ["choose tokens", "ids to text", "write the text"]
    assert re.fullmatch(r"outside the model: [0-9.]+ % of the time of a token", names[6])
    shares = re.findall(r"([0-9.]+) %", shown.stderr.decode())[:6]
    assert sum(map(float, shares)) == pytest.approx(100, abs=1)


# ---- the end of the context


def test_ways_to_go_on_at_the_end_of_the_context(inside, endless):
    call = ("generate", PROMPT, "-m", endless, "--json", "--ctx-size", "20")
    assert len(as_json(inside(*call, "-n", "50", "--context-overflow", "stop"))["ids"]) == 20 - PROMPT_TOKENS
    assert len(as_json(inside(*call, "-n", "50", "--allow-longer"))["ids"]) == 50
    assert "5 + 50 tokens; allowed: 20 together" in error_of(inside(*call, "-n", "50"), 2)
    assert "21 + 5 tokens" in error_of(
        inside("generate", "猫" * 21, "-m", endless, "-c", "20", "-n", "5", "--context-overflow", "stop"), 2
    )


def test_a_text_that_slides_over_the_context(inside, tmp_path):
    small = write_model(tmp_path / "small", eos_token_id=None, max_position_embeddings=16)
    call = ("generate", PROMPT, "-m", small, "-n", "40", "--context-overflow", "slide", "--json")
    result = inside(*call)
    assert len(as_json(result)["ids"]) == 40
    assert b"warning" not in result.stderr


# ---- errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--n", "2"], "--n 2 texts: there is one likeliest text"),
        (
            ["--n", "3", "--num-beams", "2"],
            "there are only as many texts as beams; found --n 3 --num-beams 2",
        ),
        (["--n", "0"], "num_return_sequences: not a possible value"),
        (["--num-beams", "2", "--prompt-cache", "x"], "--prompt-cache follows one text with a cache"),
        (["--no-use-cache", "--prompt-cache", "x"], "found --prompt-cache with --no-use-cache"),
        (
            ["--num-beams", "2", "--prompt-lookup-num-tokens", "2"],
            "--prompt-lookup-num-tokens follows one text with a cache",
        ),
        (["--do-sample", "--temperature", "0"], "--do-sample draws tokens, and --temperature 0"),
        (["--no-do-sample", "--top-p", "0.5"], "--no-do-sample takes the likeliest token, and --top-p"),
        (["--ignore-eos", "--eos-token-id", "3"], "--ignore-eos leaves --eos-token-id without a meaning"),
        (["--eos-token-id", "100000"], "eos_token_id: outside the vocabulary; found 100000"),
        (["--negative-prompt", "a"], "a negative prompt needs a --guidance-scale"),
        (
            ["--allow-longer", "--context-overflow", "stop"],
            "--allow-longer contradicts --context-overflow stop",
        ),
        (["--context-overflow", "slide", "-c", "9"], "leave out --ctx-size"),
        (["--ctx-size", "1"], "--ctx-size: not a possible length"),
        (["--stop", ""], "--stop: an empty text ends nothing"),
        (["--min-new-tokens", "9", "-n", "5"], "the shortest text is longer than the longest"),
        (["--suppress-tokens", "a"], "argument --suppress-tokens: not ids with commas between them: 'a'"),
        (["--bad-words-ids", "[[3"], "argument --bad-words-ids: not JSON"),
        (["--bad-words-ids", "3"], "bad_words_ids: not a possible value"),
        (["--early-stopping", "soon"], "early_stopping: not a possible value"),
        (["--min-p", "nan"], "min_p: not a possible value"),
        (["--num-beam-groups", "2"], "unknown option --num-beam-groups"),
        (["--prompts", "x"], "--prompts has all the prompts"),
        (["--threads", "0"], "threads"),
    ],
)
def test_wrong_options(inside, model, options, expected):
    assert expected in error_of(inside("generate", PROMPT, "-m", model, *options), 2)
