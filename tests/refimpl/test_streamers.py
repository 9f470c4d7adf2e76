"""Text appears as it is generated, character by character."""

from __future__ import annotations

import io

import numpy as np
import pytest

from refimpl import AutoTokenizer, TextStreamer
from refimpl.errors import InputError
from tests.tiny import tiny_model


class Pieces(io.StringIO):
    """A file that remembers what each write added."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return super().write(text)


@pytest.fixture(scope="module")
def tokenizer():
    from refimpl import embedded_model_path

    return AutoTokenizer.from_pretrained(embedded_model_path())


def stream(tokenizer, prompt, tokens, **options):
    file = Pieces()
    streamer = TextStreamer(tokenizer, file=file, **options)
    streamer.put(np.array([prompt]))
    for token in tokens:
        streamer.put(np.array([token]))
    streamer.end()
    return file.pieces


def test_never_half_a_character(tokenizer):
    ids = tokenizer.encode("猫𠮟る🍣。")
    pieces = stream(tokenizer, [], ids)
    assert "".join(pieces) == "猫𠮟る🍵。\n"  # the emoji of its class
    assert not any("\ufffd" in piece for piece in pieces)
    assert "𠮟" in pieces


def test_an_unfinished_character_shows_at_the_end_only(tokenizer):
    ids = tokenizer.encode("𠮟")
    assert stream(tokenizer, [], ids[:2]) == ["\ufffd\n"]


def test_the_prompt_and_special_tokens(tokenizer):
    prompt, end = tokenizer.encode("吾輩"), [tokenizer.eos_token_id]
    assert "".join(stream(tokenizer, prompt, end)) == "吾輩<|endoftext|>\n"
    assert "".join(stream(tokenizer, prompt, end, skip_prompt=True, skip_special_tokens=True)) == "\n"


def test_standard_output_and_use_twice(tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    model = tiny_model(vocab_size=len(tokenizer))
    for _ in range(2):
        out = model.generate([[5, 6]], max_new_tokens=4, eos_token_id=[], streamer=streamer)
        expected = tokenizer.token_bytes(0)[:0].join(tokenizer.token_bytes(int(i)) for i in out[0, 2:])
        assert capsys.readouterr().out == expected.decode("utf-8", "replace") + "\n"


def test_one_text_only(tokenizer):
    with pytest.raises(InputError, match="batch of 2"):
        TextStreamer(tokenizer).put(np.zeros((2, 3), int))
