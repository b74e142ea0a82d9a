"""Reading the site's Markdown: its code blocks with their language and title."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(?P<head>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    title: str
    body: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = match["head"].strip().partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        found.append(Block(page.name, language, title[1] if title else "", match["body"]))
    return found


def all_blocks() -> list[Block]:
    """Of every page of the site, the README and CONTRIBUTING."""
    pages = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [block for page in pages for block in blocks(page)]
