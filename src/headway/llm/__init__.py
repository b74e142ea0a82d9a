"""The language-model runtime and its slots."""
