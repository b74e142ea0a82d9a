"""Slot kv: where keys and values live."""
