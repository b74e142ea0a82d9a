"""For each type of llama.cpp a recipe with no more bytes, no higher perplexity and 1.5x its decode tokens/s.

    python benchmarks/front.py [MODEL] [--recipe RECIPE ...] [--types Q2_K,Q4_0,...] [--windows 12] [--json]

Recipes and types take turns in one run of `bench`, on the same text and threads, so that every type meets every recipe
in the same minutes. Exit 1 when a type has no such recipe; the table then names the one that comes nearest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import headway
from headway.core.progress import Progress
from headway.core.units import show
from headway.llm.language_model import LanguageModel
from headway.optimize import api
from headway.optimize.bench import Load, bench
from headway.optimize.engines.llama_cpp import TYPES

FASTER = 1.5
"""The bar: a recipe's decode tokens/s over the type's."""
RECIPES = (
    "(unmodified)",
    "lut-gemm(bits=4, group_size=32)",
    "lut-gemm(bits=4, group_size=64)",
    "lut-gemm(bits=3, group_size=32)",
    'lut-gemm(bits=4, group_size=32, only="head")',
    'lut-gemm(bits=4, group_size=64, only="head")',
    'lut-gemm(bits=3, group_size=32, only="head")',
)


def margins(recipe: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, float]:
    """What the recipe has over the type, each held when it is at least 1."""
    return {
        "bytes": peer["size_bytes"] / recipe["size_bytes"],
        "perplexity": peer["perplexity"] / recipe["perplexity"],
        "speed": recipe["decode_tok_s"] / peer["decode_tok_s"] / FASTER,
    }


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Type by type, the recipe whose least margin is largest."""
    ours = [row for row in rows if row["engine"].startswith("headway")]
    found = []
    for peer in (row for row in rows if row["engine"].startswith("llama.cpp")):
        best = max(ours, key=lambda row: min(margins(row, peer).values()))
        held = margins(best, peer)
        found.append(
            {
                "type": peer["engine"].partition(":")[2],
                "recipe": best["engine"].partition(":")[2] or "(unmodified)",
                "met": min(held.values()) >= 1.0,
                "misses": [name for name, margin in held.items() if margin < 1.0],
                "size_bytes": best["size_bytes"],
                "perplexity": best["perplexity"],
                "decode_tok_s": best["decode_tok_s"],
                "speed_up": held["speed"] * FASTER,
                "peer": {key: peer[key] for key in ("size_bytes", "perplexity", "decode_tok_s")},
            }
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--recipe", action="append", help="may be repeated; default: uniform settings")
    parser.add_argument("--types", default=",".join(name for name in TYPES if name != "F16"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    threads = api.use_threads(options.threads or len(os.sched_getaffinity(0)))
    original = headway.load(options.model)
    assert isinstance(original, LanguageModel)
    recipes = [str(api.read_steps(recipe)) for recipe in options.recipe or RECIPES]
    made = {
        f"headway:{recipe}": original if recipe == "(unmodified)" else api.apply(recipe, original, threads=threads)
        for recipe in recipes
    }
    first, *others = made
    progress = Progress()
    result = bench(
        made[first],
        api.machine(progress),
        against=[f"llama.cpp:{name}" for name in options.types.split(",")],
        original=original,
        beside={name: made[name] for name in others},
        load=Load(prefill=16, windows=options.windows),
        threads=threads,
        rounds=options.rounds,
        progress=progress,
    )
    rows = [{**row, "engine": first} if row["engine"] == "headway" else row for row in result.rows]
    found = judged(rows)
    if options.as_json:
        print(json.dumps({"threads": threads, "front": found, "engines": rows}))
    else:
        print(f"{'recipe':46} {'size':>8} {'perplexity':>10} {'tok/s':>7}")
        for row in rows:
            if row["engine"] in made:
                print(
                    f"{row['engine'].partition(':')[2]:46} {show(row['size_bytes'], 'B'):>8} "
                    f"{row['perplexity']:10.3f} {row['decode_tok_s']:7.0f}"
                )
        print(f"\n{'type':7} {'size':>8} {'perplexity':>10} {'tok/s':>7}   recipe{'':40} {'speed':>6}")
        for at in found:
            peer, verdict = at["peer"], "met" if at["met"] else f"MISSED: {', '.join(at['misses'])}"
            print(
                f"{at['type']:7} {show(peer['size_bytes'], 'B'):>8} {peer['perplexity']:10.3f} "
                f"{peer['decode_tok_s']:7.0f}   {at['recipe']:46} {at['speed_up']:5.2f}x   {verdict}"
            )
    return int(not all(at["met"] for at in found))


if __name__ == "__main__":
    sys.exit(main())
