"""`refimpl tokenize --explain` and `--html`: tables that fit, and a page that nothing can break out of."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from refimpl.auto import AutoTokenizer
from refimpl.cli import explain, explain_html, terminal
from refimpl.cli.explain import states, wrap, wrapped_table
from refimpl.cli.explain_html import MOST_TOKENS, page
from refimpl.tokenizer import AddedToken, GPTNeoXJapaneseTokenizer
from tests.cli.conftest import EMOJI, LINES
from tests.cli.test_main import error_of
from tests.tokenizer.neox_toy import toy, write_two

TEXT = "吾輩は猫である 𠮟°😀"
EVIL = """<script>alert("1")</script><img src=x onerror='a'>&amp;</code></table><!-- ]]> 猫"""


@pytest.fixture
def neox(tmp_path: Path) -> Path:
    folder = tmp_path / "neox"
    folder.mkdir()
    write_two(folder)
    return folder


def japanese(folder: Path, *words: str) -> GPTNeoXJapaneseTokenizer:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*words, *LINES]) + "\n", encoding="utf-8")
    (folder / "emoji.json").write_text(json.dumps(EMOJI), encoding="utf-8")
    return GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json")


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and its text."""

    VOID = ("meta", "br", "wbr", "input")

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len({name for name, _ in attributes}) == len(attributes)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# ---- terminal


def test_the_table_of_japanese(inside, model):
    result = inside("tokenize", TEXT, "-m", model, "--explain")
    assert result.returncode == 0
    expected = """\
replaced  by            times  rule
" "       "<SP>"            1  white space
"😀"      "<|emoji1|>"      1  emoji

 id  token        text    why
  0  吾輩         "吾輩"  the only word that fits
  3  は           "は"    the only word that fits
  4  猫           "猫"    the only word that fits
  1  である       "である"  smallest id of 2 candidates: である 1, で 5
 17  <SP>         " "     a tag: longer than two characters, it alone counts
269  <|byte240|>  f0      "𠮟": no word: its 4 UTF-8 bytes
189  <|byte160|>  a0
203  <|byte174|>  ae
188  <|byte159|>  9f = "𠮟"
 20  <KIGOU>      "ǀ"     "°": no word: U+00B0 is in the range U+00A1 to U+00BF -> <KIGOU>
 28  <|emoji1|>   "😀"    a tag: longer than two characters, it alone counts
"""
    assert [line.split() for line in result.stdout.decode().splitlines()] == [
        line.split() for line in expected.splitlines()
    ]
    assert result.stderr.decode() == "11 tokens for 11 characters\n"


def test_the_merges_of_neox(inside, neox):
    result = inside("tokenize", "Hello, Hello the", "-m", neox, "--explain", "--quiet")
    assert (
        result.stdout.decode()
        == """\
 id  token  text     why
264  Hello  "Hello"  5 bytes, 4 merges into one token
 46  ,      ","      one byte
 34  Ġ      " "      " Hello": 6 bytes, 4 merges; none joins what is left
264  Hello  "Hello"
260  Ġthe   " the"   4 bytes, 3 merges into one token

"Hello"
rank  merge      id  what is left
   3  l + l     261  H e ll o
   4  e + ll    262  H ell o
   5  H + ell   263  Hell o
   6  Hell + o  264  Hello

" Hello"
rank  merge      id  what is left
   3  l + l     261  Ġ H e ll o
   4  e + ll    262  Ġ H ell o
   5  H + ell   263  Ġ Hell o
   6  Hell + o  264  Ġ Hello

" the"
rank  merge     id  what is left
   0  Ġ + t    258  Ġt h e
   1  h + e    259  Ġt he
   2  Ġt + he  260  Ġthe
"""
    )
    assert result.stderr == b""


@pytest.mark.parametrize("columns", [10, 20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(inside, model, neox, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for folder in (model, neox):
        result = inside("tokenize", TEXT + "Hello the world" * 3, "-m", folder, "--explain")
        lines = result.stdout.decode().splitlines()
        narrow = [line for line in lines if terminal.display_width(line) <= columns]
        if columns >= 60:
            assert lines == narrow
        assert "である" in "".join(lines) or folder == neox
        assert lines == [line.rstrip() for line in lines]


def test_control_characters_are_escaped(inside, model):
    out = inside("tokenize", "\x1b[2J\x9b\u202e\t猫\x07", "-m", model, "--explain").stdout.decode()
    assert all(character.isprintable() or character == "\n" for character in out)
    assert "\\u001b" in out


def test_json(inside, model):
    value = json.loads(inside("tokenize", TEXT, "-m", model, "--explain", "--json").stdout)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert value == tokenizer.explain(TEXT).to_dict()
    assert value["ids"] == tokenizer.encode(TEXT)


def test_nothing_to_explain(inside, model):
    result = inside("tokenize", "", "-m", model, "--explain")
    assert result.stdout.decode() == "id  token  text  why\n"


def test_clean_text_and_compat_reach_the_explanation(inside, model):
    result = inside(
        "tokenize", "12/31", "-m", model, "--clean", "--compat", "original", "--explain", "--json"
    )
    (change,) = json.loads(result.stdout)["pieces"][0]["changes"]
    assert change == {"rule": "clean text", "old": "12/31", "new": "<DATE>", "count": 1}


def test_too_long_a_text(inside, model):
    assert "too long to be explained" in error_of(
        inside("tokenize", "-m", model, "--explain", stdin=b"a" * 100_001), 1
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["猫", "--explain", "--ids"], "--ids and --explain contradict each other"),
        (["猫", "--ids", "--html", "x"], "--ids and --html contradict each other"),
        (["-d", "1", "--explain"], "--decode and --explain contradict each other"),
        (["-d", "1", "--html", "x"], "--decode and --html contradict each other"),
        (["猫", "--json", "--html", "x"], "--json and --html contradict each other"),
        (["猫", "--html", ""], "the name of the page is empty"),
    ],
)
def test_wrong_calls(inside, model, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert expected in error_of(inside("tokenize", "-m", model, *arguments), 2)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("abc", 3, ["abc"]),
        ("ab cd ef", 5, ["ab cd", "ef"]),
        ("ab cd ef", 4, ["ab", "cd", "ef"]),
        ("abcdefg", 3, ["abc", "def", "g"]),
        ("猫猫猫", 4, ["猫猫", "猫"]),
        ("猫猫猫", 5, ["猫猫", "猫"]),
        ("a猫", 1, ["a", "猫"]),
        ("e\u0301e\u0301e\u0301", 2, ["e\u0301e\u0301", "e\u0301"]),
    ],
)
def test_breaking_lines(text, width, lines):
    assert wrap(text, width) == lines


def test_cells_of_several_lines_keep_their_columns():
    rows = [["id", "why"], ["1", "one two three four five"], ["22", "猫" * 15]]
    assert wrapped_table(rows, 28, right=(0,)) == (
        "id  why\n 1  one two three four five\n22  猫猫猫猫猫猫猫猫猫猫猫猫\n    猫猫猫\n"
    )
    assert wrapped_table(rows, 20) == "id\n    why\n1\n    one two three\n    four five\n22\n    " + (
        "猫猫猫猫猫猫猫猫\n    猫猫猫猫猫猫猫\n"
    )


def test_symbols_after_each_merge():
    (step,) = toy().explain("Hello").steps
    shown = [" ".join(f"[{s}]" if new else s for s, new in state) for state in states(step)]
    assert shown == ["H e [ll] o", "H [ell] o", "[Hell] o", "[Hello]"]
    (long,) = toy().explain("a" * 100).steps
    assert states(long) is None


# ---- page


def test_the_page_is_complete_by_itself(inside, model, tmp_path):
    path = tmp_path / "why.html"
    result = inside("tokenize", TEXT, "-m", model, "--html", path)
    assert (result.returncode, result.stdout.decode()) == (0, f"{path}\n")
    assert [entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name] == []
    text = path.read_text(encoding="utf-8")
    assert text.startswith('<!doctype html>\n<html lang="en">')
    read = Page(text)
    assert not {"script", "link", "img", "iframe", "base", "object"} & {tag for tag, _ in read.elements}
    assert all(a["href"].startswith("#s") for a in read.all("a"))
    assert not [a for _, a in read.elements if {"src", "style", "onclick"} & a.keys()]
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme:dark" in text
    assert "@media (max-width:44rem)" in text
    assert all(th.get("scope") in ("col", "row") for th in read.all("th"))
    for shown in (
        "吾輩",
        "smallest id of 2 candidates",
        "no word: its 4 UTF-8 bytes",
        "U+20B9F",
        "white space",
    ):
        assert shown in read.text
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in read.all("a")} <= set(ids)


def test_html_alone_asks_for_the_explanation(inside, model, tmp_path):
    for extra in ([], ["--explain"]):
        path = tmp_path / f"{len(extra)}.html"
        assert inside("tokenize", TEXT, "-m", model, "--html", path, *extra).returncode == 0
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()


# fmt: off
TAGS_OF_A_PAGE = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "h1", "h2", "p", "dl",
    "dt", "dd", "div", "a", "br", "wbr", "strong", "small", "code", "table", "thead", "tbody", "tr", "th", "td", "ul",
    "ol", "li", "span", "fieldset", "legend", "label", "input", "b", "details", "summary", "mark",
}
# fmt: on


def test_markup_in_the_text_stays_text(tmp_path):
    for tokenizer in (japanese(tmp_path / "a"), toy()):
        read = Page(page(tokenizer.explain(EVIL)))
        assert {tag for tag, _ in read.elements} <= TAGS_OF_A_PAGE
        assert not [a for _, a in read.elements if "onerror" in a]


def test_markup_in_the_vocabulary_stays_text(tmp_path):
    words = ["<script>alert(1)</script>", "<i>", "\"'&amp;", "x<i", "x", "x<u,z"]
    tokenizer = japanese(tmp_path / "a", *words)
    tokenizer.add_tokens([AddedToken("</td><img src=x>")])
    read = Page(page(tokenizer.explain("".join(words) + "z</td><img src=x>")))
    assert {tag for tag, _ in read.elements} <= TAGS_OF_A_PAGE
    for shown in (*words[:2], "x<i", "x<u", "</td><img src=x>"):
        assert shown in read.text


def test_merges_on_the_page():
    read = Page(page(toy().explain("Hello the Hello xHello")))
    assert len(read.all("details")) == 4  # "Hello", " the", " Hello", " xHello"
    again = Page(page(toy().explain("Hello,Hello")))
    assert len(again.all("details")) == 1
    assert "as above" in again.text
    assert "4 merges" in again.text
    assert len(again.all("mark")) == 4


def test_a_long_text_is_cut_and_the_page_says_so(tmp_path):
    tokenizer = japanese(tmp_path / "a")
    whole = page(tokenizer.explain("猫" * MOST_TOKENS))
    assert "This page shows" not in whole
    text = page(tokenizer.explain("猫" * 12_345))
    read = Page(text)
    assert f"This page shows the first {MOST_TOKENS:,} of 12,345 tokens" in " ".join(read.text.split())
    assert len([a for a in read.all("tr") if "id" in a]) == MOST_TOKENS
    assert len(text) < 5_000_000


def test_a_step_may_be_cut(monkeypatch):
    monkeypatch.setattr(explain_html, "MOST_TOKENS", 3)
    read = Page(page(toy().explain("Hello xyz123")))
    assert "the first 3 of 8 tokens" in " ".join(read.text.split())
    assert "… and 2 more" in read.text


def test_a_long_word_is_cut(monkeypatch):
    monkeypatch.setattr(explain_html, "MOST_MERGES", 10)
    monkeypatch.setattr(explain, "MOST_MERGES", 10)
    explanation = toy().explain("a" * 5000)
    text = page(explanation)
    assert "… and 3,740 more merges" in Page(text).text
    assert "… (5,000 characters)" in Page(text).text
    assert "… and 3,740 more merges" in explain.report(explanation)


def test_the_filters_name_what_is_there(tmp_path):
    text = page(japanese(tmp_path / "a").explain("猫である°"))
    read = Page(text)
    names = {a["id"] for a in read.all("input") if "id" in a}
    assert names == {"k-only", "k-smallest", "k-range"}
    assert {a["class"] for a in read.all("tr") if "class" in a} == {"only", "smallest", "range"}
    for name in names:
        assert f"body:has(#{name}:checked) .steps tbody>tr:not(.{name[2:]}){{display:none}}" in text


def test_japanese_is_marked_as_such(tmp_path):
    read = Page(page(japanese(tmp_path / "a").explain("猫")))
    assert "ja" in {a.get("lang") for _, a in read.elements}
    read = Page(page(toy().explain("猫")))
    assert "ja" not in {a.get("lang") for _, a in read.elements}


def test_an_empty_text(tmp_path):
    for tokenizer in (japanese(tmp_path / "a"), toy()):
        read = Page(page(tokenizer.explain("")))
        assert "Nothing: the text went on as it was." in read.text


def test_nowhere_to_write(inside, model, tmp_path):
    (tmp_path / "there").write_text("x")
    missing = tmp_path / "no" / "such" / "why.html"
    for path in (missing, tmp_path, tmp_path / "there" / "why.html"):
        message = error_of(inside("tokenize", "猫", "-m", model, "--html", path), 1)
        assert message.startswith(f"{path}: ")
        assert "cannot be written" in message or "a symbolic link or a folder" in message
    assert not missing.parent.exists()
    assert (tmp_path / "there").read_text() == "x"


def test_an_older_page_is_replaced(inside, model, tmp_path):
    path = tmp_path / "why.html"
    path.write_text("old")
    assert inside("tokenize", "猫", "-m", model, "--html", path, "-q").stderr == b""
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
