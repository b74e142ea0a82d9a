"""The native runtime of networks over images: a module is captured once, lowered to steps, and run in one crossing."""
