"""Memory of a model as its user will see it: a fresh process loads it and serves the workload; its peak is read."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.core.errors import HeadwayError
from headway.core.files import cache_folder
from headway.core.model import Model
from headway.core.sandbox import Limits, run_function

WALL_S = 300.0


def peak_bytes(model: Model, workload: Mapping[str, Any], threads: int) -> float:
    """Peak resident bytes over those of the empty runtime, everything imported and nothing loaded.

    A network that only its user's program can build is counted here instead: its weights, and the tensors alive at
    the peak of one forward pass.
    """
    if model.task != "language" and model.origin.kind == "module":  # type: ignore[attr-defined]
        return counted_bytes(model)
    with tempfile.TemporaryDirectory(prefix=".new-footprint-", dir=cache_folder("steps")) as folder:
        model.save(Path(folder))
        arguments = {
            "folder": folder,
            "language": model.task == "language",
            "prompt_tokens": int(workload.get("prompt_tokens", 0)),
            "threads": threads,
            "allow_code": model.task != "language" and model.origin.kind == "python",  # type: ignore[attr-defined]
        }
        outcome = run_function("headway.optimize.footprint:serve", arguments, Limits(wall_s=WALL_S))
    if not outcome.ok:
        raise HeadwayError(
            f"measuring memory of {model.name} failed: {outcome.explain()}", "free memory, or report this"
        )
    return float(outcome.value)


def counted_bytes(model: Any) -> float:
    """Stored weights and the peak of the tensors that one forward makes."""
    from headway.core.allocator import Counter

    with Counter() as counter:
        model.run(model.sample)
    return float(model.size_bytes() + counter.peak)


def serve(folder: str, language: bool, prompt_tokens: int, threads: int, allow_code: bool) -> float:
    """In the child: load and run once; gives the peak over what was resident before the model was loaded.

    allow_code: the network is built by the function that the user named to the parent.
    """
    from headway.core.resident import ResidentPeak

    if language:
        import numpy as np

        from headway.kernels import cpu
        from headway.llm import native  # noqa: F401
        from headway.llm.load import load_saved

        cpu.set_threads(threads)
        with ResidentPeak() as peak:
            model = load_saved(Path(folder))
            session = model.runtime.begin(prompt_tokens + 2)
            session.feed(np.zeros(prompt_tokens, np.int64))
            session.feed(np.zeros(1, np.int64))
        return float(peak.over_bytes)
    import torch

    from headway.core.module_files import load_module

    torch.set_num_threads(threads)
    with ResidentPeak() as peak:
        network = load_module(Path(folder), allow_code=allow_code)
        network.run(network.sample)
    return float(peak.over_bytes)
