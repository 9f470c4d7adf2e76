"""What the attention visualizer shows is what the model does."""

from __future__ import annotations

import io
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from refimpl import (
    AutoTokenizer,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXJapaneseForCausalLM,
    embedded_model_path,
)
from refimpl.attention_visualizer.visualizer import AttentionMaskVisualizer, seen_under
from refimpl.errors import ConfigError, InputError, MissingFileError, ResourceLimitError, TextInputError
from refimpl.utils import attention_visualizer as as_in_transformers
from tests.cli.conftest import write_model
from tests.tiny import tiny_neox
from tests.tokenizer.neox_toy import toy

TEXT = "吾輩は猫である。"  # five tokens
HEADS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("visualizer") / "toy")


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request: pytest.FixtureRequest, folder: Path) -> GPTNeoXJapaneseForCausalLM:
    return GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend="numpy", dtype=request.param)


@pytest.fixture(scope="module")
def visualizer(folder: Path) -> AttentionMaskVisualizer:
    return AttentionMaskVisualizer(folder)


def ids_of(folder: Path, texts: list[str], side: str = "right") -> dict[str, np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(texts, padding=True, padding_side=side, return_tensors="np"))


def attended(model: GPTNeoXJapaneseForCausalLM, **arguments) -> np.ndarray:
    """Where the weights of attention are not 0, in all layers: [layers, batch, heads, q_seq, kv_seq]"""
    return np.stack(model(**arguments, output_attentions=True).attentions) > 0


def causal(q_seq: int, kv_seq: int) -> np.ndarray:
    return np.tril(np.ones((q_seq, kv_seq), bool), kv_seq - q_seq)


# ---- the picture equals the model


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch(model, folder, side):
    texts = [TEXT, "猫", "名前は無い"]
    view = AttentionMaskVisualizer(model, tokenizer=AutoTokenizer.from_pretrained(folder)).view(
        texts, padding_side=side
    )
    assert view.shape == (3, 5, 5)
    assert view.visible.dtype == bool
    assert view.padding.sum(axis=1).tolist() == [0, 4, 1]
    assert (attended(model, **ids_of(folder, texts, side)) == view.visible[None, :, None]).all()
    assert (view.visible[0] == causal(5, 5)).all()


def test_a_cache(model, folder, visualizer):
    ids = ids_of(folder, [TEXT])["input_ids"]
    cache = model(ids[:, :2]).past_key_values
    view = visualizer.view("猫である。", past=2)
    assert view.visible.shape == (1, 3, 5)
    assert view.tokens == [["猫", "である", "。"]]
    assert (attended(model, input_ids=ids[:, 2:], past_key_values=cache) == view.visible).all()


def test_padding_in_a_cache(model, folder, visualizer):
    ids = ids_of(folder, [TEXT])["input_ids"]
    cache = model(ids[:, :2]).past_key_values
    mask = [[0, 1, 1, 1, 0]]
    view = visualizer.view("猫である。", past=2, attention_mask=mask)
    found = attended(model, input_ids=ids[:, 2:], past_key_values=cache, attention_mask=np.array(mask))
    assert (found == view.visible).all()
    assert view.visible[0].astype(int).tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]


@pytest.mark.parametrize("kind", ["bool", "float", "infinite", "lists"])
def test_masks_of_four_dimensions(model, folder, visualizer, kind):
    rng = np.random.default_rng(0)
    own = (rng.random((2, 1, 5, 5)) < 0.5) | np.eye(5, dtype=bool)
    mask = {
        "bool": own,
        "float": np.where(own, -0.5, np.finfo(np.float32).min).astype(np.float32),
        "infinite": np.where(own, 0.0, -np.inf),
        "lists": own.tolist(),
    }[kind]
    texts = [TEXT, "名前は無い。"]
    view = visualizer.view(texts, attention_mask=mask)
    assert (view.visible == own[:, 0]).all()
    found = attended(model, input_ids=ids_of(folder, texts)["input_ids"], attention_mask=mask)
    assert (found == view.visible[None, :, None]).all()


def test_every_head_has_its_mask(model, folder, visualizer):
    own = (np.random.default_rng(1).random((1, HEADS, 5, 5)) < 0.5) | np.eye(5, dtype=bool)
    found = attended(model, input_ids=ids_of(folder, [TEXT])["input_ids"], attention_mask=own)
    for head in range(HEADS):
        view = visualizer.view(TEXT, attention_mask=own, head=head)
        assert (found[:, :, head] == view.visible).all()
    with pytest.raises(InputError, match="the heads have different masks"):
        visualizer.view(TEXT, attention_mask=own)
    same = own[:, :1].repeat(HEADS, axis=1)
    assert (visualizer.view(TEXT, attention_mask=same).visible == own[:, 0]).all()


@pytest.mark.parametrize("low", [-1e9, -65504.0, -10_000.0])
def test_low_numbers_that_others_use(model, folder, visualizer, low):
    mask = np.where(causal(5, 5), 0.0, low)[None, None]
    view = visualizer.view(TEXT, attention_mask=mask)
    assert (view.visible == causal(5, 5)).all()
    ids = ids_of(folder, [TEXT])["input_ids"]
    assert (attended(model, input_ids=ids, attention_mask=mask) == view.visible).all()


def test_numbers_between_are_seen_the_less_the_lower(model, folder, visualizer):
    distance = np.arange(5)[:, None] - np.arange(5)[None, :]
    mask = np.where(distance >= 0, -0.5 * distance, -np.inf)[None, None]
    view = visualizer.view(TEXT, attention_mask=mask)
    assert (view.visible == causal(5, 5)).all()
    places = np.arange(5)
    expected = np.where(distance >= 0, np.exp(-0.5 * np.maximum(distance, 0)), 0)
    assert np.abs(view.strengths(0, places, places) - expected).max() < 1e-6
    assert view.added(0, places, places)[4].tolist() == [-2, -1.5, -1, -0.5, 0]
    ids = ids_of(folder, [TEXT])["input_ids"]
    assert (attended(model, input_ids=ids, attention_mask=mask) == view.visible).all()


@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float32).min, -1e30, False])
def test_a_row_that_sees_nothing_sees_everything_alike(model, folder, visualizer, lowest):
    mask = causal(5, 5)[None, None] if lowest is False else np.where(causal(5, 5), 0.0, lowest)[None, None]
    mask[0, 0, 2] = lowest
    view = visualizer.view(TEXT, attention_mask=mask)
    assert not view.visible[0, 2].any()
    assert view.blind_rows(0).tolist() == [2]
    note = "All of row 2 is hidden: the model then looks at every key alike."
    assert all(note in drawn for drawn in (view.text(), view.svg(), view.html()))
    out = model(ids_of(folder, [TEXT])["input_ids"], attention_mask=mask, output_attentions=True)
    assert np.abs(np.stack(out.attentions)[..., 2, :] - 0.2).max() < 1e-6


def test_a_row_that_is_lowered_alike_is_not_hidden(model, folder, visualizer):
    """The softmax does not notice what is added to all keys, as long as the scores survive it."""
    mask = np.zeros((1, 1, 5, 5))
    mask[0, 0, 2] = [-65504, -65504, -np.inf, -65504, -65504]
    mask[0, 0, 3] = -65504
    view = visualizer.view(TEXT, attention_mask=mask)
    assert view.visible[0, 3].all()
    assert view.visible[0, 2].tolist() == [True, True, False, True, True]
    assert view.blind_note(0) is None
    ids = ids_of(folder, [TEXT])["input_ids"]
    assert (attended(model, input_ids=ids, attention_mask=mask) == view.visible).all()


def test_what_is_seen_depends_on_the_dtype_of_the_model(model, folder):
    mask = np.where(causal(5, 5), 0.0, -200)[None, None]
    view = AttentionMaskVisualizer(model, tokenizer=AutoTokenizer.from_pretrained(folder)).view(
        TEXT, attention_mask=mask
    )
    assert view.visible.all() == (model.dtype == np.float64)
    ids = ids_of(folder, [TEXT])["input_ids"]
    assert (attended(model, input_ids=ids, attention_mask=mask) == view.visible).all()


def test_what_is_seen_depends_on_the_dtype():
    row = [0, -100, -110, -700, -800]
    assert seen_under(np.array(row, np.float32)).tolist() == [True, True, False, False, False]
    assert seen_under(np.array(row, np.float64)).tolist() == [True, True, True, True, False]
    assert seen_under(np.array([200.0, 0.0], np.float32)).tolist() == [True, False]


@pytest.mark.parametrize(
    "model_class", [GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, GPTNeoXForTokenClassification]
)
def test_the_other_family(model_class):
    tokenizer = toy(pad_token="<|padding|>", padding_side="left")
    model = tiny_neox(model_class, vocab_size=len(tokenizer), pad_token_id=1)
    texts = ["Hello the world the world", "猫"]
    view = AttentionMaskVisualizer(model, tokenizer=tokenizer).view(texts)
    assert view.padding.sum() > 0
    inputs = dict(tokenizer(texts, padding=True, return_tensors="np"))
    assert (attended(model, **inputs) == view.visible[None, :, None]).all()


# ---- where models and tokenizers come from


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    """Only the name of the package differs from what transformers' documentation has."""
    folder = write_model(tmp_path / "abeja/gpt-neox-japanese-2.7b")
    (folder / "model.safetensors").unlink()  # a mask needs no weights
    monkeypatch.chdir(tmp_path)

    visualizer = as_in_transformers.AttentionMaskVisualizer("abeja/gpt-neox-japanese-2.7b")
    visualizer("What is shown in this image?")

    shown = capsys.readouterr().out
    assert shown.startswith("Attention mask of gpt-neox-japanese-2.7b (gpt_neox_japanese)\n")
    assert "\n 3 t " in shown
    assert as_in_transformers.AttentionMaskVisualizer is AttentionMaskVisualizer


def test_the_names_of_transformers(visualizer, capsys):
    one = visualizer(input_sentence=TEXT, suffix="of an answer")
    shown = capsys.readouterr().out
    two = visualizer.visualize_attention_mask(TEXT)
    assert capsys.readouterr().out == shown == one.text() == two.text()


def test_a_loaded_model_knows_its_tokenizer_or_is_given_one(folder):
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend="numpy")
    model.name_or_path = ""
    with pytest.raises(InputError, match="does not know where its tokenizer is"):
        AttentionMaskVisualizer(model)
    assert AttentionMaskVisualizer(model, tokenizer=toy()).view("Hello").texts == [["Hello"]]
    model.name_or_path = str(folder)
    view = AttentionMaskVisualizer(model).view(TEXT)
    assert (view.name, view.shape) == ("GPTNeoXJapaneseForCausalLM", (1, 5, 5))


def test_tokens_and_what_they_stand_for(folder):
    view = AttentionMaskVisualizer(folder, tokenizer=toy()).view("Hello the猫")
    assert view.tokens == [["Hello", "Ġthe", "ç", "Į", "«"]]
    assert view.texts == [["Hello", " the", "\\xe7", "\\x8c", "\\xab"]]


def test_the_name_of_a_folder_is_made_printable(tmp_path):
    view = AttentionMaskVisualizer(write_model(tmp_path / "a\x1b[2J\u202eb")).view(TEXT)
    assert view.name == "a\\u001b[2J\\u202eb"


# ---- wrong calls


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"text": ""}, "text: the text has no tokens"),
        ({"text": ["猫", ""]}, "text[1]: the text has no tokens"),
        ({"text": []}, "text: not a text"),
        ({"text": None}, "text: not a text"),
        ({"text": ["猫", 3]}, "text: not a text"),
        ({"text": "猫", "past": -1}, "past: wrong number"),
        ({"text": "猫", "past": 1.0}, "past: wrong number"),
        ({"text": "猫", "past": True}, "past: wrong number"),
        ({"text": "猫", "head": HEADS}, "head: wrong number"),
        ({"text": "猫", "head": "a"}, "head: wrong number"),
        ({"text": "猫", "padding_side": "top"}, "padding_side"),
        ({"text": "猫は", "attention_mask": [[1]]}, "attention_mask: wrong shape"),
        ({"text": "猫は", "past": 1, "attention_mask": [[1, 1]]}, "attention_mask: wrong shape"),
        ({"text": "猫は", "attention_mask": np.ones((1, 2, 2))}, "attention_mask: wrong shape"),
        ({"text": "猫は", "attention_mask": np.ones((1, 2, 2, 2))}, "attention_mask: wrong shape"),
        ({"text": "猫は", "attention_mask": np.ones((1, 1, 2, 2), int)}, "attention_mask: whole numbers"),
        ({"text": "猫", "attention_mask": [["a"]]}, "attention_mask"),
        ({"text": "猫", "attention_mask": [[[[np.nan]]]]}, "attention_mask: NaN or infinity says neither"),
        ({"text": "猫", "attention_mask": [[[[np.inf]]]]}, "attention_mask: NaN or infinity says neither"),
    ],
)
def test_wrong_arguments(visualizer, arguments, where):
    with pytest.raises(InputError) as caught:
        visualizer.view(**arguments)
    assert where in str(caught.value)


def test_text_that_is_not_unicode(visualizer):
    with pytest.raises(TextInputError):
        visualizer("\ud83c")


def test_wrong_models(tmp_path, folder):
    with pytest.raises(MissingFileError):
        AttentionMaskVisualizer(tmp_path / "nothing here")
    with pytest.raises(MissingFileError, match=r"config\.json"):
        AttentionMaskVisualizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="bert"):
        AttentionMaskVisualizer(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(MissingFileError, match="tokenizer"):
        AttentionMaskVisualizer(tmp_path)
    for wrong in (None, 3, ["a"]):
        with pytest.raises(InputError, match="neither a model nor the name of one"):
            AttentionMaskVisualizer(wrong)
    with pytest.raises(InputError, match="not a tokenizer of this package"):
        AttentionMaskVisualizer(folder, tokenizer="猫")


# ---- much text


def test_a_mask_too_large_is_refused_before_it_is_made(visualizer, monkeypatch):
    with pytest.raises(ResourceLimitError, match="1 x 5 queries x 100,000,005 keys"):
        visualizer.view(TEXT, past=100_000_000)
    monkeypatch.setattr("refimpl.attention_visualizer.visualizer.MOST_PAIRS", 49)
    visualizer.view(["猫"] * 49)
    with pytest.raises(ResourceLimitError, match="allowed: 49 pairs"):
        visualizer.view(["猫"] * 50)


def test_two_thousand_tokens_on_the_terminal(visualizer):
    view = visualizer.view("猫" * 2000)
    tracemalloc.start()
    shown = view.text(width=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # a list of all cells would be eight times that
    assert shown.count("\n") < 70


# ---- printing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_whose_user_wants_them(visualizer, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    plain = visualizer(TEXT).text()
    assert "\x1b" not in plain
    assert sys.stdout.getvalue() == plain

    monkeypatch.setattr(sys, "stdout", Terminal())
    visualizer(TEXT)
    colours = sys.stdout.getvalue()
    assert "\x1b[32m◼ ◼ \x1b[0m" in colours

    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            changed.setattr(sys, "stdout", Terminal())
            visualizer(TEXT)
            assert sys.stdout.getvalue() == plain
    monkeypatch.setenv("NO_COLOR", "")  # empty is as good as not set
    monkeypatch.setattr(sys, "stdout", Terminal())
    visualizer(TEXT)
    assert sys.stdout.getvalue() == colours


def test_an_output_that_knows_little(visualizer, monkeypatch):
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii", write_through=True))
    visualizer(TEXT)
    assert "\\u732b" in data.getvalue().decode()
    monkeypatch.setattr(sys, "stdout", None)
    assert visualizer(TEXT).shape == (1, 5, 5)


def test_pictures_are_saved(visualizer, tmp_path, capsys):
    view = visualizer(TEXT, save=tmp_path / "mask.svg")
    assert (tmp_path / "mask.svg").read_text(encoding="utf-8") == view.svg()
    assert view.save(tmp_path / "MASK.HTML").read_text(encoding="utf-8") == view.html()
    capsys.readouterr()
    with pytest.raises(InputError, match=r"allowed: \.svg, \.html"):
        visualizer(TEXT, save=tmp_path / "mask.png")
    with pytest.raises(InputError, match="save: not a path"):
        visualizer(TEXT, save=True)
    assert capsys.readouterr().out == ""


def test_the_embedded_model():
    view = AttentionMaskVisualizer(embedded_model_path()).view(TEXT)
    assert view.tokens == [["吾輩", "は", "猫", "である", "。"]]
    assert repr(view) == "<AttentionMaskView of embedded_model: batch 1, 5 queries, 5 keys>"


def test_the_page_about_it_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs/attention_masks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks].count("text") == 4
    namespace: dict = {}
    printed = ""
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "attention_masks.md", "exec"), namespace)
            printed = capsys.readouterr().out
        else:
            assert block in printed
