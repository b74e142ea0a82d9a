"""What holds for every test: Triton interprets its kernels, property tests have no deadline on a busy machine."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by torch too

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
