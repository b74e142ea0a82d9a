"""The official `openai` client, unchanged, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from http_server import Home, Server
from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the thing in the other"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def test_a_chat_is_what_the_model_says_itself(client: openai.OpenAI, home: Home) -> None:
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, temperature=0)
    plain = [{"role": "user", "content": "the thing in the other"}]
    assert reply.choices[0].message.content == home.loaded.chat(plain, max_tokens=24)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(home.loaded.encode(home.loaded.render(plain), start=False))


def test_a_completion_is_what_the_model_generates(client: openai.OpenAI, home: Home) -> None:
    reply = client.completions.create(model="tiny", prompt="the thing", max_tokens=24, temperature=0)
    assert reply.choices[0].text == home.loaded.generate("the thing", max_tokens=24)


@pytest.mark.parametrize("stop", [None, ["e"], ["\n", "on", "z"]])
def test_a_stream_gives_the_same_text_as_the_whole(client: openai.OpenAI, stop: list[str] | None) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "on the", "max_tokens": 40, "seed": 3, "stop": stop}
    whole = client.completions.create(**asked)
    text, finish, usage = "", None, None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.text
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    assert text == whole.choices[0].text
    assert finish == whole.choices[0].finish_reason
    assert usage == whole.usage
    assert stop is None or not any(one in text for one in stop)


def test_a_chat_stream_begins_with_the_role_and_has_every_choice(client: openai.OpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    roles, finishes = [], {}
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=10, n=3, seed=1, stream=True, temperature=1.5
    )
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.delta.role:
            roles.append(choice.index)
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert sorted(roles) == [0, 1, 2]
    assert set(finishes) == {0, 1, 2}
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=10, n=3, seed=1, temperature=1.5)
    assert [choice.message.content for choice in whole.choices] == list(texts.values())
    assert len(set(texts.values())) > 1


def test_the_same_seed_repeats_and_no_seed_does_not(client: openai.OpenAI) -> None:
    def text(seed: int | None) -> str:
        return client.completions.create(model="tiny", prompt="an", max_tokens=30, seed=seed).choices[0].text

    assert text(5) == text(5) != text(6)
    assert text(None) != text(None)


def test_log_probabilities_come_with_each_token(client: openai.OpenAI, home: Home) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    told = reply.choices[0].logprobs
    assert told is not None and told.content is not None
    assert len(told.content) == 6
    for token in told.content:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
        assert token.logprob == token.top_logprobs[0].logprob < 0
    data = b"".join(bytes(token.bytes or []) for token in told.content)
    assert data.decode("utf-8", "replace") == reply.choices[0].message.content


def test_several_prompts_and_token_ids(client: openai.OpenAI, home: Home) -> None:
    reply = client.completions.create(model="tiny", prompt=["the", "an"], max_tokens=5, temperature=0)
    assert [c.text for c in reply.choices] == [home.loaded.generate(p, max_tokens=5) for p in ("the", "an")]
    ids = home.loaded.encode("the")
    assert client.completions.create(model="tiny", prompt=ids, max_tokens=5, temperature=0).choices[0].text == (
        reply.choices[0].text
    )


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "headway"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_those_that_users_of_the_client_expect(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="models are: tiny") as found:
        client.completions.create(model="gpt-4", prompt="the")
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.completions.create(model="tiny", prompt="the", temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="1020") as long:
        client.completions.create(model="tiny", prompt="the thing", max_tokens=5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="none of that kind"):
        client.embeddings.create(model="tiny", input="the")
    with pytest.raises(openai.BadRequestError, match="top_logprobs needs"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, top_logprobs=2)


def test_json_by_a_schema_is_json_by_that_schema(client: openai.OpenAI) -> None:
    from pydantic import BaseModel, Field

    class Point(BaseModel):
        x: int = Field(ge=0, le=99)
        name: str = Field(max_length=8)
        tags: list[str] = Field(max_length=2)

    schema = {**Point.model_json_schema(), "additionalProperties": False}
    reply = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "point", "schema": schema}},
    )
    assert reply.choices[0].finish_reason == "stop"
    Point.model_validate_json(reply.choices[0].message.content or "")
