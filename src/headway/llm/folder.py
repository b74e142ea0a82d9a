"""A model folder that is not trusted: plain files inside it, read within limits, never through a link."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from headway.core.errors import BadFile, BadInput
from headway.core.files import explained, open_beneath
from headway.core.jsontext import parse_json
from headway.llm.safetensors_file import SafetensorsFile


class Folder:
    """Every access goes through `open`, which refuses what leaves the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name, whatever it is."""
        return os.path.lexists(self.path / name)

    def open(self, name: str) -> int:
        """Descriptor of a regular file. Raises `BadInput` for links (hard ones too), `..`, pipes and devices."""
        descriptor = open_beneath(self.path, name)
        if os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            raise BadInput(f"{self.path / name} is also another file (a hard link)", "copy the folder: cp -rL")
        return descriptor

    def read(self, name: str, limit: int) -> bytes:
        """The file's bytes; `BadFile` where there are more than `limit`."""
        with explained(self.path / name), os.fdopen(self.open(name), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BadFile(self.path / name, limit, f"the file is longer than {limit} bytes")
        return data

    def text(self, name: str, limit: int) -> str:
        try:
            return self.read(name, limit).decode()
        except UnicodeDecodeError as error:
            raise BadFile(self.path / name, error.start, "the text is not UTF-8") from None

    def json(self, name: str, limit: int) -> dict[str, Any]:
        """The object in a JSON file."""
        value = parse_json(self.read(name, limit), self.path / name)
        if not isinstance(value, dict):
            raise BadFile(self.path / name, 0, "not a JSON object")
        return value

    def json_if_any(self, name: str, limit: int) -> dict[str, Any]:
        """The same; an absent file is an empty object."""
        return self.json(name, limit) if self.has(name) else {}

    def tensors(self, name: str) -> SafetensorsFile:
        return SafetensorsFile(self.path / name, self.open(name))
