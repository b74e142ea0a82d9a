"""Slots: the places in a runtime where a system plugs in, and the rule each place has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headway.core.errors import BadInput


@dataclass(frozen=True)
class Slot:
    """`exclusive`: one system at a time; `per-site`: one system per module site; `ordered`: a list, in recipe order."""

    name: str
    rule: Literal["exclusive", "per-site", "ordered"]
    what: str
    searched: bool = True
    """Whether `optimize` tries systems here: one request at a time gains nothing from a scheduler."""


SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot("weights", "per-site", "how the weights of linear layers are stored and multiplied"),
        Slot("prefill", "exclusive", "attention while the prompt is read"),
        Slot("kv", "exclusive", "where keys and values live and which are attended"),
        Slot("visual-tokens", "exclusive", "which image tokens reach the language model"),
        Slot("decoding", "exclusive", "how next tokens are drafted and accepted"),
        Slot("experts", "exclusive", "how mixture-of-experts layers dispatch"),
        Slot("adapters", "ordered", "small additions to frozen weights"),
        Slot("scheduler", "exclusive", "which requests run in the next batch", searched=False),
        Slot("dispatch", "exclusive", "which instance of a fleet takes a call", searched=False),
        Slot("denoiser-steps", "ordered", "how a diffusion model walks from noise to image"),
        Slot("placement", "exclusive", "what runs where"),
        Slot("network", "exclusive", "the family of the network itself"),
        Slot("training", "ordered", "how weights are learned"),
        Slot("instrument", "ordered", "measurements and predictions"),
    )
}


def slot(name: str) -> Slot:
    """The slot of that name; raises `BadInput` naming the known ones."""
    if name not in SLOTS:
        raise BadInput(f"no slot {name!r}", f"slots are: {', '.join(SLOTS)}")
    return SLOTS[name]
