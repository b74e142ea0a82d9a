"""The one trainer: low-rank adapters of a frozen network, in windows of tokens that can stop anywhere."""
