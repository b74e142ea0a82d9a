"""Slot scheduler: which requests run in the next batch. The same objects run in the engine and the simulator."""
