"""Super-resolution: networks that upscale pictures."""
