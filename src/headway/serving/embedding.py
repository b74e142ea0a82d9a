"""The process of a sentence embedder: texts in, unit vectors out, one message at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.core.errors import BadInput, HeadwayError
from headway.core.model import Model
from headway.serving.channel import Channel, Closed
from headway.serving.messages import Embed, Embedded, Ready, to_model

TOKENIZER = "tokenizer.json"


class Embedder:
    """A model of texts to vectors."""

    def __init__(self, model: Model, systems: list[str]) -> None:
        """Raises `BadInput` for a model that brings no tokenizer."""
        if TOKENIZER not in getattr(model, "attachments", {}):
            raise BadInput(f"{model.name} brings no tokenizer", "serve an embedder such as minilm-l6")
        from headway.retrieval.minilm import MAX_TOKENS

        self._model: Any = model
        self.ready = Ready("embedding", model.name, systems, MAX_TOKENS, model.size_bytes())

    def answer(self, message: Embed) -> Embedded:
        """(texts, width) float32, and how many tokens were read; a text longer than the context is an error."""
        from headway.retrieval.minilm import embed, token_counts

        counts = token_counts(self._model, message.texts)
        context = self.ready.context
        if max(counts) > context:
            return Embedded(message.id, 0, b"", 0, f"an input has {max(counts)} tokens, the context {context}")
        vectors = np.ascontiguousarray(embed(self._model, message.texts).numpy(), np.float32)
        return Embedded(message.id, vectors.shape[1], vectors.tobytes(), sum(counts))

    def serve(self, channel: Channel) -> None:
        """Run until the other side is gone."""
        try:
            while True:
                for body in channel.receive(None):
                    message = to_model.decode(body)
                    if not isinstance(message, Embed):
                        continue  # a cancelled answer is dropped by the one who asked
                    try:
                        reply = self.answer(message)
                    except HeadwayError as error:
                        reply = Embedded(message.id, 0, b"", 0, str(error))
                    channel.send(reply)
        except Closed:
            return
