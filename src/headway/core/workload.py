"""`Workload`: what a model will be asked: shape of requests, three disjoint splits of data, the quality function."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from headway.core.errors import BadInput, Lacking
from headway.core.files import read_bytes, sha256_file, sha256_of

HELDOUT_BYTES = 200_000
CALIBRATION_CHARACTERS = 400_000
TEXT_LIMIT = 256 << 20


@dataclass(frozen=True)
class Texts:
    """Text in three splits: `calibration` is never scored, `heldout` is used for nothing but proofs."""

    calibration: str
    search: str
    heldout: str
    source: str

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            **{
                name: {"bytes": len(text.encode()), "sha256": sha256_of(text)}
                for name, text in (
                    ("calibration", self.calibration),
                    ("search", self.search),
                    ("heldout", self.heldout),
                )
            },
        }


@dataclass(frozen=True)
class Workload:
    """Requests of `prompt_tokens` tokens in and `output_tokens` out (language), or the sample (any other module)."""

    prompt_tokens: int = 256
    output_tokens: int = 64
    context: int = 0
    """Tokens already in the context when decoding is timed; 0: the prompt."""
    texts: Texts | None = None
    data: Any = None
    """Splits of a module's inputs, where there is no text."""
    quality: str = "perplexity"
    """`perplexity`, `agreement`, `cosine`, `closeness`, or the user's own `module:function`."""

    def as_json(self) -> Mapping[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "context": self.context or self.prompt_tokens,
            "texts": None if self.texts is None else self.texts.as_json(),
            "quality": self.judge(),
        }

    def judge(self) -> str:
        """The quality function's name; a user's own with the digest of its file: an edited one is another one."""
        if ":" not in self.quality:
            return self.quality
        see_here()
        spec = importlib.util.find_spec(self.quality.partition(":")[0])
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            return self.quality
        return f"{self.quality} {sha256_file(spec.origin)[:16]}"


def default_texts() -> Texts:
    """Calibration: docstrings of the standard library. Search and held-out: disjoint parts of Python's help topics.

    The docstrings are kept in the step cache: reading them takes seconds. Raises `Lacking` where a distribution left
    the help topics out.
    """
    from headway.core.cache import StepCache

    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise Lacking("this Python came without pydoc_data, the default text", "give a text: --text FILE") from None

    pages = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    cache = StepCache()
    key = cache.key("docstrings", sys.version, sha256_file(__file__), _stamps(library_sources()))
    return Texts(
        cache.json(key, _calibration_text),
        pages[HELDOUT_BYTES:].decode(errors="ignore"),
        pages[:HELDOUT_BYTES].decode(errors="ignore"),
        "python standard library",
    )


def _calibration_text() -> str:
    """As many docstrings as make `CALIBRATION_CHARACTERS`; reading all of them takes three times as long."""
    parts, length = [], 0
    for text in docstrings():
        parts.append(text)
        length += len(text) + 2
        if length >= CALIBRATION_CHARACTERS:
            break
    return "\n\n".join(parts)


def library_sources() -> list[Path]:
    """The standard library's modules in a fixed order.

    `pydoc_data` (what quality is judged on) and test packages are left out.
    """
    skipped = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "turtledemo", "__phello__"}
    found: list[Path] = []
    for folder, inner, files in os.walk(Path(ast.__file__).parent):
        inner[:] = [name for name in inner if name not in skipped]
        found += [Path(folder, name) for name in files if name.endswith(".py") and name not in skipped]
    return sorted(found)


def _stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What changes when a file does."""
    found = []
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, in a fixed order, read from sources without importing any."""
    seen: set[str] = set()
    for path in library_sources():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        for node in _statements(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= 80 and text not in seen:
                    seen.add(text)
                    yield text


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The tree and every statement in it in the order of `ast.walk`, which visits their expressions too."""
    todo: deque[ast.AST] = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        for name in ("body", "cases", "handlers", "orelse", "finalbody"):
            todo.extend(getattr(node, name, ()))


def split_text(path: str | Path) -> Texts:
    """A user's text in three parts: the first half calibrates, a quarter guides the search, a quarter is held out."""
    if not Path(path).is_file():
        raise BadInput(f"no text file {str(path)!r}", "give a plain text file")
    try:
        text = read_bytes(path, limit=TEXT_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}", "give a plain text file") from None
    if not text.strip():
        raise BadInput(f"{path} is empty", "give a text like what the model will see")
    half, quarter = len(text) // 2, len(text) // 4
    return Texts(text[:half], text[half : half + quarter], text[half + quarter :], str(path))


def see_here() -> None:
    """A user's module may lie in the folder they are in, wherever it is named."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def user_function(name: str) -> Callable[..., Any]:
    """The user's own `module:function`, imported because the user typed it; raises `BadInput` when it is not there."""
    import importlib

    module, _, function = name.partition(":")
    if not module or not function:
        raise BadInput(f"{name!r} does not name a function", "write module:function")
    see_here()
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise BadInput(f"{name}: {type(error).__name__}: {error}", "check the name and PYTHONPATH") from None
    if not callable(found):
        raise BadInput(f"{name} is not callable", "name a function")

    @wraps(found)
    def called(*arguments: Any) -> Any:
        try:
            return found(*arguments)
        except Exception as error:
            raise BadInput(f"{name} failed: {type(error).__name__}: {error}", "mend the function") from error

    return called
