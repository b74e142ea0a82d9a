"""Smaller networks made of given ones."""
