"""Many requests at once: the engine, the schedulers that choose its batches, and the simulator they share."""
