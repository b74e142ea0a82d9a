"""API keys: one a line in a file; compared in constant time, known afterwards only by a digest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from headway.core.errors import BadInput

LEAST_CHARACTERS = 16
MOST_KEYS = 10_000
MOST_BYTES = 1 << 20


class Keys:
    """Empty: everybody on this machine may come in."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Blank lines and lines that begin with # do not count. Raises `BadInput` for a file that holds no good key."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise BadInput(f"{path}: more than {MOST_BYTES} bytes", "give one key a line")
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: cannot read the API keys: {error}", "give a text file, one key a line") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not 1 <= len(keys) <= MOST_KEYS:
            raise BadInput(f"{path}: {len(keys)} API keys", f"give 1..{MOST_KEYS}, one a line")
        for at, key in enumerate(keys, 1):
            if len(key) < LEAST_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise BadInput(
                    f"{path}: key {at} is no good",
                    f"use at least {LEAST_CHARACTERS} letters and digits, e.g. from: openssl rand -hex 24",
                )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, given: bytes) -> str | None:
        """The digest of a key that is right, else None; the time tells nothing of which key or how much of it."""
        digest = _digest(given)
        found = 0
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return digest.hex() if found else None


def given_key(header: bytes | None, basic: bool) -> bytes | None:
    """The key of an Authorization header: `Bearer KEY`, or where `basic` the password of what a browser asks for."""
    if header is None:
        return None
    kind, _, value = header.partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if basic and kind.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
