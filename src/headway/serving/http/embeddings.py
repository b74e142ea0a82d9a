"""`/v1/embeddings`: texts to vectors, in the embedder's own process."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
from starlette.responses import Response

from headway.serving.http.bodies import EmbeddingBody
from headway.serving.http.errors import ApiError, internal
from headway.serving.http.served import Served

MOST_UNDER_WAY = 64


async def embed(served: Served, body: EmbeddingBody) -> Response:
    """Raises `ApiError` for what cannot be embedded."""
    if served.backend.answers >= MOST_UNDER_WAY:
        raise ApiError(429, "the queue is full; try again shortly", code="queue_full", retry_after_s=1)
    texts = [body.input] if isinstance(body.input, str) else body.input
    found = await served.backend.embed(texts)
    if found.error:
        raise ApiError(400, found.error, param="input", code="context_length_exceeded")
    if body.dimensions is not None and body.dimensions != found.width:
        raise ApiError(400, f"dimensions={body.dimensions}; {served.name} gives {found.width}", param="dimensions")
    if len(found.vectors) != 4 * found.width * len(texts):
        raise internal()
    rows = np.frombuffer(found.vectors, np.float32).reshape(len(texts), found.width)
    plain = body.encoding_format != "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": row.tolist() if plain else base64.b64encode(row.tobytes()).decode(),
        }
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    served.count(found.tokens, 0)
    document = {"object": "list", "data": data, "model": served.name, "usage": usage}
    return Response(msgspec.json.encode(document), media_type="application/json")
