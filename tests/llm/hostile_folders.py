"""Model folders that want to run code, to leave the folder, or to exhaust the machine."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import TinyFolder, tiny_tokenizer

CODE = "import os\nos.system('touch RAN')\nopen('RAN', 'w').close()\n"
PICKLE = b"cos\nsystem\n(S'touch RAN'\ntR."


def _config(**changes: Any) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        folder.config |= changes
        folder.write()

    return change


def _settings(**changes: Any) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        folder.settings |= changes
        folder.write()

    return change


def _more_tokens(folder: TinyFolder, outside: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(folder.path / "tokenizer.json"))


def _index(**names: Any) -> Callable[[TinyFolder, Path], None]:
    """Shards, with the shard of one tensor named otherwise."""

    def change(folder: TinyFolder, outside: Path) -> None:
        folder.shard()
        path = folder.path / "model.safetensors.index.json"
        mapping = json.loads(path.read_text())["weight_map"]
        for wrong in names.values():
            mapping[next(iter(mapping))] = str(outside / "w.safetensors") if wrong == "OUTSIDE" else wrong
        folder.write_index(mapping)

    return change


def _replaced(name: str, make: Callable[[Path, Path], None]) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        path = folder.path / name
        kept = outside / name
        if path.exists():
            kept.write_bytes(path.read_bytes())
            path.unlink()
        make(path, kept)

    return change


def _header(make: Callable[[dict[str, Any]], Any]) -> Callable[[TinyFolder, Path], None]:
    """The safetensors file with another header."""

    def change(folder: TinyFolder, outside: Path) -> None:
        path = folder.path / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        made = make(json.loads(data[8 : 8 + length]))
        header = made if isinstance(made, bytes) else json.dumps(made).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])

    return change


def _edit(name: str, **changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda header: {**header, name: {**header[name], **changes}}


def _pickled(name: str) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        (folder.path / "model.safetensors").unlink()
        (folder.path / name).write_bytes(PICKLE)

    return change


def _many_shards(folder: TinyFolder, outside: Path) -> None:
    (folder.path / "model.safetensors").unlink()
    folder.write_index({f"t{i}": f"model-{i}.safetensors" for i in range(100_000)})


def _many_files(folder: TinyFolder, outside: Path) -> None:
    (folder.path / "model.safetensors").unlink()
    for index in range(5000):
        (folder.path / f"x{index}.txt").touch()


def _nan(folder: TinyFolder, outside: Path) -> None:
    folder.tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    folder.write()


def _infinite(folder: TinyFolder, outside: Path) -> None:
    folder.tensors = {name: values.astype(np.float16) for name, values in folder.tensors.items()}
    folder.tensors["model.norm.weight"][2] = np.inf
    folder.write()


def _tensor(name: str, values: Any) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        if values is None:
            del folder.tensors[name]
        else:
            folder.tensors[name] = values
        folder.write()

    return change


def _text(name: str, text: str | bytes) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        data = text.encode() if isinstance(text, str) else text
        (folder.path / name).write_bytes(data)

    return change


def _sparse(name: str, size: int) -> Callable[[TinyFolder, Path], None]:
    def change(folder: TinyFolder, outside: Path) -> None:
        with (folder.path / name).open("wb") as file:
            file.truncate(size)

    return change


NORM = "model.norm.weight"
EMBED = "model.embed_tokens.weight"

REFUSED: dict[str, tuple[Callable[[TinyFolder, Path], None], str]] = {
    "pytorch pickle": (_pickled("pytorch_model.bin"), "a pickle, which can run code; convert to safetensors"),
    "pt pickle": (_pickled("model.pt"), "a pickle, which can run code; convert to safetensors"),
    "pth pickle": (_pickled("consolidated.00.pth"), "convert to safetensors"),
    "index names a pickle": (_index(x="pytorch_model-1.bin"), "a pickle, which can run code; convert to safetensors"),
    "index names no weights": (_index(x="notes.txt"), "no safetensors file"),
    "index goes up": (_index(x="../outside/w.safetensors"), "is not a plain name inside"),
    "index goes up inside": (_index(x="a/../../outside/w.safetensors"), "is not a plain name inside"),
    "index is absolute": (_index(x="OUTSIDE"), "is not a plain name inside"),
    "index has a NUL": (_index(x="a\0.safetensors"), "is not a plain name inside"),
    "index with backslashes": (_index(x="..\\w.safetensors"), "is not a plain name inside"),
    "index names a missing file": (_index(x="absent.safetensors"), "which is not there; download"),
    "index of numbers": (_index(x=3), "weight_map is not an object of file names"),
    "index of 100,000 shards": (_many_shards, "100000 shards, the limit is 4096"),
    "case of a shard's name": (_index(x="MODEL-00001-of-00002.safetensors"), "which is not there"),
    "weights are a link outside": (
        _replaced("model.safetensors", lambda p, k: p.symlink_to(k)),
        "symbol",
    ),
    "weights are a hard link": (_replaced("model.safetensors", lambda p, k: p.hardlink_to(k)), "hard link"),
    "weights are a pipe": (_replaced("model.safetensors", lambda p, k: os.mkfifo(p)), "not a regular file"),
    "weights are a folder": (_replaced("model.safetensors", lambda p, k: p.mkdir()), "not a regular file"),
    "weights are a device": (_replaced("model.safetensors", lambda p, k: p.symlink_to("/dev/zero")), "symbol"),
    "config is a link": (_replaced("config.json", lambda p, k: p.symlink_to(k)), "symbol"),
    "config is a pipe": (_replaced("config.json", lambda p, k: os.mkfifo(p)), "not a regular file"),
    "tokenizer is a link": (_replaced("tokenizer.json", lambda p, k: p.symlink_to(k)), "symbol"),
    "no tokenizer": (_replaced("tokenizer.json", lambda p, k: None), "has no tokenizer.json"),
    "no config": (_replaced("config.json", lambda p, k: None), "has no config.json"),
    "no weights among many files": (_many_files, "has no model.safetensors"),
    "config of 17 MB": (_sparse("config.json", 17 << 20), "longer than"),
    "config that is no object": (_text("config.json", "[1]"), "not a JSON object"),
    "config nested deep": (_text("config.json", "[" * 200_000), "nested too deeply"),
    "config that is not UTF-8": (_text("config.json", b'{"a": "\xff"}'), "not UTF-8"),
    "unknown architecture": (_config(model_type="gptx"), "unknown; supported: llama, mistral, qwen2, qwen3, gemma3"),
    "quantised otherwise": (_config(quantization_config={"quant_method": "awq"}), "quantization_config"),
    "a million layers": (_config(num_hidden_layers=1_000_000), "num_hidden_layers"),
    "another model's tokenizer": (_more_tokens, "wrong tokenizer: it has 274 tokens, the model 273"),
    "special token beyond the vocabulary": (_config(eos_token_id=273), "special token 273"),
    "sizes that do not fit": (_config(intermediate_size=65), "the configuration wants"),
    "NaN weights": (_nan, r"tensor 'model\.layers\.1\.mlp\.down_proj\.weight' holds NaN"),
    "infinite weights": (_infinite, r"tensor 'model\.norm\.weight' holds NaN or infinite"),
    "integer weights": (_tensor(NORM, np.ones(32, np.int32)), "is I32, not F32, F16 or BF16"),
    "missing tensor": (_tensor(NORM, None), "is missing"),
    "tensor of another model": (_tensor("model.layers.0.mlp.experts.0.w1", np.ones(3, "f4")), "is not part of this"),
    "adapter left in": (_tensor("model.layers.0.self_attn.q_proj.lora_A.weight", np.ones(3, "f4")), "is not part of"),
    "cut weights": (_sparse("model.safetensors", 7), "has no header"),
    "header beyond the file": (_text("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"), "a header of"),
    "header of 2^64": (_text("model.safetensors", b"\xff" * 8 + b"{}"), "a header of"),
    "header that is no JSON": (_header(lambda h: b"{" * 100), "not JSON"),
    "header nested deep": (_header(lambda h: b'{"a":' * 100_000), "nested too deeply|not JSON"),
    "header that is a list": (_header(lambda h: []), "not an object"),
    "offsets beyond the file": (_header(_edit(NORM, data_offsets=[0, 1 << 50])), "needs 128 bytes"),
    "offsets before zero": (_header(_edit(NORM, data_offsets=[-128, 0])), "is not described"),
    "offsets that overlap": (_header(lambda h: {**h, "x": h[NORM]}), "starts at byte"),
    "a gap between tensors": (_header(lambda h: {k: v for k, v in h.items() if k != EMBED}), "starts at byte|behind"),
    "shape that overflows": (_header(_edit(NORM, shape=[1 << 32, 1 << 32])), "needs"),
    "shape of floats": (_header(_edit(NORM, shape=[32.0])), "is not described"),
    "shape below zero": (_header(_edit(NORM, shape=[-32])), "is not described"),
    "shape of 9 axes": (_header(_edit(NORM, shape=[1] * 8 + [32])), "is not described"),
    "unknown dtype": (_header(_edit(NORM, dtype="F31")), "unknown dtype"),
    "template that is no text": (_settings(chat_template=3), "chat_template is not a text"),
    "tokenizer that is none": (_text("tokenizer.json", '{"model": 1}'), "is no tokenizer"),
}
"""What to do to a sound folder, and what its error must say."""

IGNORED: dict[str, Callable[[TinyFolder, Path], None]] = {
    "auto_map": _config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, trust_remote_code=True),
    "modeling code": _text("modeling_llama.py", CODE),
    "tokenization code": _text("tokenization_llama.py", CODE),
    "package marker": _text("__init__.py", CODE),
    "a module named as ours": _text("headway.py", CODE),
    "a module named as numpy": _text("numpy.py", CODE),
    "setup code": _text("setup.py", CODE),
    "path file": _text("evil.pth", "import os; os.system('touch RAN')\n"),
    "pickle beside the weights": _text("pytorch_model.bin", PICKLE),
    "optimizer state": _text("optimizer.pt", PICKLE),
    "custom pipeline": _config(custom_pipelines={"x": {"impl": "evil.Evil"}}),
    "tokenizer class": _settings(tokenizer_class="evil.Evil", auto_map={}),
    "link that nobody names": lambda f, o: (f.path / "README.md").symlink_to("/etc/passwd"),
    "pipe that nobody names": lambda f, o: os.mkfifo(f.path / "notes"),
    "template that reads files": _settings(chat_template="{% include '/etc/passwd' %}"),
}
"""What must change nothing: the model loads as if it were not there."""
