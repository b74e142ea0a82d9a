"""Tokenizers: the ids of the reference, the bytes of the text, whatever the text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import TEXTS
from tiny_models import SPECIALS, VOCAB, tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from headway.core.errors import BadFile, BadInput
from headway.llm import tokenizer as tokenizer_module
from headway.llm.gguf.file import GGUFFile
from headway.llm.gguf.vocabulary import tokenizer_from_gguf
from headway.llm.packaged import gemma3_path, smollm2_path
from headway.llm.tokenizer import Tokenizer as Ours
from headway.llm.tokenizer import gpt2_alphabet, piece_bytes
from headway.llm.tokenizer_json import tokenizer_from_json


def reference(path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Ours:
    return tokenizer_from_gguf(GGUFFile(smollm2_path()).header)


@pytest.fixture(scope="module")
def gemma3_tokenizer() -> Ours:
    return tokenizer_from_gguf(GGUFFile(gemma3_path()).header)


@pytest.fixture(scope="module")
def tiny() -> Ours:
    return tokenizer_from_json(tiny_tokenizer().to_str(), {}, "tiny")


GOLDEN: dict[str, tuple[list[int], list[int]]] = {
    "Hello world": ([19556, 905], [2, 9259, 1902]),
    "  two  spaces   three\n\n\nnew\tlines": (
        [216, 827, 216, 5600, 256, 1296, 1116, 198, 2241, 197, 5110],
        [2, 138, 13498, 138, 35220, 139, 19891, 109, 1951, 255968, 8721],
    ),
    "naïve café 你好 🙂": (
        [3546, 46494, 37366, 216, 18645, 250, 48392, 138, 47526],
        [2, 1789, 238527, 560, 33443, 43758, 237389, 57235],
    ),
    "I'll don't WE'VE": (
        [57, 3060, 1326, 982, 26587, 23, 18525],
        [2, 236777, 236789, 859, 1537, 236789, 236745, 19716, 236789, 11818],
    ),
    "x = 1234.5\n    return": (
        [104, 446, 216, 33, 34, 35, 36, 30, 37, 472, 1003],
        [2, 236781, 578, 236743, 236770, 236778, 236800, 236812, 236761, 236810, 107, 140, 2060],
    ),
    "<|im_start|>user\nhi<|im_end|>": (
        [1, 4093, 198, 6004, 2],
        [2, 236820, 236909, 548, 236779, 3041, 111038, 2364, 107, 2202, 236820, 236909, 548, 236779, 643, 111038],
    ),
}
"""Text -> ids of SmolLM2 and of Gemma 3, as transformers gave them."""


@pytest.mark.parametrize("text", GOLDEN)
def test_the_packaged_models_keep_their_ids(text: str, smollm2_tokenizer: Ours, gemma3_tokenizer: Ours) -> None:
    assert (smollm2_tokenizer.encode(text), gemma3_tokenizer.encode(text)) == GOLDEN[text]


@pytest.mark.nightly
def test_smollm2_gives_the_ids_of_transformers(smollm2_tokenizer: Ours) -> None:
    """transformers reads the file but not its pre-tokenizer, which takes digits one by one: texts with none."""
    theirs = reference(smollm2_path())
    for text in TEXTS:
        text = re.sub(r"[\d٣٤½]", "", text)
        assert smollm2_tokenizer.encode(text) == theirs(text)["input_ids"], text[:60]
        ids = smollm2_tokenizer.encode(text)
        assert smollm2_tokenizer.decode(ids, special=True) == theirs.decode(ids)


def test_smollm2_takes_digits_one_by_one(smollm2_tokenizer: Ours) -> None:
    pieces = [smollm2_tokenizer.piece(i) for i in smollm2_tokenizer.encode("x 1234\n  56")]
    assert [piece for piece in pieces if re.search(rb"\d", piece)] == [b"1", b"2", b"3", b"4", b"5", b"6"]


@pytest.mark.nightly
def test_gemma3_gives_the_ids_of_transformers(gemma3_tokenizer: Ours) -> None:
    """Runs of more than 31 spaces are cut otherwise (31 + 17, not 16 + 16 + 16), as SentencePiece does."""
    theirs = reference(gemma3_path())
    for text in TEXTS:
        text = re.sub(" {32,}", " " * 31, text)
        assert gemma3_tokenizer.encode(text) == theirs(text)["input_ids"], text[:60]
    assert gemma3_tokenizer.info.start == (2,)


@pytest.mark.parametrize("name", ["smollm2_tokenizer", "gemma3_tokenizer", "tiny"])
def test_texts_come_back_byte_for_byte_whole_and_token_by_token(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Ours = request.getfixturevalue(name)
    for text in TEXTS:
        ids = tokenizer.encode(text, start=False)
        assert tokenizer.decode(ids, special=True) == text
        stream = tokenizer.stream(special=True)
        assert "".join(stream.feed(token) for token in ids) + stream.end() == text
        assert tokenizer.least_tokens(text) <= max(len(ids), 1)


@given(st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back(tiny: Ours, text: str) -> None:
    for special in (True, False):
        ids = tiny.encode(text, special=special)
        assert tiny.decode(ids, special=True) == text


@given(st.lists(st.integers(0, VOCAB - 1), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_tokens_stream_to_what_they_decode_to(tiny: Ours, tokens: list[int]) -> None:
    for special in (True, False):
        stream = tiny.stream(special=special)
        streamed = "".join(stream.feed(token) for token in tokens) + stream.end()
        assert streamed == tiny.decode(tokens, special=special)


def test_an_unfinished_character_waits_for_its_last_byte(tiny: Ours) -> None:
    tokens = tiny.encode("é🙂")
    stream = tiny.stream()
    assert [stream.feed(token) for token in tokens] == ["", "é", "", "", "", "🙂"]
    assert stream.end() == ""
    cut = tiny.stream()
    assert [cut.feed(token) for token in tokens[2:5]] == ["", "", ""]
    assert cut.end() == "�"


def test_control_tokens_are_read_or_are_text(tiny: Ours) -> None:
    text = "a<|im_end|>b"
    control = tiny.token_id("<|im_end|>")
    assert control in tiny.encode(text)
    assert control not in tiny.encode(text, special=False)
    assert tiny.decode(tiny.encode(text)) == "ab"
    assert tiny.decode(tiny.encode(text, special=False)) == text
    assert tiny.special_ids == {tiny.token_id(token) for token in SPECIALS}


@pytest.mark.parametrize("name", ["smollm2_tokenizer", "gemma3_tokenizer", "tiny"])
def test_long_texts_are_cut_without_a_seam(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Ours = request.getfixturevalue(name)
    text = TEXTS[-1] + "the end of the thing <|im_end|> and more of it " * 30
    whole = tokenizer.encode(text)
    assert tokenizer._cuts_at_spaces
    for size in (1, 7, 300, 5000):
        monkeypatch.setattr(tokenizer_module, "PART_CHARACTERS", size)
        assert tokenizer.encode(text) == whole


def sentencepiece_like(prefix: bool) -> str:
    """A tokenizer.json as Llama 2's: pieces with `▁`, bytes as fallback."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *"abcdehlo", "he", "▁he", "lo"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("h", "e"), ("▁", "he"), ("l", "o")]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    return made.to_str()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies_keep_their_spaces(prefix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = sentencepiece_like(prefix)
    ours = tokenizer_from_json(text, {"bos_token": "<s>", "add_bos_token": True}, "x")
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text))
    assert ours.info.space_prefix is prefix
    for sample in ("hello he", " hello", "  he  ", "né\n", "he hello lo he abc hello"):
        ids = ours.encode(sample, start=False)
        assert ids == theirs(sample)["input_ids"]
        assert ours.decode(ids) == sample
        assert ours.encode(sample) == [1, *ids]
        monkeypatch.setattr(tokenizer_module, "PART_CHARACTERS", 2)
        assert ours.encode(sample, start=False) == ids


def test_the_first_token_follows_the_configuration_then_the_file() -> None:
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer.from_str(sentencepiece_like(True))
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    text = made.to_str()
    assert tokenizer_from_json(text, {}, "x").info.start == (1,)
    assert tokenizer_from_json(text, {"add_bos_token": False}, "x").info.start == ()
    named = {"add_bos_token": True, "bos_token": {"content": "</s>", "special": True}}
    assert tokenizer_from_json(text, named, "x").info.start == (2,)
    assert tokenizer_from_json(text, named, "x").info.special == {"bos_token": "</s>"}


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no tokenizer"):
        tokenizer_from_json(text, {}, "tokenizer.json")


def test_a_kind_that_language_models_do_not_use_is_refused() -> None:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(BadInput, match="neither byte-level nor SentencePiece"):
        tokenizer_from_json(made.to_str(), {}, "tokenizer.json")


def test_an_expression_that_explodes_is_refused_not_waited_for() -> None:
    """The library's engine gives up after a number of retries, by a panic."""
    made = tiny_tokenizer()
    words = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, spell])
    tokenizer = tokenizer_from_json(made.to_str(), {}, "x")
    with pytest.raises(BadInput, match="the tokenizer fails on this text"):
        tokenizer.encode("a" * 60 + "b")


def test_lone_surrogates_are_refused(tiny: Ours) -> None:
    with pytest.raises(BadInput, match="lone surrogate at character 2"):
        tiny.encode("ab\ud800c")


def test_another_models_tokenizer_is_refused(tiny: Ours) -> None:
    tiny.check(VOCAB, (), "m")
    tiny.check(VOCAB + 40, (), "m")  # padded rows
    for vocab, ids in ((VOCAB - 1, ()), (2 * VOCAB, ()), (VOCAB, (VOCAB,)), (VOCAB + 9, (VOCAB + 1,))):
        with pytest.raises(BadInput, match="wrong tokenizer"):
            tiny.check(vocab, ids, "m")


def test_the_gpt2_alphabet_spells_every_byte_once() -> None:
    alphabet = gpt2_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["Ġ"] == 32
    assert alphabet["Ċ"] == 10
    assert piece_bytes("Ġthe", "byte-level") == b" the"
    assert piece_bytes("<0xE2>", "pieces") == b"\xe2"
    assert piece_bytes("▁the", "pieces") == b" the"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("llama-bpe", "a 12345\n\nb", ["a", " ", "123", "45", "\n\n", "b"]),
        ("qwen2", "a 12345\n\nb", ["a", " ", "1", "2", "3", "4", "5", "\n\n", "b"]),
        ("gpt-2", "a 12345\n\nb", ["a", " 12345", "\n", "\n", "b"]),
        ("default", "I'LL", ["I", "'", "LL"]),
        ("llama-bpe", "I'LL", ["I", "'LL"]),
        ("smollm", "a 12", ["a", " ", "1", "2"]),
        ("tekken", "helloWorld 12", ["hello", "World", " ", "1", "2"]),
    ],
)
def test_each_pre_tokenizer_cuts_words_its_own_way(pre: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    import tiny_models
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "v.gguf"), "llama")
    tiny_models._write_vocabulary(writer)
    writer.kv_data[0]["tokenizer.ggml.pre"].value = pre
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    backend = tokenizer_from_gguf(GGUFFile(tmp_path / "v.gguf").header).backend
    assert backend.pre_tokenizer is not None
    found = [text[begin:end] for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert found == pieces


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("tokenizer.ggml.model", "bert", BadInput, "tokenizer kind 'bert' is unknown; read are: gpt2, llama"),
        ("tokenizer.ggml.pre", "odd", BadInput, "pre-tokenizer 'odd' is unknown; read are: llama-bpe"),
        ("tokenizer.ggml.eos_token_id", 5000, BadFile, "has no token 5000"),
        ("tokenizer.ggml.token_type", [1, 2], BadFile, "has 2 entries"),
        ("tokenizer.ggml.tokens", [], BadFile, "is not a vocabulary"),
        ("tokenizer.ggml.merges", ["a"], BadFile, "not two pieces"),
        ("tokenizer.ggml.merges", ["xyz q"], BadFile, "makes no tokenizer"),
    ],
)
def test_broken_vocabularies_are_refused(
    key: str, value: object, error: type[Exception], words: str, tmp_path: Path
) -> None:
    import tiny_models
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "v.gguf"), "llama")
    tiny_models._write_vocabulary(writer)
    writer.kv_data[0][key].value = value
    if value == []:
        del writer.kv_data[0][key]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(error, match=re.escape(words)):
        _ = tokenizer_from_gguf(GGUFFile(tmp_path / "v.gguf").header).backend


def test_the_tokenizer_json_of_an_artifact_is_the_same_tokenizer(smollm2_tokenizer: Ours) -> None:
    text = smollm2_tokenizer.backend.to_str()
    again = tokenizer_from_json(text, {}, "x")
    for sample in TEXTS:
        assert again.encode(sample) == smollm2_tokenizer.encode(sample)
    assert json.loads(text)["model"]["type"] == "BPE"


@pytest.mark.nightly
@pytest.mark.parametrize("text", ["x" * 4_000_000, "hello world " * 333_333, "好" * 1_300_000, " " * 4_000_000])
def test_four_megabytes_of_anything_are_encoded(smollm2_tokenizer: Ours, text: str) -> None:
    ids = smollm2_tokenizer.encode(text)
    assert smollm2_tokenizer.decode(ids) == text
