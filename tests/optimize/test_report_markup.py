"""Strings of users never become HTML."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from headway.optimize.report.markup import Markup, data_block, render, tag


class Reader(HTMLParser):
    """What a browser's tokenizer would see."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def printable(text: str) -> str:
    return "".join("\ufffd" if (c < " " and c not in "\n\t") or "\ud800" <= c <= "\udfff" else c for c in text)


@given(st.text())
def test_any_text_is_read_back_as_that_text_and_no_tag(text: str) -> None:
    seen = Reader(tag("p", text, title=text))
    assert seen.text == printable(text)
    assert seen.tags == [("p", {"title": printable(text)})]


@given(st.text())
def test_a_data_block_never_ends_early(text: str) -> None:
    block = data_block("x", {"recipe": text + "</script><script>alert(1)</script><!--"})
    assert block.count("<") == 2
    assert json.loads(block.partition(">")[2].rpartition("<")[0])["recipe"].startswith(text)


def test_only_markup_is_trusted() -> None:
    assert render(["<b>", Markup("<b>"), None, 3]) == "&lt;b&gt;<b>3"


def test_attributes_are_bare_quoted_or_left_out() -> None:
    made = tag("input", type="radio", checked=True, disabled=False, title=None, data_x_="1")
    assert made == '<input type="radio" checked data-x="1">'
