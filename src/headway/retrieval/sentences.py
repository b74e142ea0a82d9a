"""Sentences in English from Python's own library, in three disjoint splits; nothing is imported or fetched."""

from __future__ import annotations

import ast
import re
import sysconfig
from functools import cache
from pathlib import Path

MODULES: dict[str, tuple[str, ...]] = {
    "calibration": ("argparse", "bdb", "codecs", "configparser", "contextlib", "datetime", "difflib", "ftplib"),
    "search": ("gzip", "heapq", "imaplib", "inspect", "mailbox", "optparse"),
    "heldout": ("poplib", "pprint", "random", "shutil", "smtplib", "socket", "statistics", "subprocess", "tarfile"),
}
"""Modules whose docstrings make up each split."""
COUNTS = {"calibration": 96, "search": 48, "heldout": 160}

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Z][^<>{}|\\`]{30,300}[.!?]")


@cache
def sentences(split: str) -> tuple[str, ...]:
    """The sentences of a split, in a fixed order, none of them in another split."""
    earlier = {text for name in MODULES for text in (sentences(name) if _before(name, split) else ())}
    found: dict[str, None] = {}
    for module in MODULES[split]:
        for text in _docstrings(module):
            found.update(dict.fromkeys(_split(text)))
    kept = [text for text in found if text not in earlier]
    step = max(1, len(kept) // COUNTS[split])  # spread over all modules
    return tuple(kept[::step][: COUNTS[split]])


def _before(name: str, split: str) -> bool:
    order = list(MODULES)
    return order.index(name) < order.index(split)


def _docstrings(module: str) -> list[str]:
    path = Path(sysconfig.get_paths()["stdlib"], f"{module}.py")
    if not path.is_file():
        return []
    tree = ast.parse(path.read_bytes())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def _split(text: str) -> list[str]:
    """Whole sentences of the prose paragraphs of a docstring."""
    paragraphs = re.split(r"\n\s*\n", text)
    joined = [" ".join(paragraph.split()) for paragraph in paragraphs if ">>>" not in paragraph]
    return [part for paragraph in joined for part in _END.split(paragraph) if _PROSE.fullmatch(part)]
