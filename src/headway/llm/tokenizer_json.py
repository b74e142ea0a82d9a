"""Builds a `Tokenizer` from a Hugging Face tokenizer.json and its tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headway.core.errors import BadInput
from headway.llm.tokenizer import Spelling, Tokenizer, TokenizerInfo, failures, library

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_from_json(text: str, settings: Mapping[str, Any], source: str) -> Tokenizer:
    """Raises `BadInput` when the text is no tokenizer, or one of a kind that language models do not use."""
    backend = backend_from(text, source)
    special = special_texts(settings)
    start = backend.encode("", add_special_tokens=True).ids
    bos = backend.token_to_id(special["bos_token"]) if "bos_token" in special else None
    chosen = settings.get("add_bos_token")
    if chosen is True and bos is not None:
        start = [bos]
    elif chosen is False:
        start = []
    info = TokenizerInfo(
        size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        spelling=_spelling(backend, source),
        start=tuple(start if len(start) < 2 else start[:1]),
        space_prefix=_prefixes_space(backend),
        special=special,
    )
    return Tokenizer(info, lambda: backend)


def backend_from(text: str, source: str) -> Backend:
    """The library's tokenizer, truncation and padding off."""
    library_class = library()
    with failures(f"{source} is no tokenizer", "export the tokenizer again"):
        backend = library_class.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    return backend


def special_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that chat templates print by name; each is a text, or an object with `content`."""
    found = {}
    for name in SPECIAL:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _spelling(backend: Backend, source: str) -> Spelling:
    """How the decoder turns pieces into text says how the vocabulary spells bytes."""
    decoder = repr(backend.decoder)
    if "ByteLevel" in decoder:
        return "byte-level"
    if "▁" in decoder or "Metaspace" in decoder:
        return "pieces"
    raise BadInput(
        f"{source}: a tokenizer that is neither byte-level nor SentencePiece", "language models of the families use one"
    )


def _prefixes_space(backend: Backend) -> bool:
    """Whether a text's first piece carries a space that the text does not have."""
    tokens = backend.encode("a", add_special_tokens=False).tokens
    return bool(tokens) and tokens[0].startswith("▁")
