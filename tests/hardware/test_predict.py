"""Predictions are sums of their parts and follow what they are made of."""

from dataclasses import replace

import pytest
from hardware_examples import kernel, make_target
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.hardware.predict import (
    LanguageLoad,
    LanguageShape,
    SiteLoad,
    _matrix_parts,
    predict_language,
)
from headway.hardware.rates import Rates
from headway.hardware.table import memory_table

SHAPE = LanguageShape(
    layers=4, width=256, ffn=512, heads=8, kv_heads=2, head_dim=32, vocabulary=4096, vector_bytes=9 * 256 * 4
)
TARGET = make_target(kernel("int4", 4.5), kernel("int8", 8.5), kernel("kv:f16", 16.0))
LOAD = LanguageLoad(prompt_tokens=100, output_tokens=20, kv="f16")


def sites(form="int4", bits=4.5, tied=True):
    shapes = [(256, 256), (64, 256), (64, 256), (256, 256), (512, 256), (512, 256), (256, 512)]
    body = [
        SiteLoad(f"layers.{layer}.{index}", out, inside, out * inside * bits / 8, form)
        for layer in range(4)
        for index, (out, inside) in enumerate(shapes)
    ]
    head = SiteLoad("head", 4096, 256, 4096 * 256 * 8.5 / 8, "int8", "head")
    return [*body, head] if tied else [SiteLoad("embedding", 4096, 256, 4 << 20, "dense", "embedding"), *body, head]


def predict(shape=SHAPE, of=None, load=LOAD, target=TARGET):
    return predict_language(shape, of or sites(), load, target)


@given(
    st.integers(0, 3000),
    st.integers(1, 300),
    st.sampled_from(["f32", "f16", "int8", "int4", "k8v4"]),
    st.integers(1, 4),
)
def test_every_cost_is_the_sum_of_its_parts(prompt, output, kv, threads):
    found = predict(load=LanguageLoad(prompt, output, kv=kv, threads=threads))
    assert found.costs.tpot_s == pytest.approx(sum(found.parts["tpot_s"].values()))
    assert found.costs.ttft_s == pytest.approx(sum(found.parts["ttft_s"].values()))
    assert found.costs.memory_bytes == pytest.approx(sum(found.memory.values()))
    assert all(part >= 0 for parts in found.parts.values() for part in parts.values())


def test_size_is_what_the_artifact_stores():
    assert predict().costs.size_bytes == sum(site.nbytes for site in sites()) + SHAPE.vector_bytes


@given(st.lists(st.sampled_from([(4.5, "int4"), (8.5, "int8")]), min_size=28, max_size=28), st.integers(0, 27))
def test_a_site_in_more_bytes_never_gets_cheaper(choice, which):
    def mixed(picks):
        body = [
            replace(site, form=form, nbytes=site.weights * bits / 8)
            for site, (bits, form) in zip(sites()[:-1], picks, strict=True)
        ]
        return predict(of=[*body, sites()[-1]]).costs

    low, high = list(choice), list(choice)
    low[which], high[which] = (4.5, "int4"), (8.5, "int8")
    small, large = mixed(low), mixed(high)
    assert small.tpot_s <= large.tpot_s * (1 + 1e-9)
    assert small.ttft_s <= large.ttft_s * (1 + 1e-9)
    assert small.memory_bytes < large.memory_bytes
    assert small.size_bytes < large.size_bytes


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_longer_prompt_never_costs_less(one, other):
    short, long = (predict(load=replace(LOAD, prompt_tokens=n)).costs for n in sorted((one, other)))
    assert short.ttft_s <= long.ttft_s * (1 + 1e-9)
    assert short.tpot_s <= long.tpot_s * (1 + 1e-9)
    assert short.memory_bytes <= long.memory_bytes


def test_a_window_bounds_keys_bytes_and_time():
    windowed = replace(SHAPE, windows=(16, 16, 16, 0))
    full, bounded = (
        predict(load=replace(LOAD, prompt_tokens=2000)),
        predict(windowed, load=replace(LOAD, prompt_tokens=2000)),
    )
    per_layer = full.memory["kv"] / 4
    assert bounded.memory["kv"] == pytest.approx(per_layer * (1 + 3 * 16 / 2020))
    assert bounded.parts["tpot_s"]["attention"] < 0.3 * full.parts["tpot_s"]["attention"]
    with pytest.raises(BadInput, match="windows"):
        replace(SHAPE, windows=(1, 2))


def test_the_kv_store_is_counted_by_its_data_type_and_context():
    tokens = 4 * 2 * 2 * 32  # layers, K and V, heads, head_dim
    assert predict(load=replace(LOAD, context=1000)).memory["kv"] == 1000 * tokens * 2
    assert predict(load=replace(LOAD, kv="f32")).memory["kv"] == 120 * tokens * 4
    assert predict(load=replace(LOAD, kv="packed", kv_element_bytes=0.5)).memory["kv"] == 120 * tokens * 0.5
    with pytest.raises(BadInput, match="packed"):
        predict(load=replace(LOAD, kv="packed"))


def test_an_untied_embedding_is_stored_but_not_multiplied():
    tied, untied = predict(), predict(of=sites(tied=False))
    assert untied.costs.tpot_s == tied.costs.tpot_s
    assert untied.costs.size_bytes == tied.costs.size_bytes + (4 << 20)


def test_an_expert_costs_its_share_of_a_token():
    dense = predict()
    quarter = predict(of=[replace(site, share=0.25) if site.kind == "linear" else site for site in sites()])
    head = TARGET  # the head is used by every token
    assert head is TARGET
    ratio = quarter.parts["tpot_s"]["matrices:int4"] / dense.parts["tpot_s"]["matrices:int4"]
    assert ratio == pytest.approx(0.25)
    assert quarter.costs.memory_bytes == dense.costs.memory_bytes


def test_chunks_of_a_prompt_give_the_same_products():
    whole = predict(load=replace(LOAD, prompt_tokens=1024, chunk=1024)).parts["ttft_s"]
    split = predict(load=replace(LOAD, prompt_tokens=1024, chunk=256)).parts["ttft_s"]
    assert split["matrices:int4"] == pytest.approx(whole["matrices:int4"])
    assert split["attention"] == pytest.approx(whole["attention"], rel=0.1)
    assert split["fixed"] > 0 or whole["fixed"] > 0


def test_forms_never_calibrated_are_named():
    assert predict().guessed == ()
    assert predict(of=sites(form="planes")).guessed == ("planes",)
    assert predict(target=make_target()).guessed == ("int4", "int8", "kv:f16")


def test_two_copies_in_memory_are_counted():
    twice = [replace(site, resident_bytes=2 * site.nbytes) for site in sites()]
    vectors = SHAPE.vector_bytes
    assert predict(of=twice).memory["weights"] - vectors == 2 * (predict().memory["weights"] - vectors)
    assert predict(of=twice).costs.size_bytes == predict().costs.size_bytes


def test_the_memory_table_ends_with_the_sum():
    rows = memory_table(predict())
    assert {row[0] for row in rows} == {"weights", "kv", "scratch", "sum"}
    assert rows[-1][0] == "sum"


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_sites_that_are_alike_cost_what_they_cost_one_by_one(rows):
    rates = Rates(TARGET, 1)
    experts = [replace(site, share=0.25) for site in sites(bits=4.25)]
    parts = _matrix_parts([*sites(), *experts], rows, 1 << 20, rates)
    alone = [_matrix_parts([site], rows, 1 << 20, rates) for site in (*sites(), *experts)]
    for part in ("matrices:int4", "matrices:int8"):
        assert parts[part] == pytest.approx(sum(found.get(part, 0.0) for found in alone))
