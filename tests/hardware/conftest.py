"""Property tests here have no deadline: a busy machine is slow, and no test is about time."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
