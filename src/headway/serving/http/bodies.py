"""What a request may say: every number bounded, every unknown field refused. Names and defaults are OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from headway.llm.sampling import MAX_STOP_CHARACTERS
from headway.serving.http.errors import ApiError
from headway.serving.request import MOST_LOGPROBS

MOST_TOKENS = 1 << 20
MOST_TEXT = 1 << 20
MOST_CHOICES = 8
MOST_ANSWERS = 16
"""Choices of one request, over all its prompts."""
MOST_STOPS = 16
MOST_INPUTS = 256
MOST_MESSAGES = 4096
MOST_PARTS = 50_000
"""Lists, objects and fields of a body, brackets inside texts included: each costs more than its bytes."""
MOST_SEED = (1 << 63) - 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Id = Annotated[int, Field(ge=0, lt=MOST_TOKENS)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MOST_TOKENS, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]


class Body(BaseModel):
    """Strict: a number is no text, true is no number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class StreamOptions(Body):
    """What a stream adds."""

    include_usage: bool = False
    include_obfuscation: bool = False


class SchemaFormat(Body):
    """A named JSON schema."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """Plain text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class Sampled(Body):
    """What chat and plain completions share."""

    model: Name
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(1.0, ge=0.0, le=2.0)
    top_p: float | None = Field(1.0, ge=0.0, le=1.0)
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-MOST_SEED, le=MOST_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: float | None = Field(0.0, ge=0.0, le=0.0, description="only 0: use repetition_penalty")
    presence_penalty: float | None = Field(0.0, ge=0.0, le=0.0, description="only 0: use repetition_penalty")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = Field(None, description="not supported")
    user: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="ignored")
    # Not OpenAI's:
    top_k: int = Field(0, ge=0, le=MOST_TOKENS)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100.0)
    ignore_eos: bool = Field(False, description="go on past end tokens (benchmarks)")

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Part(Body):
    """A piece of a message: text alone."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=256, fail_fast=True)] | None = None
    name: Name | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(Sampled):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: Annotated[list[Any], Field(max_length=0, fail_fast=True)] | None = Field(None, description="not supported")
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="ignored")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="ignored")
    store: bool | None = Field(None, description="ignored")


class CompletionBody(Sampled):
    """POST /v1/completions"""

    prompt: Text | Ids | Texts | Annotated[list[Ids], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]
    max_tokens: int | None = Field(16, ge=1, le=MOST_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class EmbeddingBody(Body):
    """POST /v1/embeddings"""

    model: Name
    input: (
        Annotated[str, StringConstraints(min_length=1, max_length=1 << 16)]
        | Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=1 << 16)]],
            Field(min_length=1, max_length=MOST_INPUTS, fail_fast=True),
        ]
    )
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1, le=1 << 16)
    user: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="ignored")


B = TypeVar("B", bound=Body)


def parse(data: bytes, body: type[B]) -> B:
    """The body of a request. Raises 400 naming the field and the rule."""
    if max(data.count(b"["), data.count(b"{"), data.count(b'":')) > MOST_PARTS:
        raise ApiError(400, f"the body has more than {MOST_PARTS} lists, objects or fields")
    try:
        return body.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        names = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-", "list["))]
        param = ".".join(names) or None
        raise ApiError(400, f"{param or 'the body'}: {first['msg']}", param=param, code="invalid_value") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deep") from None
