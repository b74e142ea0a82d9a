"""Which instance of a fleet takes a request: the protocol, its plain reference, and the systems of this place."""
