"""`refimpl chat` from a pipe: turns, commands, the cache, the context, and errors."""

from __future__ import annotations

import argparse
import json
import subprocess
from itertools import pairwise

import pytest

from refimpl import GPTNeoXJapaneseForCausalLM
from refimpl.cli import chat as chat_module
from refimpl.cli.chat import Chat
from refimpl.cli.chat_formats import BY_NAME
from refimpl.cli.interrupt import Interrupt
from refimpl.generation.config import GenerationConfig
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer
from tests.cli.conftest import CONTEXT, write_model
from tests.cli.test_main import error_of

SAMPLE = ("--temperature", "1", "--seed", "5", "-n", "12")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that never comes to an end."""
    return write_model(tmp_path_factory.mktemp("chat") / "endless", eos_token_id=None)


@pytest.fixture
def turns(inside, endless):
    """What is replied to some lines: the JSON of each turn, and standard error."""

    def call(*lines: str, options: tuple[str, ...] = SAMPLE, model=endless) -> tuple[list[dict], str]:
        stdin = "".join(line + "\n" for line in lines).encode()
        result = inside("chat", "-m", model, "--json", *options, stdin=stdin)
        assert result.returncode == 0, result.stderr.decode()
        return [json.loads(line) for line in result.stdout.decode().splitlines()], result.stderr.decode()

    return call


def ids_of(values: list[dict]) -> list[list[int]]:
    return [value["ids"] for value in values]


def test_a_reply_for_each_line(inside, endless):
    result = inside("chat", "-m", endless, *SAMPLE, "--format", "redpajama", stdin="吾輩\n\n猫\n".encode())
    assert result.returncode == 0
    assert result.stderr == b""
    assert result.stdout.endswith(b"\n")
    assert b"<human>" not in result.stdout


def test_the_json_of_a_turn(turns):
    (value,), error = turns("吾輩は", options=(*SAMPLE, "--format", "line"))
    assert list(value) == [
        "user", "reply", "ids", "logprobs", "seed", "prompt_tokens", "reused", "forgotten_turns",
        "prompt_tokens_per_second", "tokens_per_second", "finish_reason",
    ]  # fmt: skip
    assert (value["user"], value["seed"], value["finish_reason"], value["reused"]) == (
        "吾輩は",
        5,
        "length",
        0,
    )
    assert len(value["ids"]) == len(value["logprobs"]) == 12
    assert all(logprob < 0 for logprob in value["logprobs"])
    assert error == ""


def test_the_text_is_that_of_the_json(inside, turns, endless):
    (value,), _ = turns("吾輩は", options=(*SAMPLE, "--format", "line"))
    plain = inside("chat", "-m", endless, *SAMPLE, "--format", "line", stdin="吾輩は\n".encode())
    assert plain.stdout.decode() == value["reply"] + "\n"


def test_same_seed_same_conversation(turns):
    form = ("--format", "line")
    lines = ("吾輩は", "名前は", "猫")
    first, again = turns(*lines, options=(*SAMPLE, *form))[0], turns(*lines, options=(*SAMPLE, *form))[0]
    other = turns(*lines, options=(*SAMPLE[:3], "6", *SAMPLE[4:], *form))[0]
    assert ids_of(first) == ids_of(again) != ids_of(other)
    assert first[0]["ids"] != first[1]["ids"] != first[2]["ids"]


def test_undo_and_regen(turns):
    form = (*SAMPLE, "--format", "line")
    plain, _ = turns("吾輩は", "名前は", options=form)
    undone, error = turns("吾輩は", "猫", "/undo", "名前は", options=form)
    assert ids_of(undone)[2] == ids_of(plain)[1]
    assert "[taken back: 猫]" in error
    again, _ = turns("吾輩は", "/regen", "/undo", "/seed 5", "吾輩は", options=form)
    assert again[1]["user"] == "吾輩は"
    assert (again[0]["seed"], again[1]["seed"], again[2]["seed"]) == (5, 6, 5)
    assert again[0]["ids"] != again[1]["ids"]
    assert again[0]["ids"] == again[2]["ids"]
    assert again[0]["prompt_tokens"] == again[1]["prompt_tokens"]


def test_reset(turns):
    values, error = turns("吾輩は", "/reset", "吾輩は", options=(*SAMPLE, "--format", "line"))
    assert values[0]["ids"] == values[1]["ids"]
    assert "[a new conversation]" in error


def test_system(turns, inside, endless):
    form = (*SAMPLE, "--format", "dolly")
    changed, error = turns("a", "/undo", "/system b", "a", "/system", options=form)
    assert error.count("[system: b]\n") == 2
    given, _ = turns("a", options=(*form, "--system", "b"))
    assert changed[1]["ids"] == given[0]["ids"]
    assert changed[1]["prompt_tokens"] == given[0]["prompt_tokens"] < changed[0]["prompt_tokens"]
    refused = inside("chat", "-m", endless, "--format", "line", stdin=b"/system b\n")
    assert "the format line has no place for a system text" in error_of(refused, 2)
    refused = inside("chat", "-m", endless, "--format", "line", "--system", "b")
    assert "the format line has no place for a system text" in error_of(refused, 2)


def test_set(turns):
    form = ("--format", "line", "-n", "4")
    values, error = turns(
        "a", "/set max-new-tokens 6", "a", "/set temp 0.5", "/set temp", "/set", options=form
    )
    assert [len(value["ids"]) for value in values] == [4, 6]
    assert error.startswith("[max_new_tokens 6]\n[temperature 0.5]\n[temperature 0.5]\n")
    assert "\ndo_sample                true\n" in error


def test_save_and_load(turns, tmp_path):
    form = (*SAMPLE, "--format", "line")
    path = tmp_path / "talk.json"
    whole, error = turns("吾輩は", "猫", f"/save {path}", "名前は", options=form)
    assert f"[2 turns saved in {path}]" in error
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert [turn["user"] for turn in saved["turns"]] == ["吾輩は", "猫"]
    assert saved["turns"][0]["reply"] == whole[0]["reply"]
    loaded, error = turns(f"/load {path}", "名前は", options=form)
    assert f"[2 turns loaded from {path}]" in error
    assert loaded[0]["ids"] == whole[2]["ids"]
    assert loaded[0]["reused"] == 0
    assert turns("名前は", options=(*form, "--load", str(path)))[0][0]["ids"] == whole[2]["ids"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "refimpl chat 1"}', '{"format": "refimpl chat 1", "turns": [{}]}']
)
def test_a_file_that_is_no_conversation(inside, endless, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    result = inside("chat", "-m", endless, "--load", tmp_path / "x.json")
    assert "conversation" in error_of(result, 2)


def test_help_lists_every_command(turns):
    from refimpl.cli.chat_commands import COMMANDS

    values, error = turns("/help")
    assert values == []
    assert all(f"/{name} " in error for name in (*COMMANDS, "exit"))


def test_exit_ends(turns):
    values, _ = turns("a", "/exit", "a", options=(*SAMPLE, "--format", "line"))
    assert len(values) == 1


def test_a_text_that_begins_with_a_slash(turns):
    (value,), _ = turns("//a", options=(*SAMPLE, "--format", "line"))
    assert value["user"] == "/a"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/foo", "unknown command; found '/foo'"),
        ("/rest", "Did you mean /reset?"),
        ("/regen", "nothing was said yet"),
        ("/undo", "nothing was said yet"),
        ("/save", "the name of a file is missing"),
        ("/seed x", "a seed is a whole number; found 'x'"),
        ("/seed -1", "not a possible seed"),
        ("/set temperatur 1", "Did you mean temperature"),
        ("/set temperatur", "Did you mean temperature"),
        ("/set temperature -1", "temperature: not a possible value"),
        ("/set num_beams 2", "this cannot be changed in a conversation"),
    ],
)
def test_wrong_commands(inside, endless, line, expected):
    assert expected in error_of(inside("chat", "-m", endless, stdin=line.encode() + b"\n"), 2)


def test_a_broken_line_names_its_byte(inside, endless):
    result = inside("chat", "-m", endless, "--format", "line", stdin=b"/seed 1\na\xff\n")
    assert result.returncode == 2
    assert b"standard input: not UTF-8 at byte 9" in result.stderr


def test_stop_strings_of_the_call_end_a_reply_too(turns):
    form = (*SAMPLE, "--format", "line")
    (value,), _ = turns("吾輩は", options=form)
    stop = value["reply"][3]
    (cut,), _ = turns("吾輩は", options=(*form, "--stop", stop))
    assert cut["finish_reason"] == "stop"
    assert cut["reply"] == value["reply"].partition(stop)[0].strip(" \n")


def test_the_pipe_may_be_closed(command, environment, endless):
    with subprocess.Popen(
        [*command, "chat", "-m", endless, "--format", "line", "-n", "400", "--temperature", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("吾輩は\n".encode() * 20)
        assert process.stdout.read(10)
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


# ---- the cache


def make_chat(folder, monkeypatch, **changes) -> tuple[Chat, list[int]]:
    """A chat, and the number of tokens of each call of its model."""
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend="numpy")
    fed: list[int] = []
    original = type(model).__call__

    def counting(model, *args, **inputs):
        fed.append(inputs["input_ids"].shape[1])
        return original(model, *args, **inputs)

    monkeypatch.setattr(type(model), "__call__", counting)
    args = argparse.Namespace(
        **{
            "stop": [], "ignore_eos": False, "negative_prompt": None, "system": None, "verbose": False,
            "json": True, "context_overflow": "slide", "model": None, **changes,
        }
    )  # fmt: skip
    settings = GenerationConfig(max_new_tokens=8, do_sample=True).completed(model.generation_config)
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder)
    return Chat(model, tokenizer, BY_NAME["line"], settings, 3, CONTEXT, args), fed


def test_twenty_turns_read_each_token_once(tmp_path, monkeypatch, capsys):
    folder = write_model(tmp_path / "model", eos_token_id=None, max_position_embeddings=4096)
    chat, fed = make_chat(folder, monkeypatch)
    chat._context = 4096
    for number in range(20):
        with Interrupt() as interrupt:
            chat.reply(f"吾輩は猫{number}", interrupt)
    values = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 20
    whole = values[-1]["prompt_tokens"] + len(values[-1]["ids"])
    # The last token of all is never read; the one that ended a reply is read with the next turn.
    assert sum(fed) == whole - 1
    for before, value in pairwise(values):
        assert value["reused"] == before["prompt_tokens"] + len(before["ids"]) - 1
    assert max(value["prompt_tokens"] - value["reused"] for value in values) < 60 < whole / 10


def test_old_turns_are_forgotten_where_the_context_ends(tmp_path, monkeypatch, capsys):
    folder = write_model(tmp_path / "model", eos_token_id=None)
    chat, _ = make_chat(folder, monkeypatch)
    chat._context = 200
    for number in range(12):
        with Interrupt() as interrupt:
            chat.reply(f"猫{number}", interrupt)
    shown = capsys.readouterr()
    values = [json.loads(line) for line in shown.out.splitlines()]
    assert all(value["prompt_tokens"] + len(value["ids"]) <= 200 for value in values)
    forgotten = [value["forgotten_turns"] for value in values]
    assert 0 < sum(map(bool, forgotten)) < 6  # not in each turn
    assert f"[forgot the {max(forgotten)} oldest turns: the context has 200 tokens]" in shown.err
    assert len(chat.conversation.turns) == 12


def test_the_end_of_the_context_as_an_error_or_an_end(inside, endless):
    call = ("chat", "-m", endless, "--format", "line", "--json", "--ctx-size", "100", "-n", "30")
    lines = "猫\n猫\n猫\n".encode()
    refused = inside(*call, "--context-overflow", "error", stdin=lines)
    assert refused.returncode == 2
    assert refused.stdout.count(b"\n") == 1
    assert "+ 30 tokens; allowed: 100 together" in refused.stderr.decode()
    ended = inside(*call, "--context-overflow", "stop", stdin=lines)
    second = json.loads(ended.stdout.splitlines()[1])
    assert second["prompt_tokens"] + len(second["ids"]) == 100
    assert "[the reply ends here: the context has 100 tokens]" in ended.stderr.decode()
    assert ended.returncode == 2
    assert "/reset begins anew" in ended.stderr.decode()


def test_an_error_in_the_middle_keeps_the_reply(tmp_path, monkeypatch, capsys):
    folder = write_model(tmp_path / "model", eos_token_id=None)
    chat, fed = make_chat(folder, monkeypatch)
    original = type(chat._writer.model).__call__

    def breaking(model, *args, **inputs):
        if len(fed) == 4:
            raise MemoryError
        return original(model, *args, **inputs)

    monkeypatch.setattr(type(chat._writer.model), "__call__", breaking)
    with Interrupt() as interrupt, pytest.raises(MemoryError):
        chat.reply("猫", interrupt)
    value = json.loads(capsys.readouterr().out)
    assert value["finish_reason"] == "error"
    assert len(value["ids"]) == 4
    assert len(chat.conversation.turns) == 1


def test_a_regen_that_fails_loses_nothing(tmp_path, monkeypatch, capsys):
    folder = write_model(tmp_path / "model", eos_token_id=None)
    chat, _ = make_chat(folder, monkeypatch)
    with Interrupt() as interrupt:
        chat.reply("猫", interrupt)
    before = list(chat.conversation.turns)
    chat._context = 10
    with Interrupt() as interrupt, pytest.raises(chat_module.RefimplError):
        chat.again(interrupt)
    assert chat.conversation.turns == before
