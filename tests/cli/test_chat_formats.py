"""The prompt formats of `refimpl chat`, and the ids that a conversation has in them."""

from __future__ import annotations

import pytest

from refimpl.cli.chat_formats import BY_NAME, PLAIN, format_of
from refimpl.cli.conversation import Conversation, Turn
from refimpl.errors import ContextOverflowError, InputError
from refimpl.tokenizer.streaming import StreamDecoder
from tests.tokenizer.neox_toy import toy

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

#: Two turns as the model card or the training program of each family writes them.
TEXTS = {
    "rinna": "ユーザー: 猫は？<NL>白いの。<NL>システム: はい。<NL>ユーザー: 犬は？<NL>システム: ",
    "rinna-bilingual": "ユーザー: 猫は？\n白いの。\nシステム: はい。\nユーザー: 犬は？\nシステム: ",
    "line": "ユーザー: 猫は？\n白いの。\nシステム: はい。\nユーザー: 犬は？\nシステム: ",
    "dolly": f"{INTRO}\n\n### Instruction:\n猫は？\n白いの。\n\n### Response:\nはい。\n\n### End\n\n"
    "### Instruction:\n犬は？\n\n### Response:\n",
    "oasst": "<|prompter|>猫は？\n白いの。<|endoftext|><|assistant|>はい。<|endoftext|>"
    "<|prompter|>犬は？<|endoftext|><|assistant|>",
    "redpajama": "<human>: 猫は？\n白いの。\n<bot>:はい。\n<human>: 犬は？\n<bot>:",
    "plain": "猫は？\n白いの。\nはい。\n犬は？\n",
}


def tokenizer(*special: str):
    """Every byte, and special tokens."""
    made = toy()
    made.add_tokens(list(special), special_tokens=True)
    return made


def text_of(tokenizer, ids: list[int]) -> str:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=False)
    return "".join(map(decoder.put, ids)) + decoder.finish()


def test_every_format_has_its_text_here():
    assert set(TEXTS) == set(BY_NAME)


@pytest.mark.parametrize("name", TEXTS)
def test_two_turns_are_written_as_the_model_knows_them(name):
    made = tokenizer("<|prompter|>", "<|assistant|>", "<|system|>")
    conversation = Conversation(BY_NAME[name], made, [0])
    conversation.add("猫は？\n白いの。", made.encode("はい。"), "はい。", "length")
    ids = conversation.prompt_ids("犬は？")
    assert text_of(made, ids) == TEXTS[name]
    assert ids[-len(made.encode("犬は？")) :] != []


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("dolly", "SAY\n\n### Instruction:\n"),
        ("oasst", "<|system|>SAY<|endoftext|><|prompter|>"),
        ("plain", "SAY\n"),
    ],
)
def test_a_system_text_stands_before_everything(name, opening):
    made = tokenizer("<|prompter|>", "<|assistant|>", "<|system|>")
    conversation = Conversation(BY_NAME[name], made, [0], "SAY")
    assert text_of(made, conversation.prompt_ids("a")).startswith(opening + "a")


def test_special_tokens_of_a_format_are_single_ids():
    made = tokenizer("<|prompter|>", "<|assistant|>")
    prompter, assistant = made.convert_tokens_to_ids(["<|prompter|>", "<|assistant|>"])
    ids = Conversation(BY_NAME["oasst"], made, [0]).prompt_ids("a")
    assert ids == [prompter, *made.encode("a"), 0, assistant]


def test_rinna_with_a_tokenizer_of_its_kind(tmp_path):
    pytest.importorskip("sentencepiece")
    from refimpl.tokenizer import T5Tokenizer
    from tests.tokenizer.unigram_toy import train

    made = T5Tokenizer.from_pretrained(train(tmp_path, "bytes"))
    line_break, end = made.convert_tokens_to_ids(["<NL>", "</s>"])
    conversation = Conversation(BY_NAME["rinna"], made, [end])
    first = conversation.prompt_ids("一行\n二行")
    assert first.count(line_break) == 2
    assert end not in first
    assert text_of(made, first) == "ユーザー: 一行<NL>二行<NL>システム: "
    reply = made.encode("はい<NL>いいえ", add_special_tokens=False)
    turn = conversation.add("一行\n二行", [*reply, end], "はい<NL>いいえ", "eos")
    assert turn.reply == "はい\nいいえ"
    # The end token is no part of this form.
    second = conversation.prompt_ids("三")
    assert second[: len(first) + len(reply)] == [*first, *reply]
    assert text_of(made, second[len(first) :]) == "はい<NL>いいえ<NL>ユーザー: 三<NL>システム: "


# ---- a conversation only grows


def test_what_was_generated_is_not_tokenized_again():
    """The reply comes as single bytes, which a tokenizer would merge."""
    made = tokenizer()
    single = [made.convert_tokens_to_ids(letter) for letter in "Hello"]
    assert made.encode("Hello") != single
    conversation = Conversation(BY_NAME["redpajama"], made, [0])
    first = conversation.prompt_ids("a")
    conversation.add("a", single, "Hello", "length")
    assert conversation.prompt_ids("b")[: len(first) + 5] == [*first, *single]


def test_an_end_token_that_the_form_has_is_not_doubled():
    made = tokenizer("<|prompter|>", "<|assistant|>")
    conversation = Conversation(BY_NAME["oasst"], made, [0])
    first = conversation.prompt_ids("a")
    reply = [*made.encode("b"), 0]
    conversation.add("a", reply, "b", "eos")
    assert conversation.turns[0].ids == reply
    assert text_of(made, conversation.prompt_ids("c")[len(first) :]).startswith("b<|endoftext|><|prompter|>c")


def test_what_the_model_wrote_of_the_end_of_a_turn_is_not_doubled():
    made = tokenizer("### End")
    end = made.convert_tokens_to_ids("### End")
    conversation = Conversation(BY_NAME["dolly"], made, [0, end])
    reply = [*made.encode("b\n\n"), end]
    turn = conversation.add("a", reply, "b\n\n", "eos")
    assert (turn.reply, turn.ids) == ("b", reply)
    assert text_of(made, conversation.prompt_ids("c")).count("b\n\n### End\n\n### Instruction:\nc") == 1


@pytest.mark.parametrize("stop", ["\n<human>:", "<human>:"])
def test_a_stop_string_is_cut_off_the_ids(stop):
    made = tokenizer()
    conversation = Conversation(BY_NAME["redpajama"], made, [0])
    turn = conversation.add("a", made.encode(" the" + stop), " the", "stop")
    assert turn.ids == made.encode(" the")
    assert "the\n<human>: c\n<bot>:" in text_of(made, conversation.prompt_ids("c"))


def test_a_stop_string_that_begins_inside_a_token():
    made = tokenizer()
    conversation = Conversation(BY_NAME["plain"], made, [0])
    whole = made.convert_tokens_to_ids("Hello")
    turn = conversation.add("a", [whole], "He", "stop")
    assert text_of(made, turn.ids) == "He"


def test_half_a_character_is_not_kept():
    made = tokenizer()
    conversation = Conversation(PLAIN, made, [0])
    cat = made.encode("猫")
    assert len(cat) > 1
    turn = conversation.add("a", [*made.encode("b"), *cat[:-1]], "b\ufffd", "interrupted")
    assert (turn.reply, turn.ids) == ("b", made.encode("b"))
    assert conversation.add("a", cat, "猫", "length").ids == cat


def test_the_oldest_turns_are_forgotten_until_half_of_the_context_is_free():
    made = tokenizer()
    conversation = Conversation(PLAIN, made, [0], "system")
    for number in range(6):
        conversation.add(f"user {number}", made.encode("x" * 10), "x" * 10, "length")
    whole = conversation.prompt_ids("now")
    ids, forgotten = conversation.fitting_ids("now", len(whole) + 5, 5, drops=True)
    assert (ids, forgotten) == (whole, 0)
    ids, forgotten = conversation.fitting_ids("now", len(whole) + 4, 5, drops=True)
    assert 0 < forgotten < 6
    assert len(ids) <= (len(whole) + 4) // 2
    assert text_of(made, ids).startswith(f"system\nuser {forgotten}\n")
    assert len(conversation.prompt_ids("now", first=conversation.first - 1)) > (len(whole) + 4) // 2
    assert len(conversation.turns) == 6
    conversation.undo()
    conversation.reset()
    assert conversation.prompt_ids("a") == made.encode("system\na\n")


def test_a_message_that_is_too_long_by_itself():
    made = tokenizer()
    conversation = Conversation(PLAIN, made, [0])
    conversation.add("a", made.encode("b"), "b", "length")
    for drops in (True, False):
        with pytest.raises(ContextOverflowError, match="allowed: fewer than 20"):
            conversation.fitting_ids("x" * 30, 20, 5, drops)
        assert conversation.first == 0


def test_saved_ids_of_another_tokenizer_are_made_anew():
    made = tokenizer()
    conversation = Conversation(PLAIN, made, [0])
    ids = made.encode("He")
    conversation.restore(
        [
            {"user": "a", "ids": ids, "reply": "He", "finish_reason": "eos"},
            {"user": "a", "ids": [70, 71], "reply": "other", "finish_reason": "eos"},
            {"user": "a", "ids": [10**6], "reply": "He", "finish_reason": "eos"},
        ]
    )
    assert [turn.ids for turn in conversation.turns] == [ids, made.encode("other"), ids]
    assert isinstance(conversation.turns[0], Turn)


# ---- which format


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("rinna/japanese-gpt-neox-3.6b-instruction-ppo", "rinna"),
        ("rinna/japanese-gpt-neox-3.6b", "plain"),
        ("rinna/bilingual-gpt-neox-4b-instruction-sft", "rinna-bilingual"),
        ("/models/line-corporation/japanese-large-lm-3.6b-instruction-sft", "line"),
        ("databricks/dolly-v2-3b", "dolly"),
        ("OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5", "oasst"),
        ("togethercomputer/RedPajama-INCITE-Chat-3B-v1", "redpajama"),
        ("togethercomputer/RedPajama-INCITE-Base-3B-v1", "plain"),
        ("EleutherAI/pythia-160m", "plain"),
    ],
)
def test_the_format_of_a_model(model, name):
    assert format_of(None, model).name == name
    assert format_of("dolly", model).name == "dolly"


def test_an_unknown_format():
    with pytest.raises(InputError, match="Did you mean rinna"):
        format_of("rina", "")


def test_help_shows_every_format(inside):
    shown = inside("chat", "--format", "help")
    assert shown.returncode == 0
    text = shown.stdout.decode()
    assert [line.partition(":")[0] for line in text.split("\n") if line and line[0] != " "] == list(BY_NAME)
    assert "    ユーザー: USER<NL>システム: REPLY<NL>ユーザー: USER<NL>システム: \n" in text
