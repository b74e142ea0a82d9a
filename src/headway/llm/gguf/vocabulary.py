"""Builds a `Tokenizer` from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headway.core.errors import BadInput
from headway.llm.families.metadata import CONTROL, special
from headway.llm.gguf.header import Header
from headway.llm.tokenizer import Tokenizer, TokenizerInfo, library

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENS, SCORES, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges"))

NORMAL, USER_DEFINED, BYTE = 1, 4, 6
"""`tokenizer.ggml.token_type`, with `CONTROL`."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLITS: dict[str, str] = {
    "llama-bpe": LLAMA3_SPLIT,
    "llama3": LLAMA3_SPLIT,
    "llama-v3": LLAMA3_SPLIT,
    "qwen2": QWEN2_SPLIT,
    "deepseek-r1-qwen": QWEN2_SPLIT,
    "tekken": TEKKEN_SPLIT,
}
"""`tokenizer.ggml.pre` -> the expression that cuts a text into words before merging."""

GPT2_SPLITS = ("default", "gpt-2", "gpt2")
DIGIT_SPLITS = ("smollm", "smollm2")
"""GPT-2's words, digits one by one."""

WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")
"""Words that are in the vocabulary as they stand are not merged up."""

STARTED = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Kinds whose texts begin with the beginning-of-sequence token where the file does not say."""


def tokenizer_from_gguf(header: Header) -> Tokenizer:
    """Raises `BadInput` naming the kinds that are read; the tokenizer itself is built at its first use."""
    model = header.text("tokenizer.ggml.model")
    pre = header.text("tokenizer.ggml.pre", "default")
    if model not in ("gpt2", "llama"):
        raise BadInput(f"{header.path}: the tokenizer kind {model[:40]!r} is unknown", "read are: gpt2, llama")
    if model == "gpt2" and pre not in (*SPLITS, *GPT2_SPLITS, *DIGIT_SPLITS):
        known = ", ".join((*SPLITS, *GPT2_SPLITS, *DIGIT_SPLITS))
        raise BadInput(f"{header.path}: the pre-tokenizer {pre[:40]!r} is unknown", f"read are: {known}")
    size = header[TOKENS].count if TOKENS in header else -1
    if size < 1:
        raise header.fault(TOKENS, "is not a vocabulary")
    for key in (SCORES, TYPES):
        if key in header and header[key].count != size:
            raise header.fault(key, f"has {header[key].count} entries for {size} tokens")
    pieces = model == "llama"
    bos = special(header, "bos")
    starts = header.flag("tokenizer.ggml.add_bos_token", pieces or pre in STARTED)
    info = TokenizerInfo(
        size=size,
        spelling="pieces" if pieces else "byte-level",
        start=(bos,) if starts and bos is not None else (),
        space_prefix=header.flag("tokenizer.ggml.add_space_prefix", pieces),
        special=_special_texts(header, size),
    )

    def build() -> Backend:
        return _pieces(header, info) if pieces else _byte_level(header, pre)

    return Tokenizer(info, build)


def _special_texts(header: Header, size: int) -> dict[str, str]:
    """The texts that chat templates write as `bos_token`, `eos_token` and so on."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {ours: token for theirs, ours in names.items() if (token := special(header, theirs)) is not None}
    for name, token in found.items():
        if token >= size:
            raise header.fault(TOKENS, f"has no token {token} for {name}")
    texts = header.texts_at(TOKENS, set(found.values()))
    return {name: texts[token] for name, token in found.items()}


def _types(header: Header, size: int) -> Sequence[int]:
    return [int(kind) for kind in header.numbers(TYPES)] if TYPES in header else [NORMAL] * size


def _byte_level(header: Header, pre: str) -> Backend:
    """GPT-2's byte-pair encoding, cut into words as `pre` says."""
    backend_class = library()
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    tokens = header.texts(TOKENS)
    merges = [_pair(header, merge) for merge in header.texts(MERGES)]
    vocab = _vocab(header, tokens)
    model = _bpe(header, models, vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_WORDS)
    backend = backend_class(model)
    if pre in SPLITS:
        words: Any = pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated")
    elif pre in DIGIT_SPLITS:
        words = pre_tokenizers.Digits(individual_digits=True)
    else:
        words = None
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)
    backend.pre_tokenizer = spell if words is None else pre_tokenizers.Sequence([words, spell])
    if SPLITS.get(pre) is QWEN2_SPLIT:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    _add_whole_tokens(backend, tokens, _types(header, len(tokens)))
    return backend


def _pieces(header: Header, info: TokenizerInfo) -> Backend:
    """SentencePiece's byte-pair encoding: the neighbouring pieces of the best score merge first.

    The file stores no merges: a pair merges when its joined text is an ordinary piece, in the order of scores.
    """
    backend_class = library()
    from tokenizers import decoders, models, normalizers

    tokens = header.texts(TOKENS)
    types = _types(header, len(tokens))
    vocab = _vocab(header, tokens)
    scores = header.numbers(SCORES).tolist()
    unknown = special(header, "unknown")
    model = _bpe(
        header,
        models,
        vocab=vocab,
        merges=_merges_of(tokens, types, scores, vocab),
        byte_fallback=BYTE in types,
        fuse_unk=True,
        **({"unk_token": tokens[unknown]} if unknown is not None and unknown < len(tokens) else {}),
    )
    backend = backend_class(model)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if info.space_prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if info.space_prefix else steps)
    _add_whole_tokens(backend, tokens, types)
    return backend


def _merges_of(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], vocab: dict[str, int]
) -> list[tuple[str, str]]:
    ranked = []
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != NORMAL or len(token) < 2:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[index], vocab[left], vocab[right]))
    ranked.sort()
    return [(tokens[left], tokens[right]) for _, left, right in ranked]


def _vocab(header: Header, tokens: Sequence[str]) -> dict[str, int]:
    """Text -> id; of a text that comes twice the first id counts."""
    vocab: dict[str, int] = {}
    for index, token in enumerate(tokens):
        vocab.setdefault(token, index)
    return vocab


def _pair(header: Header, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (space and left and right):
        raise header.fault(MERGES, f"holds {merge[:40]!r}, not two pieces")
    return left, right


def _bpe(header: Header, models: Any, **settings: Any) -> Any:
    try:
        return models.BPE(**settings)
    except Exception as error:  # the library raises plain Exception for merges outside the vocabulary
        raise header.fault(MERGES if MERGES in header else TOKENS, f"makes no tokenizer: {error}"[:200]) from None


def _add_whole_tokens(backend: Backend, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control and user-defined tokens are found in the text before anything is merged."""
    from tokenizers import AddedToken

    listed = [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED) and token
    ]
    backend.add_special_tokens([token for token in listed if token.special])
    backend.add_tokens([token for token in listed if not token.special])
