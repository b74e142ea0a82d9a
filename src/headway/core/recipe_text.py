"""The one-line form of a recipe: a reader that points at the character it could not understand."""

from __future__ import annotations

import re
from typing import Any

from headway.core.errors import BadInput

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_TOKENS = re.compile(
    r"""(?P<string>"[^"]*"|'[^']*')
      | (?P<number>[-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.])
      | (?P<word>[A-Za-z_*][\w.*-]*)
      | (?P<mark>[(),=\[\]])""",
    re.VERBOSE,
)
_VALUES = 'values are numbers, words, "quoted text" or [lists]'


def read_line(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The systems of a one-line recipe with their settings, in order; raises `BadInput`."""
    return _Reader(text).recipe()


class _Reader:
    """A recursive-descent reader over one line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, what: str, mend: str, at: int | None = None) -> BadInput:
        at = self.at if at is None else at
        return BadInput(f"recipe: {what} at character {at + 1}: {self.text[:at]}»{self.text[at:]}", mend)

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def take(self) -> tuple[str, str, int]:
        """The next token inside parentheses: its kind, its text and where it began."""
        self.skip_space()
        match = _TOKENS.match(self.text, self.at)
        if not match or match.lastgroup is None:
            raise self.fail("cannot read on", _VALUES)
        start, self.at = self.at, match.end()
        return match.lastgroup, match.group(), start

    def recipe(self) -> list[tuple[str, dict[str, Any]]]:
        steps: list[tuple[str, dict[str, Any]]] = []
        if self.text.strip() in ("", "(unmodified)"):
            return steps
        while True:
            self.skip_space()
            match = NAME.match(self.text, self.at)
            if not match:
                raise self.fail("expected a system's name", "write e.g. lut-gemm(bits=3)")
            self.at = match.end()
            self.skip_space()
            steps.append((match.group(), self.settings() if self.text[self.at : self.at + 1] == "(" else {}))
            self.skip_space()
            if self.at == len(self.text):
                return steps
            if self.text[self.at] != "+":
                raise self.fail("expected '+' or the end", "join systems with ' + '")
            self.at += 1

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        self.at += 1
        while True:
            kind, word, at = self.take()
            if word == ")" and not settings:
                return settings
            if kind != "word":
                raise self.fail("expected a setting's name", "write name=value", at)
            if word in settings:
                raise self.fail(f"setting {word!r} given twice", "keep one", at)
            _, equals, at = self.take()
            if equals != "=":
                raise self.fail("expected '='", "write name=value", at)
            settings[word] = self.value()
            _, mark, at = self.take()
            if mark == ")":
                return settings
            if mark != ",":
                raise self.fail("expected ',' or ')'", "separate settings with commas", at)

    def value(self, depth: int = 0) -> Any:
        kind, word, at = self.take()
        if word == "[" and depth < 2:
            return self.list(depth)
        if kind == "string":
            return word[1:-1]
        if kind == "number":
            clean = word.replace("_", "")
            return float(clean) if re.search(r"[.eE]", clean) else int(clean)
        if kind == "word":
            return {"true": True, "false": False}.get(word, word)
        raise self.fail("expected a value", _VALUES, at)

    def list(self, depth: int) -> list[Any]:
        values: list[Any] = []
        self.skip_space()
        if self.text[self.at : self.at + 1] == "]":
            self.at += 1
            return values
        while True:
            values.append(self.value(depth + 1))
            _, mark, at = self.take()
            if mark == "]":
                return values
            if mark != ",":
                raise self.fail("expected ',' or ']'", "write [a, b]", at)
