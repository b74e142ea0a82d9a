"""Patterns that select sites by name: a shell's `*`, `?`, `[abc]`, and `{1,2,6-13}` for words and runs of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from headway.core.errors import BadInput

_RUN = re.compile(r"(\d{1,6})-(\d{1,6})")
LONGEST_RUN = 10_000


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression for whole names; raises `BadInput` for an open bracket."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        close = {"[": "]", "{": "}"}.get(letter)
        if close is None:
            parts.append({"*": ".*", "?": "."}.get(letter, re.escape(letter)))
            at += 1
            continue
        end = pattern.find(close, at + 1)
        if end < 0:
            raise BadInput(f"site pattern {pattern!r} has an open {letter!r}", "close it, e.g. layers.{0-3}.mlp.*")
        inside = pattern[at + 1 : end]
        parts.append(_set(inside) if letter == "[" else _choices(inside, pattern))
        at = end + 1
    return re.compile("".join(parts), re.DOTALL)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether any of the patterns matches the whole name."""
    return any(compiled(pattern).fullmatch(name) for pattern in patterns)


def compress(chosen: Iterable[str], names: Iterable[str]) -> list[str]:
    """Few patterns that match exactly `chosen` among `names`: names that differ in one number share a pattern."""
    chosen, names = list(chosen), list(names)
    wanted = set(chosen)
    roles: dict[tuple[str, str], list[int]] = {}
    found: list[str] = []
    for name in chosen:
        number = re.search(r"(?<![^.])(?:0|[1-9][0-9]*)(?![^.])", name)
        if number is None:
            found.append(_literal(name))
        else:
            roles.setdefault((name[: number.start()], name[number.end() :]), []).append(int(number[0]))
    for (before, after), numbers in roles.items():
        star = f"{_literal(before)}*{_literal(after)}"
        covered = {name for name in names if compiled(star).fullmatch(name)}
        if len(numbers) > 1 and covered <= wanted:
            found.append(star)
        elif len(numbers) == 1:
            found.append(_literal(f"{before}{numbers[0]}{after}"))
        else:
            found.append(f"{_literal(before)}{{{_runs(numbers)}}}{_literal(after)}")
    return found


def _set(inside: str) -> str:
    negated = inside.startswith("!")
    letters = inside[1:] if negated else inside
    return f"[{'^' if negated else ''}{re.escape(letters).replace(chr(92) + '-', '-')}]" if letters else "(?!)"


def _choices(inside: str, pattern: str) -> str:
    words: list[str] = []
    for word in inside.split(","):
        run = _RUN.fullmatch(word.strip())
        if run is None:
            words.append(re.escape(word.strip()))
            continue
        first, last = int(run[1]), int(run[2])
        if not 0 <= last - first <= LONGEST_RUN:
            raise BadInput(f"site pattern {pattern!r}: {word} is no run of numbers", "write e.g. {0-11}")
        words += [str(number) for number in range(first, last + 1)]
    return f"(?:{'|'.join(words)})"


def _literal(name: str) -> str:
    """A name as a pattern that matches only itself."""
    return re.sub(r"[*?\[{]", lambda found: f"[{found[0]}]", name)


def _runs(numbers: Sequence[int]) -> str:
    """`1,2,6-13` for sorted numbers."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(str(number) for number in run) for run in parts)
