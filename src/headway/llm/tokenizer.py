"""`Tokenizer`: text to token ids and back, byte for byte; from tokenizer.json or from GGUF metadata."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from headway.core.errors import BadInput, HeadwayError, need_extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PART_CHARACTERS = 1 << 16
_CUT = re.compile("[A-Za-z] (?=[A-Za-z])")

Spelling = Literal["byte-level", "pieces"]
"""How the vocabulary spells bytes: GPT-2's printable alphabet, or text with `▁` for space and `<0x0A>` for bytes."""


def gpt2_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = gpt2_alphabet()


def piece_bytes(piece: str, spelling: Spelling) -> bytes:
    """The bytes of the text that an ordinary vocabulary entry stands for."""
    if spelling == "byte-level":
        if all(character in _ALPHABET for character in piece):
            return bytes(_ALPHABET[character] for character in piece)
        return piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()


@dataclass(frozen=True)
class TokenizerInfo:
    """What the library's own tokenizer does not say; stored in an artifact beside its tokenizer.json."""

    size: int
    """Ids are below it."""
    spelling: Spelling
    start: tuple[int, ...] = ()
    """Ids that stand before every text (the beginning-of-sequence token)."""
    space_prefix: bool = False
    """The first piece of a text carries a space that the text does not have."""
    special: dict[str, str] = field(default_factory=dict)
    """Texts of `bos_token`, `eos_token`, ... as chat templates name them."""


class Tokenizer:
    """Encodes and decodes; the library behind it is built at the first use, as large vocabularies take a second."""

    def __init__(self, info: TokenizerInfo, build: Callable[[], Backend]) -> None:
        self.info = info
        self._build = build
        self._pieces: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self.info.size

    @cached_property
    def backend(self) -> Backend:
        return self._build()

    @cached_property
    def _plain_backend(self) -> Backend:
        """The same tokenizer, reading the texts of control tokens as ordinary text."""
        copy = type(self.backend).from_str(self.backend.to_str())
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _added(self) -> dict[int, bytes]:
        decoder = self.backend.get_added_tokens_decoder()
        return {index: token.content.encode() for index, token in decoder.items()}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: they have no text of their own."""
        decoder = self.backend.get_added_tokens_decoder()
        return frozenset(index for index, token in decoder.items() if token.special)

    def encode(self, text: str, *, start: bool = True, special: bool = True) -> list[int]:
        """Token ids of `text`.

        `start` puts the beginning-of-sequence token first where the model wants one; `special` reads the texts of
        control tokens (`<|im_end|>`) as those tokens, else they are text. Raises `BadInput` for lone surrogates.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadInput(
                f"the text has a lone surrogate at character {error.start}", "give text that UTF-8 can hold"
            ) from None
        backend = self.backend if special else self._plain_backend
        ids = list(self.info.start) if start else []
        with failures("the tokenizer fails on this text", "put the model's own tokenizer beside it"):
            for part in self._parts(text):
                ids += backend.encode(part, add_special_tokens=False).ids
        return ids

    def _parts(self, text: str) -> Iterator[str]:
        """`text` cut where no token can lie across the cut: the library takes some 300 bytes for each token at work."""
        begin = 0
        while self._cuts_at_spaces and len(text) - begin > PART_CHARACTERS:
            cut = _CUT.search(text, begin + PART_CHARACTERS)
            if cut is None:
                break
            yield self._part(text, begin, cut.start() + 1)
            begin = cut.start() + 1
        yield self._part(text, begin, len(text))

    def _part(self, text: str, begin: int, end: int) -> str:
        """A later part begins with a space, which the tokenizer itself puts there where it prefixes one."""
        return text[begin + (begin > 0 and self.info.space_prefix) : end]

    @cached_property
    def _cuts_at_spaces(self) -> bool:
        """Whether no token covers (the end of) an ASCII letter and the space that follows it."""
        if any(_CUT.search(token.content) for token in self.backend.get_added_tokens_decoder().values()):
            return False
        space = "▁" if self.info.spelling == "pieces" else "Ġ"
        across = re.compile(f"[A-Za-z]{space}")
        if any(map(across.search, self.backend.get_vocab(with_added_tokens=False))):
            return False
        words = self.backend.pre_tokenizer
        if self.info.spelling == "pieces":
            return words is None or "Metaspace" in repr(words) or "Split" in repr(words)
        return words is not None and [span[0] for _, span in words.pre_tokenize_str("ab cd")] == [0, 2]

    def least_tokens(self, text: str) -> int:
        """A number of tokens that `text` cannot be encoded in fewer of: tells a hopeless prompt without encoding."""
        return -(-len(text) // self._longest_piece)

    @cached_property
    def _longest_piece(self) -> int:
        return max(map(len, self.backend.get_vocab(with_added_tokens=True)), default=1)

    def piece(self, token: int) -> bytes:
        """The bytes one token adds to a text."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._spell(token)
        return found

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        piece = self.backend.id_to_token(token) if 0 <= token < self.size else None
        return b"" if piece is None else piece_bytes(piece, self.info.spelling)

    def decode(self, tokens: Iterable[int], *, special: bool = False, start: bool = True) -> str:
        """The text of `tokens`, control tokens only where `special`; bytes that are not UTF-8 become U+FFFD.

        `start` says that they begin a text: the space that `space_prefix` put there is taken off.
        """
        data = b"".join(self.piece(token) for token in tokens if special or token not in self.special_ids)
        if start and self.info.space_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def stream(self, *, special: bool = False) -> Detokenizer:
        """Decodes the continuation of a text token by token."""
        return Detokenizer(self, special)

    def token_id(self, text: str) -> int | None:
        found: int | None = self.backend.token_to_id(text)
        return found

    def check(self, vocab: int, ids: Sequence[int], name: str) -> None:
        """Raise `BadInput` unless this tokenizer can belong to a model of `vocab` rows with those special ids."""
        if not 3 * vocab <= 4 * self.size <= 4 * vocab or any(not 0 <= i < self.size for i in (*ids, *self.info.start)):
            raise BadInput(
                f"{name}: wrong tokenizer: it has {self.size} tokens, the model {vocab}",
                "put the tokenizer beside the model that it was made for",
            )


class Detokenizer:
    """Text as its tokens come: what `feed` and `end` return, joined, is the decoding of all tokens."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that is certain after one more token; bytes of an unfinished character wait."""
        if not self._special and token in self._tokenizer.special_ids:
            return ""
        return self._utf8.decode(self._tokenizer.piece(token))

    def end(self) -> str:
        """What waited: U+FFFD for bytes that never became a character."""
        return self._utf8.decode(b"", True)


@contextmanager
def failures(what: str, mend: str) -> Iterator[None]:
    """Turns what the tokenizers library raises (plain Exception, or its own panic) into `BadInput`."""
    try:
        yield
    except (HeadwayError, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BadInput(f"{what}: {' '.join(str(error).split())[:200]}", mend) from None
        raise


def library() -> type[Backend]:
    """The tokenizers library's class; raises `Lacking` naming the extra."""
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError:
        raise need_extra("tokenizers", "llm") from None
    return Backend
