"""`LanguageSubject`: a language model as the main path sees it: prompts in, tokens out, perplexity on text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.model import Site
from headway.core.statistics import perplexity_ratio
from headway.core.target import Target
from headway.core.workload import Texts, Workload, default_texts, user_function
from headway.hardware.predict import LanguageLoad, LanguageShape, SiteLoad, kv_element_bytes, predict_language
from headway.hardware.rates import Rates
from headway.llm import scoring
from headway.llm.language_model import LanguageModel
from headway.llm.room import KV_PAGE, language_shape
from headway.llm.runtime import I64
from headway.optimize.subject import Split

WINDOW = 512
SEARCH_WINDOWS = 8
HELDOUT_WINDOWS = 12
CALIBRATION_WINDOWS = 16
LEAST_WINDOWS = 2
DECODED = 8
"""Tokens decoded by one repetition of the decode clock."""


class LanguageSubject:
    """Times one prompt and decoding after it; scores windows of 512 tokens against the exact original."""

    latency_metric = "tpot_s"
    loss_power = 1.0

    def __init__(self, model: LanguageModel, workload: Workload) -> None:
        self.model = model
        self.workload = workload
        self.texts: Texts = workload.texts or default_texts()
        self.window = min(WINDOW, model.architecture.context)
        self.exact = model.with_runtime("exact")
        self._original: dict[tuple[Split, int], Any] = {}
        room = model.architecture.context - DECODED
        if workload.context > room:
            raise BadInput(
                f"a context of {workload.context} tokens does not fit {model.name}", f"there is room for {room}"
            )
        self.prompt_tokens = min(workload.prompt_tokens, max(1, room // 2))
        self.user = user_function(workload.quality) if ":" in workload.quality else None

    def on(self, model: LanguageModel) -> LanguageSubject:
        made = copy.copy(self)
        made.model = model
        return made

    def describe(self) -> Mapping[str, Any]:
        return self._described

    @cached_property
    def _described(self) -> Mapping[str, Any]:
        return {
            **Workload(
                self.prompt_tokens,
                self.workload.output_tokens,
                self.workload.context,
                self.texts,
                quality=self.workload.quality,
            ).as_json(),
            "window": self.window,
            "windows": {split: self.units(split) for split in ("search", "heldout")},
        }

    def _windows(self, text: str, most: int, what: str) -> list[I64]:
        """Whole windows from the start of a text; raises `BadInput` when there are too few to judge by."""
        found = scoring.windows(self.model, text[: most * self.window * 16], self.window)
        whole = [part for part in found if len(part) == self.window][:most]
        if len(whole) < LEAST_WINDOWS:
            has, wants = sum(len(part) for part in found), LEAST_WINDOWS * self.window
            raise BadInput(
                f"the {what} text has {has} tokens, {LEAST_WINDOWS} windows of {self.window} need {wants}",
                "give a longer text with --text",
            )
        return whole

    @cached_property
    def splits(self) -> Mapping[Split, list[I64]]:
        return {
            "search": self._windows(self.texts.search, SEARCH_WINDOWS, "search"),
            "heldout": self._windows(self.texts.heldout, HELDOUT_WINDOWS, "held-out"),
        }

    def calibration(self) -> Sequence[tuple[Any, ...]]:
        import torch

        parts = self._windows(self.texts.calibration, CALIBRATION_WINDOWS, "calibration")
        return [(torch.from_numpy(np.stack(parts[at : at + 2])),) for at in range(0, len(parts), 2)]

    def clocks(self, model: LanguageModel) -> Mapping[str, tuple[Callable[[], object], int]]:
        tokens = np.concatenate(self.splits["search"])
        prompt = np.resize(tokens, self.prompt_tokens)
        depth = self.workload.context or len(prompt)
        after = np.resize(tokens[::-1], DECODED)
        session = model.runtime.begin(depth + DECODED)
        session.feed(np.resize(tokens, depth))

        def decode() -> None:
            for token in after:
                session.feed(np.array([token]))
            session.rewind(depth)

        def read_prompt() -> None:
            model.runtime.begin(len(prompt)).feed(prompt)

        return {"tpot_s": (decode, DECODED), "ttft_s": (read_prompt, 1)}

    def units(self, split: Split) -> int:
        return len(self.splits[split])

    def qualities(
        self, models: Sequence[LanguageModel], split: Split, units: int, full: bool
    ) -> list[Mapping[str, float]]:
        parts = self.splits[split][:units]
        if self.user is not None:
            return [{"quality": float(self.user(self.exact, model, parts))} for model in models]
        if full:
            return [
                {
                    **self._quality(seen.candidate, seen.original, parts),
                    "kl": seen.mean_kl,
                    "top1_agreement": seen.top1_agreement,
                    "perplexity": float(np.exp(-seen.candidate.mean())),
                }
                for seen in scoring.compare(self.exact, models, parts)
            ]
        original = np.concatenate([self._log_probabilities(split, number) for number in range(len(parts))])
        return [self._quality(scoring.log_probabilities(model, parts), original, parts) for model in models]

    def _quality(self, candidate: scoring.F64, original: scoring.F64, parts: Sequence[I64]) -> dict[str, float]:
        ratio = perplexity_ratio(candidate, original, windows=[len(part) - 1 for part in parts])
        return {
            "quality": float(np.exp(candidate.mean() - original.mean())),
            "quality_low": 1.0 / ratio.high,
            "quality_high": 1.0 / ratio.low,
        }

    def _log_probabilities(self, split: Split, number: int) -> Any:
        key = (split, number)
        if key not in self._original:
            self._original[key] = scoring.log_probabilities(self.exact, [self.splits[split][number]])
        return self._original[key]

    @cached_property
    def shape(self) -> LanguageShape:
        return language_shape(self.model.architecture)

    def predict(
        self,
        target: Target,
        stored: Mapping[str, tuple[str, float]],
        threads: int,
        plugged: LanguageModel | None = None,
    ) -> Mapping[str, Mapping[str, float]]:
        loads = [
            SiteLoad(
                site.name, site.out_features, site.in_features, stored[site.name][1], stored[site.name][0], site.kind
            )
            for site in self.model.sites()
        ]
        kv = (plugged or self.model).kv
        load = LanguageLoad(
            prompt_tokens=self.prompt_tokens,
            output_tokens=DECODED,
            context=self.workload.context,
            kv=kv,
            kv_element_bytes=kv_element_bytes(kv, self.model.architecture.head_dim),
            kv_page=KV_PAGE,
            threads=threads,
        )
        made = predict_language(self.shape, loads, load, target)
        return {
            "tpot_s": made.parts["tpot_s"],
            "ttft_s": made.parts["ttft_s"],
            "memory_bytes": made.memory,
            "size_bytes": {"weights": made.costs.size_bytes or 0.0},
        }

    def site_seconds(self, target: Target, site: Site, form: str, nbytes: float, threads: int) -> float:
        if site.kind == "embedding":
            return 0.0
        whole = sum(self.model.weight(other.name).nbytes for other in self.model.sites())
        return Rates(target, threads).product_s(form, nbytes, float(site.parameters), 1.0, whole)
