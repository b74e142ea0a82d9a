"""The HTTP face of the engine: OpenAI's routes, keys and limits, metrics, and a live page."""
