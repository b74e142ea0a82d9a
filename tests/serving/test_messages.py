"""Frames come out as they went in, wherever the stream is cut; a damaged length ends it."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.serving.channel import Channel, Closed
from headway.serving.messages import (
    MOST_BYTES,
    Cancel,
    Embedded,
    Frames,
    Stats,
    Stepped,
    Submit,
    Token,
    frame,
    from_model,
    to_model,
)

STATS = Stats(7, 3, 0.25, 1, 2, 3, 4, 5, 6, 2)


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_frames_survive_any_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    frames, found, at, turn = Frames(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        found += frames.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == bodies


def test_messages_come_back_equal() -> None:
    submit = Submit(3, [1, 2, 3], 20, 0.5, 4, 0.9, 0.1, 1.2, 9, True, 2, '{"type": "object"}', "salt")
    for message in (submit, Cancel([1, 2])):
        assert to_model.decode(frame(message)[4:]) == message
    step = Stepped([Token(1, 5), Token(2, None, "length"), Token(3, 7, "", -0.5, [(7, -0.5)])], STATS)
    for answer in (step, Embedded(4, 2, b"12345678", 3)):
        assert from_model.decode(frame(answer)[4:]) == answer


def test_a_length_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="a message of"):
        Frames().feed((MOST_BYTES + 1).to_bytes(4, "big") + b"x")


def test_a_reader_that_does_not_read_never_holds_up_the_writer() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        step = Stepped([Token(at, at) for at in range(2000)], STATS)
        for _ in range(200):
            channel.send(step)  # some 2 MB: far more than the socket holds
        frames, found = Frames(), 0
        theirs.settimeout(10)
        while found < 200:
            if not channel.receive(0.0):
                found += sum(from_model.decode(body) == step for body in frames.feed(theirs.recv(1 << 20)))
        theirs.close()
        with pytest.raises(Closed):
            channel.receive(1.0)
