"""Every route x key x Host x Origin: what is not open is closed, and a server that others can reach needs a key."""

from __future__ import annotations

import base64
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_server import Home, Server

from headway.serving.http.app import Site
from headway.serving.http.guard import BROWSED, OPEN, Names, is_loopback
from headway.serving.http.keys import Keys

RIGHT = "second-key-0123456789"
EVIL = {"host": "evil.example", "origin": "https://evil.example"}


def routes() -> list[tuple[str, str]]:
    """(method, path) of all there are, read from the application."""
    site = Site({}, {}, salted=False)
    site.app(Keys([]), Names.of("127.0.0.1"))
    found = []
    for route in site.routes:
        path = route.path.replace("{model:path}", "tiny")  # type: ignore[attr-defined]
        found += [(method, path) for method in route.methods]  # type: ignore[attr-defined]
    return sorted(found)


@pytest.fixture(scope="module")
def guarded(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# two users\nfirst-key-0123456789\n{RIGHT}\n")
    with home.serve("--api-key-file", str(path)) as server:
        yield server


def status(server: Server, method: str, path: str, headers: dict[str, str]) -> int:
    body = {} if method == "POST" else None
    return server.ask(path, body, method=method, headers=headers).status_code


def test_only_health_is_open(guarded: Server, figures: Callable[..., None]) -> None:
    asked = 0
    for method, path in [*routes(), ("GET", "/a-route-to-come"), ("POST", "/v1/another")]:
        for key in ({}, {"authorization": "Bearer wrong-key-0123456789"}, {"authorization": f"Basic {RIGHT}"}):
            expected = {200} if path in OPEN else {401}
            assert status(guarded, method, path, key) in expected, (method, path, key)
            asked += 1
        good = {"authorization": f"Bearer {RIGHT}"}
        expected = {404} if "another" in path or "to-come" in path else {400} if method == "POST" else {200}
        assert status(guarded, method, path, good) in expected, (method, path)
        for header, value in EVIL.items():
            for key in ({}, good):
                assert status(guarded, method, path, {**key, header: value}) == 403, (method, path, header)
        own = {**good, "origin": guarded.address}
        assert status(guarded, method, path, own) in expected
        asked += 6
    figures(requests=asked, routes=len(routes()))


def test_a_browser_may_give_the_key_as_a_password_for_pages_alone(guarded: Server) -> None:
    basic = {"authorization": "Basic " + base64.b64encode(f"me:{RIGHT}".encode()).decode()}
    for path in BROWSED:
        assert status(guarded, "GET", path, basic) == 200
        assert guarded.ask(path).headers["www-authenticate"].startswith("Basic")
    assert status(guarded, "POST", "/v1/completions", basic) == 401
    assert status(guarded, "GET", "/v1/models", basic) == 401


def test_a_second_header_does_not_slip_past_the_first(guarded: Server) -> None:
    good = f"Authorization: Bearer {RIGHT}"
    for lines in (("Host: localhost", "Authorization: Bearer wrong", good), ("Host: localhost", "Host: evil", good)):
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as end:
            end.sendall("\r\n".join(("GET /v1/models HTTP/1.1", *lines, "Connection: close", "", "")).encode())
            assert end.recv(4096).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_a_server_that_others_can_reach_does_not_start_without_a_key(home: Home, host: str) -> None:
    run = subprocess.run(home.command("--host", host), env=home.environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "--api-key-file" in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "a key with spaces in it\n", "key-é-0123456789abc\n"])
def test_a_file_without_a_good_key_is_refused(home: Home, tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    words = home.command("--api-key-file", str(path))
    run = subprocess.run(words, env=home.environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and str(path) in run.stderr


def test_names_and_addresses() -> None:
    here, everywhere = Names.of("127.0.0.1", ["models.example"]), Names.of("0.0.0.0")
    for good in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "models.example:443"):
        assert here.holds(good)
    for bad in (
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost:99999999",
        "10.0.0.1",
        "a b",
        "localhost@evil",
    ):
        assert not here.holds(bad)
    assert everywhere.holds("10.0.0.1:8000") and everywhere.holds("[fe80::1]")
    assert not everywhere.holds("evil.example")
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8", "0.0.0.0", "::", "a")] == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
    ]
