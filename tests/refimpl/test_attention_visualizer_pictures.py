"""Masks as SVG and HTML: complete by themselves, true cell by cell, and nothing can break out of them."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from refimpl.attention_visualizer.html import MOST_STRETCHES
from refimpl.attention_visualizer.svg import MOST_TOKENS
from refimpl.attention_visualizer.view import AttentionMaskView
from refimpl.cli.terminal import display_width
from tests.refimpl.test_attention_visualizer_text import view_of

SVG = "{http://www.w3.org/2000/svg}"
EVIL = """</title></text><script>alert("1")</script><img src=x onerror='a'>&amp;</style></code>]]>--> 猫"""


def rectangles(picture: str) -> list[tuple[dict[str, str], str]]:
    """The cells, with the sentence of each."""
    root = ElementTree.fromstring(picture)
    return [(e.attrib, e[0].text or "") for e in root.iter(f"{SVG}rect") if len(e)]


def labels(picture: str) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(picture).iter(f"{SVG}text")]


class Page(HTMLParser):
    """A page as a browser reads it: every element that is opened is closed, or is one that cannot be."""

    VOID = ("meta", "rect", "path")

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
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in self.VOID
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data


def numbered(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


def test_every_cell_is_a_sentence():
    view = view_of([["吾輩", "は", "p"]], past=1, padding=[[0, 0, 0, 1]])
    assert [sentence for _, sentence in rectangles(view.svg())] == [
        "'吾輩' sees cached token 0",
        "'吾輩' sees '吾輩'",
        "'吾輩' does not see 'は': it comes later",
        "'吾輩' does not see 'p': it is padding",
        "'は' sees cached token 0",
        "'は' sees '吾輩'",
        "'は' sees 'は'",
        "'は' does not see 'p': it is padding",
        "'p' sees cached token 0",
        "'p' sees '吾輩'",
        "'p' sees 'は'",
        "'p' does not see 'p': it is padding",
    ]


def test_numbers_are_shades():
    bias = np.array([[[0, -np.inf], [-1.25, 0.5]]])
    cells = rectangles(view_of([["a", "b"]], visible=np.isfinite(bias), bias=bias).svg())
    assert [sentence for _, sentence in cells] == [
        "'a' sees 'a'",
        "'a' does not see 'b': the mask hides it",
        "'b' sees 'a', -1.25 added to the score",
        "'b' sees 'b', +0.5 added to the score",
    ]
    shades = [attributes.get("fill-opacity") for attributes, _ in cells]
    assert shades == [None, None, f"{0.2 + 0.8 * np.exp(-1.75):.2f}", "1.00"]


@pytest.mark.parametrize("count", [1, 2, 3, 40, 141, 142, 200, MOST_TOKENS, MOST_TOKENS + 1, 2000])
def test_pictures_of_any_size(count):
    """The green area, counted in cells, is as large as the mask says, in pictures of single cells and of stretches."""
    view = view_of([numbered(count)])
    picture = view.svg()
    cells = rectangles(picture)
    side = min(count, MOST_TOKENS)
    kept = np.arange(count) if count <= MOST_TOKENS else np.r_[0:128, count - 127 : count]
    expected = int(view.visible[0][np.ix_(kept, kept)].sum())
    widths = {name: 0.0 for name in ("am-v", "am-l")}
    for attributes, _ in cells:
        widths[attributes["class"]] += float(attributes["width"]) / 18
    assert widths["am-v"] == expected
    assert sum(widths.values()) == len(kept) ** 2
    assert (len(cells) == count**2) == (count <= 141)
    assert len(cells) <= 20_000
    assert len(picture) < 3_500_000
    shown = labels(picture)
    assert shown.count("t0") == 2
    assert shown.count(f"t{count - 1}") == 2
    assert ("Shown are 255 of" in picture) == (count > MOST_TOKENS) == ("⋯" in picture)
    assert side >= len(kept)
    Page(view.html())


def test_stretches_have_sentences_too():
    picture = view_of([numbered(150)]).svg()
    sentences = [sentence for _, sentence in rectangles(picture)]
    assert sentences[:2] == [
        "'t0' sees 't0'",
        "'t0' does not see 't1': it comes later (and 148 more, to column 149)",
    ]
    assert sentences[-1] == "'t149' sees 't0' (and 149 more, to column 149)"


def test_a_place_stays_empty_where_others_are_left_out():
    cells = [attributes for attributes, _ in rectangles(view_of([numbered(MOST_TOKENS + 1)]).svg())]
    levels = sorted({float(cell["y"]) for cell in cells})
    steps = {round(b - a): (a, b) for a, b in itertools.pairwise(levels)}
    assert sorted(steps) == [18, 36]
    assert levels.index(steps[36][1]) == 128
    last = [cell for cell in cells if float(cell["y"]) == levels[-1]]
    spans = [(float(cell["x"]), float(cell["x"]) + float(cell["width"])) for cell in last]
    assert [end - start for start, end in spans] == [128 * 18, 127 * 18]
    assert spans[1][0] - spans[0][1] == 18


@pytest.mark.parametrize("name", ["n", "n" * 200])
def test_everything_stays_inside_the_picture(name):
    for texts in (["a"], numbered(30), ["猫" * 30] * 5, ["x" * 300, "i"], ["long label"] * 30):
        view = view_of([texts, texts], past=1, name=name)
        root = ElementTree.fromstring(view.svg())
        assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
        for group in root.iter(f"{SVG}g"):
            left, top = map(float, re.findall(r"[\d.]+", group.attrib["transform"]))
            for cell in group.iter(f"{SVG}rect"):
                x, y, w, h = (float(cell.attrib[name]) for name in ("x", "y", "width", "height"))
                assert left + x >= 0
                assert top + y >= 0
                assert left + x + w <= float(root.attrib["width"])
                assert top + y + h <= float(root.attrib["height"])
            for label in group.iter(f"{SVG}text"):  # half of a label's width is as far as it leans out
                x = left + float(label.attrib["x"])
                leans = 4 * display_width(label[-1].tail if len(label) else label.text or "")
                assert (x if "transform" not in label.attrib else x + leans) <= float(root.attrib["width"])


def test_texts_beyond_the_limit_are_left_out():
    view = view_of([["a"]] * 70)
    assert "Shown are 64 of 70 texts." in view.svg()
    assert view.svg().count("<g ") == 64
    assert "Shown are 64 of 70 texts." in view.html()


def evil_view() -> AttentionMaskView:
    return view_of([[EVIL, "猫"]], name=EVIL)


def test_nothing_breaks_out_of_the_picture():
    root = ElementTree.fromstring(evil_view().svg())
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        *("svg", "style", "rect", "text", "title", "g", "path")
    }
    for element in root.iter():
        assert not any(name.startswith("on") or "href" in name for name in element.attrib)
    assert any(EVIL[:40] in (element.text or "") for element in root.iter(f"{SVG}title"))


def test_nothing_breaks_out_of_the_page():
    page = Page(evil_view().html())
    assert {tag for tag, _ in page.elements} & {"script", "img", "link", "iframe", "a"} == set()
    assert EVIL in page.text
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    (policy,) = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\b)", evil_view().html().replace(EVIL, ""))


def test_light_and_dark():
    for text in (view_of([["a"]]).svg(), view_of([["a"]]).html()):
        assert "@media (prefers-color-scheme:dark)" in text
        style = "".join(re.findall("<style>(.*?)</style>", text, re.DOTALL))
        light, dark = style.split("@media (prefers-color-scheme:dark)")[-2:]
        for name in (".am-v{", ".am-c{", ".am-l{", ".am-p{", ".am-x{", ".am-t{"):
            assert name in light
            assert name in dark


def test_the_page_says_it_in_words():
    padding = [[0, 0, 0], [1, 0, 0]]
    text = view_of([["a", "b", "c"], ["p", "b", "c"]], padding=padding).html()
    page = Page(text)
    assert "Text 2 of 2" in page.text
    assert "visible pairs9 of 18" in page.text.replace("\n", "")
    rows = re.findall(
        r"<tr><th [^>]*>(\d)</th><td><code>\w</code></td><td>([^<]*)</td><td [^>]*>(\d)</td>", text
    )
    assert rows == [
        *(("0", "0", "1"), ("1", "0 to 1", "2"), ("2", "0 to 2", "3")),
        *(("0", "none", "0"), ("1", "1", "1"), ("2", "1 to 2", "2")),
    ]


def test_a_row_of_many_stretches_is_cut():
    bias = np.where(np.arange(60) % 2, 0, -np.inf)[None, None, :].repeat(60, axis=1)
    page = view_of([numbered(60)], visible=bias == 0, bias=bias).html()
    assert f"1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, and {30 - MOST_STRETCHES} more stretches" in page


def test_a_notebook_shows_the_picture():
    view = view_of([["a"]])
    assert view._repr_svg_() == view.svg()
