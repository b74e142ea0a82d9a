"""GGUF files: a bounded header reader and the exact value of every common quantised block."""
