"""Slot weights: how linear layers are stored and multiplied."""
