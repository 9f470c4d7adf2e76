"""`refimpl generate`: what it prints where, its settings, its errors, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refimpl import cli
from refimpl.cli.interrupt import Interrupt
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer, StreamDecoder
from tests.cli.conftest import CONTEXT, LINES, write_model
from tests.cli.test_main import error_of

PROMPT = "吾輩は猫である。"
PROMPT_TOKENS = 5  # 吾輩 は 猫 である 。


def as_json(result: subprocess.CompletedProcess[bytes], code: int = 0) -> dict:
    assert result.returncode == code, result.stderr.decode()
    assert result.stdout.count(b"\n") == 1
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never comes to an end, with a context so short that a warning tells when it is at work."""
    return write_model(
        tmp_path_factory.mktemp("cli") / "endless", eos_token_id=None, max_position_embeddings=16
    )


def test_prompt_and_continuation_are_printed(refimpl, model):
    result = refimpl("generate", PROMPT, "-m", model, "-n", "20")
    assert result.returncode == 0
    text = result.stdout.decode()
    assert text.startswith(PROMPT)
    assert text.endswith("\n")
    assert len(text) > len(PROMPT) + 5
    summary = r"20 tokens, [0-9.]+ tokens/s, greedy; prompt: 5 tokens, [0-9.]+ tokens/s\n"
    assert re.fullmatch(summary, result.stderr.decode())


def test_json_says_the_same(refimpl, model):
    arguments = ("generate", PROMPT, "-m", model, "-n", "30", "--temperature", "2", "--seed", "7")
    plain = refimpl(*arguments)
    value = as_json(refimpl(*arguments, "--json"))
    assert list(value) == [
        "prompt", "text", "prompt_ids", "ids", "logprobs", "seed", "settings", "prompt_tokens_per_second",
        "tokens_per_second", "finish_reason",
    ]  # fmt: skip
    assert plain.stdout.decode() == value["prompt"] + value["text"] + "\n"
    assert b" tokens/s, seed 7; prompt: " in plain.stderr
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(model)
    decoder = StreamDecoder(tokenizer)
    assert value["text"] == "".join(map(decoder.put, value["ids"])) + decoder.finish()
    assert value["prompt_ids"] == tokenizer.encode(PROMPT)
    assert (len(value["ids"]), value["seed"], value["finish_reason"]) == (30, 7, "length")
    assert value["tokens_per_second"] > 0
    assert value["settings"] == {
        "model": str(model),
        "backend": "numba",
        "dtype": "float32",
        "weight_dtype": None,
        "matmul_dtype": None,
        "max_new_tokens": 30,
        "do_sample": True,
        "temperature": 2.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "eos_token_id": LINES.index("<|endoftext|>"),
    }


def test_the_printed_seed_repeats_the_text(refimpl, model):
    arguments = ("generate", PROMPT, "-m", model, "--temp", "1.5", "--json")
    first, second = as_json(refimpl(*arguments)), as_json(refimpl(*arguments))
    assert first["seed"] != second["seed"]
    assert first["ids"] != second["ids"]
    again = as_json(refimpl(*arguments, "--seed", str(first["seed"])))
    assert again["ids"] == first["ids"]


def test_other_names_of_options(inside, model):
    usual = [
        "generate",
        PROMPT,
        "--model",
        model,
        "--max-new-tokens",
        "9",
        "--temperature",
        "1",
        "--seed",
        "3",
    ]
    others = ["generate", "-p", PROMPT, "-m", model, "--n-predict", "9", "--temp", "1", "-s", "3"]
    expected = as_json(inside(*usual, "--json"))
    found = as_json(inside(*others, "--json"))
    for value in (expected, found):
        del value["tokens_per_second"], value["prompt_tokens_per_second"]
    assert found == expected
    assert len(expected["ids"]) == 9


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("form", ["stdin", "dash", "file", "file-with-mark"])
def test_ways_to_give_the_prompt(inside, model, tmp_path, ending, form):
    data = PROMPT.encode() + ending
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbf" + data if form == "file-with-mark" else data)
    given = {"stdin": [], "dash": ["-"]}.get(form, ["--file", tmp_path / "prompt.txt"])
    result = inside("generate", *given, "-m", model, "-n", "0", stdin=data)
    assert result.stdout == PROMPT.encode() + b"\n"


def test_only_one_line_end_is_taken_from_a_prompt(inside, model):
    value = as_json(inside("generate", "-m", model, "-n", "0", "--json", stdin="猫\n\n".encode()))
    assert value["prompt"] == "猫\n"


def test_a_prompt_that_looks_like_an_option(inside, model):
    assert inside("generate", "-m", model, "-n", "0", "--", "--猫").stdout.decode() == "--猫\n"


def test_no_new_tokens(inside, model):
    result = inside("generate", PROMPT, "-m", model, "-n", "0")
    assert result.stdout.decode() == PROMPT + "\n"
    assert result.stderr == b"0 tokens, greedy\n"


def test_quiet(refimpl, model):
    result = refimpl("generate", PROMPT, "-m", model, "-n", "3", "--quiet")
    assert (result.returncode, result.stderr) == (0, b"")


def test_settings_come_from_the_model_and_options_win(inside, model_copy):
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_new_tokens": 7}
    (model_copy / "generation_config.json").write_text(json.dumps(settings))
    arguments = ("generate", PROMPT, "-m", model_copy, "--json")
    own = as_json(inside(*arguments))["settings"]
    assert {name: own[name] for name in settings} == settings
    changed = as_json(inside(*arguments, "--temperature", "0", "--top-k", "0", "-n", "3"))
    assert changed["seed"] is None
    expected = {**settings, "do_sample": False, "temperature": 0.0, "top_k": 0, "max_new_tokens": 3}
    assert {name: changed["settings"][name] for name in settings} == expected


def test_the_end_token_ends_the_text_and_is_not_shown(inside, model):
    """At this temperature all ids are about equally likely; this seed comes upon the end token soon."""
    arguments = ("--temperature", "1e6", "--top-k", "0", "--seed", "2", "-n", "500", "--json")
    value = as_json(inside("generate", PROMPT, "-m", model, *arguments))
    assert value["finish_reason"] == "eos"
    assert value["ids"].index(LINES.index("<|endoftext|>")) == len(value["ids"]) - 1
    assert "endoftext" not in value["text"]


def test_an_unfinished_character_at_the_end_is_not_lost(inside, model):
    arguments = ("--temperature", "1e6", "--top-k", "0", "--seed", "4", "-n", "1", "--json")
    value = as_json(inside("generate", PROMPT, "-m", model, *arguments))
    assert value["ids"] == [LINES.index("<|byte229|>")]
    assert value["text"] == "\ufffd"


def test_ids_without_a_token_are_never_drawn(inside, model):
    """The embedding has 5 rows more than there are tokens; at this temperature all ids are about equally likely."""
    arguments = ("--temperature", "1e6", "--top-k", "0", "--seed", "3", "-n", "500", "--json")
    value = as_json(inside("generate", PROMPT, "-m", model, *arguments))
    assert len(value["ids"]) > 100
    assert max(value["ids"]) < len(LINES)


@pytest.mark.parametrize(
    ("options", "dtype"), [(["--dtype", "float64"], "float64"), (["--dtype", "float16"], "float32")]
)
def test_dtypes(inside, model, options, dtype):
    value = as_json(
        inside("generate", PROMPT, "-m", model, "-n", "2", "--backend", "numpy", *options, "--json")
    )
    assert value["settings"]["dtype"] == dtype


# ---- errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature", "nan"], "temperature: not a possible value; found nan"),
        (["--temperature", "-1"], "temperature: not a possible value; found -1.0"),
        (["--temperature", "inf"], "temperature: not a possible value; found inf"),
        (["--top-p", "0"], "top_p: not a possible value"),
        (["--top-p", "1.5"], "top_p: not a possible value"),
        (["--top-k", "-1"], "top_k: not a possible value"),
        (["-n", "-1"], "max_new_tokens: not a possible value"),
        (["--seed", "-1"], "not a possible seed"),
        (["--seed", str(2**64)], "not a possible seed"),
        (["--backend", "abacus"], "unknown backend; found 'abacus'"),
        (["--weight-dtype", "int4"], "argument --weight-dtype: invalid choice: 'int4'"),
        (["--dtype", "float7"], "does not compute in this dtype; found 'float7'"),
        (["--file", "x"], "not both"),
        (["--prompt", "x"], "two prompts"),
    ],
)
def test_wrong_options(inside, model, options, expected):
    assert expected in error_of(inside("generate", PROMPT, "-m", model, *options), 2)


@pytest.mark.parametrize(
    ("arguments", "stdin"), [([""], b""), ([], b""), ([], b"\n"), (["-"], b""), (["--file", os.devnull], b"")]
)
def test_an_empty_prompt(inside, model, arguments, stdin):
    assert "the prompt is empty" in error_of(inside("generate", "-m", model, *arguments, stdin=stdin), 2)


def test_input_that_is_not_utf8_names_the_byte(refimpl, model, tmp_path):
    data = "猫である".encode() + b"\xff..."
    expected = "not UTF-8 at byte 12; found 0xff"
    assert f"standard input: {expected}" in error_of(refimpl("generate", "-m", model, stdin=data), 2)
    (tmp_path / "prompt.txt").write_bytes(data)
    message = error_of(refimpl("generate", "-m", model, "--file", tmp_path / "prompt.txt"), 2)
    assert f"prompt.txt: {expected}" in message


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are bytes on POSIX only")
def test_an_argument_that_is_not_utf8_names_the_byte(refimpl, model):
    argument = "猫".encode() + b"\xe7\x8c"
    assert "the prompt: not UTF-8 at byte 3" in error_of(refimpl("generate", argument, "-m", model), 2)


def test_a_prompt_file_that_is_not_there(inside, model, tmp_path):
    assert "no such file" in error_of(inside("generate", "--file", tmp_path / "none.txt", "-m", model), 1)
    assert "cannot be read (Is a directory)" in error_of(
        inside("generate", "--file", tmp_path, "-m", model), 2
    )


def test_more_tokens_than_the_context(refimpl, model):
    room = CONTEXT - PROMPT_TOKENS
    message = error_of(refimpl("generate", PROMPT, "-m", model, "-n", str(room + 1)), 2)
    assert f"found {PROMPT_TOKENS} + {room + 1} tokens; allowed: {CONTEXT} together" in message
    assert "--allow-longer" in message
    assert refimpl("generate", PROMPT, "-m", model, "-n", str(room)).returncode == 0


def test_a_length_that_nobody_asked_for_is_cut_to_the_context(refimpl, endless):
    value = as_json(refimpl("generate", PROMPT, "-m", endless, "--json"))
    assert len(value["ids"]) == 16 - PROMPT_TOKENS
    assert "16 + 100 tokens" in error_of(refimpl("generate", "猫" * 16, "-m", endless), 2)


def test_longer_on_request_with_one_warning(refimpl, endless):
    result = refimpl("generate", PROMPT, "-m", endless, "-n", "20", "--allow-longer", "--json", "--quiet")
    assert len(as_json(result)["ids"]) == 20
    text = result.stderr.decode()
    assert text.startswith("refimpl: warning: the text is longer than max_position_embeddings = 16")
    assert text.count("\n") == 1
    assert ".py" not in text


# ---- streams


def test_control_characters_reach_a_pipe_but_no_terminal(refimpl, model, command, environment):
    pty = pytest.importorskip("pty")
    arguments = [
        "generate",
        PROMPT,
        "-m",
        str(model),
        "--temp",
        "1e6",
        "--top-k",
        "0",
        "--seed",
        "3",
        "-n",
        "500",
    ]
    piped = refimpl(*arguments).stdout.decode()
    control = {c for c in piped if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160}
    assert "\x1b" in control, "this seed makes no escape character: choose another"

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*command, *arguments], stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode().replace("\r\n", "\n")
    assert not [c for c in text if c in control]
    assert text == "".join(f"\\x{ord(c):02x}" if c in control else c for c in piped)


def test_without_a_prompt_on_a_terminal_nobody_waits(command, environment, model):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    result = subprocess.run(
        [*command, "generate", "-m", str(model)],
        stdin=theirs,
        capture_output=True,
        env=environment,
        timeout=30,
    )
    os.close(ours)
    os.close(theirs)
    assert "there is no prompt" in error_of(result, 2)


def start(command, environment, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """A process that obeys Ctrl-C, even where the tests themselves run in the background."""
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what one read leaves, communicate() is to find
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_at_least(process: subprocess.Popen[bytes], count: int) -> bytes:
    assert process.stdout is not None
    data = b""
    while len(data) < count and (part := process.stdout.read(count)):
        data += part
    return data


ENDLESS = ("-n", "1000000", "--allow-longer", "--temperature", "1")


def test_text_arrives_while_it_is_made_and_a_reader_may_stop(command, environment, endless):
    process = start(command, environment, "generate", PROMPT, "-m", endless, *ENDLESS)
    assert read_at_least(process, 300).startswith(PROMPT.encode())
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0
    assert error.startswith(b"refimpl: warning:")
    assert error.count(b"\n") == 1


posix = pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")


@posix
def test_ctrl_c_keeps_the_text_so_far(command, environment, endless):
    process = start(command, environment, "generate", PROMPT, "-m", endless, *ENDLESS)
    first = read_at_least(process, 300)
    process.send_signal(signal.SIGINT)
    began = time.perf_counter()
    rest, error = process.communicate(timeout=30)
    assert time.perf_counter() - began < 5  # it takes about 0.1 s; the machine may be busy
    assert process.returncode == 130
    text = (first + rest).decode()
    assert text.startswith(PROMPT)
    assert text.endswith("\n")
    warning, summary = error.decode().splitlines()
    assert warning.startswith("refimpl: warning:")
    assert "tokens/s, seed " in summary


@posix
def test_ctrl_c_with_json(command, environment, endless):
    process = start(
        command, environment, "generate", PROMPT, "-m", endless, *ENDLESS, "--json", "--seed", "5"
    )
    assert process.stderr is not None
    assert process.stderr.read(100).startswith(b"refimpl: warning:")  # from now on it is at work
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    value = json.loads(output)
    assert value["finish_reason"] == "interrupted"
    decoder = StreamDecoder(GPTNeoXJapaneseTokenizer.from_pretrained(endless))
    assert value["text"] == "".join(map(decoder.put, value["ids"])) + decoder.finish()
    assert len(value["ids"]) >= 16 - PROMPT_TOKENS


@pytest.mark.skipif(sys.platform != "linux", reason="makes a small pipe as only Linux can")
def test_a_second_ctrl_c_ends_the_process_at_once(command, environment, endless):
    """Nobody reads: the process stays in a write, where the first Ctrl-C waits for the token to be shown."""
    import fcntl
    import termios

    process = start(command, environment, "generate", PROMPT, "-m", endless, *ENDLESS)
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)

    def waiting() -> int:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)

    deadline = time.monotonic() + 30
    before = -1
    while (now := waiting()) < 2048 or now != before:
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == -signal.SIGINT
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()


def test_an_interrupt_waits_for_what_is_held_and_restores_the_handler():
    # A shell that runs the tests in the background has let them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = []
        with Interrupt() as interrupt:
            with pytest.raises(KeyboardInterrupt), interrupt.held():
                done.append(signal.raise_signal(signal.SIGINT))
            assert interrupt.happened
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert done == [None]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
        assert not interrupt.happened
    finally:
        signal.signal(signal.SIGINT, before)


# ---- the model that ships with the package


def embedded_or_skip(folder: Path) -> None:
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the embedded model has no weights here")


def test_the_embedded_model_writes_japanese(embedded_model, refimpl):
    embedded_or_skip(embedded_model)
    result = refimpl("generate", PROMPT, "--seed", "1")
    assert result.returncode == 0
    text = result.stdout.decode().removeprefix(PROMPT)
    assert any("\u3041" <= character <= "\u3096" for character in text), text
    japanese = [c for c in text if "\u3000" <= c <= "\u9fff" or "\uff01" <= c <= "\uff5e" or c in " \n…―"]
    assert len(japanese) > 0.9 * len(text), text


def test_the_embedded_model_repeats_itself(embedded_model, capsys):
    embedded_or_skip(embedded_model)
    texts = []
    for _ in range(2):
        assert cli.main(["generate", PROMPT, "--seed", "1", "-n", "30"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
