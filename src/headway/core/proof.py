"""A proof: a paper's claim as an experiment on the user's machine, beside its system and shipped with it.

A proof module (`x_proof.py`) has `BASELINE`, one sentence on what the system is compared with, and
`prove(context) -> Evidence` whose bars are the claims of the paper with the figures measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.progress import Progress
from headway.core.registry import Entry

if TYPE_CHECKING:
    from headway.core.model import Model
    from headway.core.target import Target


@dataclass
class ProofContext:
    """What a proof may use. `load` turns a MODEL name or path into a model (the main path's own `load`)."""

    target: Target
    load: Callable[[str], Model]
    model: str = ""
    """MODEL to prove on; empty: the proof's own default."""
    quick: bool = False
    """Fewer rounds and less text: the same experiment with wider intervals."""
    threads: int = 0
    seed: int = 0
    progress: Progress = field(default_factory=Progress)

    def begin(self, slug: str, threads: int, model: Model | None = None) -> Evidence:
        """The evidence of a proof that starts now, on a model where it has one."""
        evidence = Evidence.begin("prove", slug, self.target, self.seed, threads)
        return evidence if model is None else evidence.about(model)


def run(entry: Entry, context: ProofContext) -> tuple[Evidence, str]:
    """The evidence of a system's proof and its baseline's name; raises `BadInput` if it ships none.

    Where the proof names no model, the evidence is about the first one that it loaded.
    """
    name = entry.proof_module
    if name is None:
        raise BadInput(f"{entry.card.slug} ships no proof", "prove another system, or add <module>_proof.py")
    module: Any = entry.imported(name)
    models: list[Model] = []

    def load(source: str) -> Model:
        models.append(context.load(source))
        return models[-1]

    evidence: Evidence = module.prove(replace(context, load=load))
    if models and not evidence.model:
        evidence.about(models[0])
    if not evidence.bars:
        raise TypeError(f"{name}: a proof must judge at least one bar")
    return evidence, str(module.BASELINE)
