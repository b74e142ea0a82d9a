"""What the HTTP process and a model's process say to each other: fixed structs in MessagePack, never pickle.

A frame is the length of its body in 4 bytes, big end first, and the body.
"""

from __future__ import annotations

from collections.abc import Sequence

from headway.core.errors import need_extra

try:
    import msgspec
    from msgspec import Struct
except ModuleNotFoundError:
    raise need_extra("msgspec", "serve") from None

MOST_BYTES = 256 << 20
"""Of one frame: a longer one is a bug on the other side, and ends the connection."""


# To the model's process


class Setup(Struct, tag="setup"):
    """The first message: what to serve, and how. None: chosen there."""

    model: str
    recipe: str | None = None
    threads: int = 0
    seed: int = 0
    kv_bytes: int | None = None
    batch_tokens: int | None = None
    max_seqs: int = 32
    ttft_s: float | None = None
    tbt_s: float | None = None
    prefix: bool = True
    finetune: str | None = None
    """File of examples to train adapters on."""
    adapters: str = ""
    """Folder they go to."""
    allow_code: bool = False
    """Whether the function that an artifact names may be run."""


class Submit(Struct, array_like=True, tag=1):
    """One answer wanted; fields as `Request`'s and `Sampling`'s. `grammar`: a JSON schema, as text."""

    id: int
    tokens: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    ignore_end: bool = False
    logprobs: int | None = None
    grammar: str = ""
    salt: str = ""


class Cancel(Struct, array_like=True, tag=2):
    """Nobody waits for these any more; unknown ids are ignored."""

    ids: list[int]


class Embed(Struct, array_like=True, tag=3):
    """Texts whose vectors are wanted."""

    id: int
    texts: list[str]


# To the HTTP process


class Doing(Struct, tag="doing"):
    """How far the start is. `total` 0: unknown."""

    what: str
    done: float = 0.0
    total: float = 0.0
    note: bool = False


class Failed(Struct, tag="failed"):
    """It cannot serve: the words and exit code of a `HeadwayError`."""

    what: str
    mend: str
    exit_code: int


class TokenizerText(Struct):
    """A tokenizer as plain data: the library's JSON and the fields of `TokenizerInfo`."""

    content: str
    size: int
    spelling: str
    start: list[int]
    space_prefix: bool
    special: dict[str, str]


class Ready(Struct, tag="ready"):
    """It serves. `cost`: see `IterationTime.as_json`."""

    task: str
    name: str
    systems: list[str]
    context: int
    size_bytes: int
    vocab: int = 0
    eos: list[int] = []
    pages: int = 0
    page_tokens: int = 0
    page_bytes: int = 0
    max_seqs: int = 0
    kv: str = ""
    cost: dict[str, list[float] | float] = {}
    tokenizer: TokenizerText | None = None
    template: str | None = None


REFUSED = "refused: "
"""A `finish` that begins so says what was wrong with the request itself."""


class Token(Struct, array_like=True):
    """One token of one answer, and why it ended if it did (see `Event`)."""

    id: int
    token: int | None
    finish: str = ""
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None


class Stats(Struct, array_like=True):
    """The engine after a step. Pages: free + held + cached are all there are."""

    steps: int
    rows: int
    """Tokens that the step computed."""
    seconds: float
    waiting: int
    prefilling: int
    decoding: int
    free: int
    held: int
    cached: int
    idle: int
    """Cached pages that nobody uses now."""
    training: Training | None = None


class Training(Struct, array_like=True):
    """A job beside the requests."""

    step: int
    steps: int
    loss: float | None
    """Mean of the last sequence; None before the first."""
    trouble: str = ""
    """Why it stopped, or never runs."""


class Stepped(Struct, array_like=True, tag=4):
    """Everything that one step gave: one write for all streams."""

    tokens: list[Token]
    stats: Stats


class Embedded(Struct, array_like=True, tag=5):
    """Vectors as float32, row after row; `error` says why there are none."""

    id: int
    width: int
    vectors: bytes
    tokens: int
    error: str = ""


ToModel = Submit | Cancel | Embed
FromModel = Stepped | Embedded
Start = Doing | Failed | Ready
"""What comes before the first of `FromModel`."""

_encoder = msgspec.msgpack.Encoder()
setup = msgspec.msgpack.Decoder(Setup)
to_model = msgspec.msgpack.Decoder(ToModel)
from_model = msgspec.msgpack.Decoder(FromModel)
start = msgspec.msgpack.Decoder(Start)


def frame(message: Struct) -> bytes:
    """A message as it goes over the wire."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Bytes as they come -> whole bodies."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The bodies that are whole now. Raises `ValueError` for a frame longer than `MOST_BYTES`."""
        if not self._held and len(data) >= 4 and int.from_bytes(data[:4], "big") == len(data) - 4:
            return (data[4:],)
        self._held += data
        found, at = [], 0
        while len(self._held) - at >= 4:
            size = int.from_bytes(self._held[at : at + 4], "big")
            if size > MOST_BYTES:
                raise ValueError(f"a message of {size} bytes")
            if len(self._held) - at - 4 < size:
                break
            found.append(bytes(self._held[at + 4 : at + 4 + size]))
            at += 4 + size
        del self._held[:at]
        return found
