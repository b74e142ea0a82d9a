"""A saved module gives bit-identical outputs; a broken, foreign or hostile folder gives one line of error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from module_nets import Mixed, build
from torch import nn

from headway.core.errors import BadFile, BadInput, HeadwayError, Lacking
from headway.core.module_files import DESCRIPTION, VALUES
from headway.core.module_model import ModuleModel, load_saved
from headway.core.module_origin import Origin
from headway.core.packed_modules import PackedLinear, TensorWeight

BUILD = Origin.parse("python:module_nets:build")


@pytest.fixture
def model() -> ModuleModel:
    torch.manual_seed(3)
    sample = (torch.tensor([[1, 2, 3]]), {"scale": 1.5, "flags": [True, None, ("a", 2)]})
    attachments = {"words.txt": b"one\ntwo\n"}
    made = ModuleModel(Mixed(), sample, name="mixed", task="embedding", origin=BUILD, attachments=attachments)
    return made.with_weights({"up": TensorWeight(made.runtime.up.weight.half())})


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    change(description)
    (folder / DESCRIPTION).write_text(json.dumps(description))


def test_a_network_whose_weight_changes_when_it_is_read_stays_as_it_was(tmp_path: Path) -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)))

    model = ModuleModel(normed(), torch.ones(1, 6))
    model = model.with_weights({"0": TensorWeight(torch.ones(4, 6).half())})
    model.save(tmp_path)
    mine = normed().train()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    loaded = ModuleModel.load(tmp_path, module=mine)
    assert torch.equal(loaded.run(loaded.sample), model.run(model.sample))
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


def test_a_saved_module_is_the_same_module_bit_for_bit(model: ModuleModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = ModuleModel.load(tmp_path, allow_code=True)
    assert torch.equal(loaded.run(loaded.sample), model.run(model.sample))
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.size_bytes() == model.size_bytes()
    assert loaded.sites() == model.sites()
    assert (loaded.name, loaded.task, loaded.origin) == ("mixed", "embedding", BUILD)
    assert loaded.attachments == model.attachments
    assert loaded.sample[1] == model.sample[1] and torch.equal(loaded.sample[0], model.sample[0])
    assert isinstance(loaded.runtime.up, PackedLinear) and loaded.weight("up").form == "dense"
    assert loaded.runtime.conv.weight.stride() == model.runtime.conv.weight.stride()
    assert {path.name for path in tmp_path.iterdir()} == {VALUES, DESCRIPTION, "words.txt"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("layers", [0, 2])
def test_a_saved_transformer_of_torchs_still_calls_its_packed_layers(layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = (nn.TransformerEncoder(layer, layers) if layers else layer).eval()
    made = ModuleModel(net, torch.randn(2, 5, 16))
    packed = made.with_weights({site.name: made.weight(site.name) for site in made.sites()})
    packed.save(tmp_path)
    loaded = ModuleModel.load(tmp_path, module=net)
    assert loaded.fingerprint() == packed.fingerprint()
    assert torch.equal(loaded.run(loaded.sample), packed.run(packed.sample))
    assert loaded.kernel_calls() == packed.kernel_calls() == len(made.sites()) == 2 * max(layers, 1)


def test_a_network_that_keeps_what_it_has_seen_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.layer(x - self.mean)

    net = Seen()
    model = ModuleModel(net, torch.ones(2, 4))
    assert int(model.runtime.steps) == 0, "making a model leaves what it holds alone"
    model.run(torch.ones(2, 4))
    model.save(tmp_path)
    loaded = ModuleModel.load(tmp_path, module=net)
    assert loaded.fingerprint() == model.fingerprint() and int(loaded.runtime.steps) == 1
    assert torch.equal(loaded.run(loaded.sample), model.run(model.sample))


def test_values_are_stored_once_and_the_file_is_as_large_as_the_model_says(model: ModuleModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    size = (tmp_path / VALUES).stat().st_size
    header = 8 + int.from_bytes((tmp_path / VALUES).read_bytes()[:8], "little")
    assert size - header == model.size_bytes() + model.sample[0].numel() * 8


def test_a_user_brings_the_network_and_it_stays_as_it_was(model: ModuleModel, tmp_path: Path) -> None:
    model.origin = Origin("module")
    model.save(tmp_path)
    with pytest.raises(BadInput, match=r"built by its user; bring it: headway\.load\(folder, module=network\)"):
        load_saved(tmp_path)
    mine = build()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    loaded = ModuleModel.load(tmp_path, module=mine)
    assert torch.equal(loaded.run(model.sample), model.run(model.sample))
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    assert isinstance(mine.up, nn.Linear)


def test_recorded_code_is_not_run_unless_it_was_asked_for(model: ModuleModel, tmp_path: Path) -> None:
    model.origin = Origin.parse("python:no_such_module_at_all:f")
    model.save(tmp_path)
    with pytest.raises(BadInput, match="built by the code python:no_such_module_at_all:f; let it run: --allow-code"):
        load_saved(tmp_path)
    assert "no_such_module_at_all" not in sys.modules
    with pytest.raises(BadInput, match="No module named 'no_such_module_at_all'"):
        ModuleModel.load(tmp_path, allow_code=True)


def test_a_users_function_may_give_a_sample_too_but_must_give_a_module(model: ModuleModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    edited(tmp_path, lambda d: d.update(origin="python:module_nets:build_with_sample"))
    assert torch.equal(ModuleModel.load(tmp_path, allow_code=True).run(model.sample), model.run(model.sample))
    edited(tmp_path, lambda d: d.update(origin="python:module_nets:build_nothing"))
    with pytest.raises(BadInput, match=r"gave a int; return a torch\.nn\.Module"):
        ModuleModel.load(tmp_path, allow_code=True)


def test_a_network_of_timm_is_built_by_name_without_fetching(
    model: ModuleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.origin = Origin.parse("timm:mixed_tiny")
    model.save(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Lacking, match=r"needs the Python package 'timm'.*; run: pip install --no-deps timm"):
        load_saved(tmp_path)
    asked = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return build()

    timm = SimpleNamespace(list_models=lambda: ["mixed_tiny"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert torch.equal(load_saved(tmp_path).module()(*model.sample), model.module()(*model.sample))
    assert asked == [("mixed_tiny", False)]


def test_another_network_or_other_values_are_refused(model: ModuleModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    with pytest.raises(BadInput, match=r"site 'up' is \(12, 6\), the weight \(12, 8\)"):
        ModuleModel.load(tmp_path, module=Mixed(width=6))
    other = build()
    other.extra = nn.Linear(2, 2)
    with pytest.raises(BadInput, match=r"does not fit: .*extra\.weight"):
        ModuleModel.load(tmp_path, module=other)
    with pytest.raises(BadInput, match="no linear site 'up'"):
        ModuleModel.load(tmp_path, module=nn.Linear(2, 2))
    data = bytearray((tmp_path / VALUES).read_bytes())
    data[-3] ^= 1
    (tmp_path / VALUES).write_bytes(data)
    with pytest.raises(BadFile, match="not those whose digest"):
        ModuleModel.load(tmp_path, allow_code=True)


def test_hostile_and_broken_folders_end_in_one_line(model: ModuleModel, tmp_path: Path) -> None:
    def fails(name: str, change: Callable[[dict[str, Any]], object], match: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        model.save(folder)
        edited(folder, change)
        with pytest.raises(HeadwayError, match=match) as caught:
            ModuleModel.load(folder, allow_code=True)
        assert "\n" not in str(caught.value)

    fails("newer", lambda d: d.update(schema=99), "schema 99")
    fails("none", lambda d: d.pop("schema"), "not the description of a module")
    fails("origin", lambda d: d.update(origin="os:system"), "does not say how a module is built")
    fails("code", lambda d: d.update(origin="python:os;x:system"), "does not say how a module is built")
    fails("package", lambda d: d.update(origin="packaged:../x"), "does not say how a module is built")
    fails("leaves", lambda d: d.update(attachments=["../newer/module.json"]), "not a plain name inside")
    fails("absolute", lambda d: d.update(attachments=["/etc/passwd"]), "not a plain name inside")
    fails("form", lambda d: d["packed"]["up"].update(form="os"), "no weight form 'os'")
    fails("arrays", lambda d: d["packed"]["up"].update(arrays=["none"]), "does not describe")
    fails("sample", lambda d: d.update(sample={"tensor": "sample:99"}), "does not describe")
    fails("same", lambda d: d.update(same={"x": "y"}), "does not describe")
    fails("axes", lambda d: d.update(strides={"up.bias": [1, 1]}), "does not describe")
    fails("bomb", lambda d: d.update(strides={"up.bias": [1 << 40]}), "does not describe")
    fails("lost", lambda d: d.pop("content"), "does not describe")


def test_files_cut_short_and_links_are_refused(model: ModuleModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    whole = (tmp_path / VALUES).read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (tmp_path / VALUES).write_bytes(whole[:length])
        with pytest.raises(BadFile):
            ModuleModel.load(tmp_path, allow_code=True)
    (tmp_path / VALUES).unlink()
    (tmp_path / VALUES).symlink_to("/etc/passwd")
    with pytest.raises(BadInput):
        ModuleModel.load(tmp_path, allow_code=True)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(BadFile, match="not JSON"):
        ModuleModel.load(tmp_path, allow_code=True)


def test_a_sample_without_a_file_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Takes(nn.Module):
        def forward(self, x: object) -> torch.Tensor:
            return torch.ones(1)

    with pytest.raises(BadInput, match="the sample holds a object"):
        ModuleModel(Takes(), (object(),)).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["packaged:minilm-l6", "timm:resnet18.a1_in1k", "python:my.models:small", "module"])
def test_an_origin_reads_back_as_it_was_written(text: str) -> None:
    assert str(Origin.parse(text)) == text
