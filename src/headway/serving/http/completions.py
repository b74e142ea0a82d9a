"""`/v1/chat/completions` and `/v1/completions`: what is asked becomes requests to the engine, once it may come in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from headway.core.errors import BadInput
from headway.serving.http.bodies import MOST_ANSWERS, ChatBody, CompletionBody, Sampled
from headway.serving.http.errors import ApiError
from headway.serving.http.formats import CHAT, TEXT, Writer
from headway.serving.http.reply import Reply
from headway.serving.http.served import Served, too_long
from headway.serving.messages import Submit
from headway.serving.schema import checked

ANY_OBJECT = '{"type": "object"}'
_SEEDS = random.SystemRandom()


async def chat(served: Served, body: ChatBody, salt: str) -> Reply:
    """Raises `ApiError` for what cannot be answered."""
    served.admission.check(0, body.n or 1)
    messages = [_message(message.role, message.text, message.name) for message in body.messages]
    prompt = await served.encode(await served.render(messages), start=False)
    wanted = None
    if body.logprobs:
        wanted = body.top_logprobs or 0
    elif body.top_logprobs is not None:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    requests = _requests(served, body, [prompt], most, wanted, salt)
    writer = Writer(CHAT, served.name, body.usage_in_stream, wanted is not None)
    return _reply(served, body, requests, len(prompt), writer)


async def complete(served: Served, body: CompletionBody, salt: str) -> Reply:
    """Raises `ApiError` for what cannot be answered."""
    prompts = await _prompts(served, body)
    requests = _requests(served, body, prompts, body.max_tokens, body.logprobs, salt)
    writer = Writer(TEXT, served.name, body.usage_in_stream, body.logprobs is not None)
    return _reply(served, body, requests, sum(map(len, prompts)), writer)


def _reply(served: Served, body: Sampled, requests: list[Submit], prompt_tokens: int, writer: Writer) -> Reply:
    served.admission.check(prompt_tokens, len(requests))
    stream, usage = bool(body.stream), body.usage_in_stream
    if body.stream_options is not None and not stream:
        raise ApiError(400, "stream_options needs stream=true", param="stream_options")
    return Reply(served, requests, prompt_tokens, writer, body.stops, stream=stream, usage=usage)


def _message(role: str, content: str, name: str | None) -> dict[str, Any]:
    """As templates know it: what OpenAI calls a developer is a system message."""
    said = {"role": "system" if role == "developer" else role, "content": content}
    return said if name is None else {**said, "name": name}


async def _prompts(served: Served, body: CompletionBody) -> list[list[int]]:
    prompt: Any = body.prompt
    given: Sequence[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    answers = len(given) * (body.n or 1)
    if answers > MOST_ANSWERS:
        raise ApiError(400, f"{len(given)} prompts times n={body.n} are more than {MOST_ANSWERS} answers", param="n")
    served.admission.check(0, answers)
    vocab = served.ready.vocab
    prompts = []
    for one in given:
        tokens = await served.encode(one, special=False) if isinstance(one, str) else list(one)
        if tokens and max(tokens) >= vocab:
            raise ApiError(400, f"token id {max(tokens)} is outside the vocabulary of {vocab}", param="prompt")
        if not tokens:
            raise ApiError(400, "the prompt is empty; give at least one token", param="prompt")
        prompts.append(tokens)
    return prompts


def _requests(
    served: Served,
    body: Sampled,
    prompts: Sequence[list[int]],
    most: int | None,
    logprobs: int | None,
    salt: str,
) -> list[Submit]:
    """One for each choice: prompts in order, the choices of a prompt together."""
    grammar = _grammar(body)
    seed = _SEEDS.randrange(1 << 62) if body.seed is None else body.seed % (1 << 62)
    requests = []
    for tokens in prompts:
        limit = _limit(served, len(tokens), most)
        for _ in range(body.n or 1):
            requests.append(
                Submit(
                    0,
                    tokens,
                    limit,
                    1.0 if body.temperature is None else body.temperature,
                    body.top_k,
                    1.0 if body.top_p is None else body.top_p,
                    body.min_p,
                    body.repetition_penalty,
                    seed + len(requests),
                    body.ignore_eos,
                    logprobs,
                    grammar,
                    salt,
                )
            )
    return requests


def _limit(served: Served, prompt: int, most: int | None) -> int:
    """Tokens to generate at most; raises 400 with both numbers for what the context or the pages cannot hold."""
    ready = served.ready
    context = min(ready.context, ready.pages * ready.page_tokens)
    if prompt >= context:
        raise too_long(prompt, context)
    if most is None:
        return context - prompt
    if prompt + most > context:
        raise ApiError(
            400,
            f"{prompt} tokens of prompt and max_tokens={most} exceed the context of {context}; "
            f"ask for at most {context - prompt}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return most


def _grammar(body: Sampled) -> str:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None:
        raise ApiError(400, "response_format.json_schema is missing", param="response_format")
    try:
        return checked(wanted.json_schema.schema_)
    except BadInput as error:
        raise ApiError(400, str(error), param="response_format", code="unsupported_schema") from None
