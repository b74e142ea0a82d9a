"""The live page in a real browser: it shows what runs, asks nobody else, obeys light and dark, fits a phone."""

from __future__ import annotations

import threading
import time

import pytest
from http_server import Home, Server
from playwright.sync_api import Browser, Page

BODY = {"model": "tiny", "prompt": "the thing", "max_tokens": 900, "ignore_eos": True, "n": 8}


def opened(browser: Browser, server: Server, width: int, scheme: str, **options: object) -> tuple[Page, list[str]]:
    """The page once it has looked twice, and everything it complained about or asked of others."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)  # type: ignore[arg-type]
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            wrong.append(asked.url)
            if not asked.url.startswith(server.address) and not asked.url.startswith("data:")
            else None
        ),
    )
    page.goto(server.address + "/")
    until(page, "Number(document.body.dataset.looks) >= 2")
    return page, wrong


def until(page: Page, condition: str) -> None:
    """Wait for it: the page's own policy forbids the browser driver to poll for it inside."""
    end = time.monotonic() + 120
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (390, "dark")])
def test_it_shows_a_running_engine(browser: Browser, server: Server, width: int, scheme: str) -> None:
    thread = threading.Thread(target=server.ask, args=("/v1/completions", BODY))
    thread.start()
    page, wrong = opened(browser, server, width, scheme)
    assert page.inner_text("h2") == "tiny"
    assert page.inner_text("#state") == "serving"
    assert {*page.locator("dt").all_inner_texts()} >= {
        "Queue",
        "Batch",
        "KV pages held",
        "First token",
        "Between tokens",
    }
    until(page, "[...document.querySelectorAll('figure h3')].some(h => /median up to/.test(h.textContent))")
    thread.join()
    until(page, "document.querySelectorAll('rect.bar').length > 20")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in back[4:-1].split(",")) < 384
    assert dark == (scheme == "dark")
    assert page.locator("svg[role=img]").count() >= 5
    assert wrong == []
    page.close()


def test_it_says_when_the_server_is_gone_and_shows_systems(browser: Browser, home: Home) -> None:
    with home.serve("--recipe", "sarathi-serve(token_budget=64)") as server:
        page, _ = opened(browser, server, 800, "light")
        assert page.inner_text(".systems") == "Systems on: sarathi-serve(token_budget=64)"
    until(page, "document.getElementById('state').textContent === 'not reachable'")
    page.close()


def test_a_key_opens_it(browser: Browser, home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("first-key-0123456789\n")
    with home.serve("--api-key-file", str(path)) as server:
        credentials = {"username": "me", "password": "first-key-0123456789"}
        page, wrong = opened(browser, server, 800, "light", http_credentials=credentials)
        assert page.inner_text("#state") == "serving"
        assert wrong == [] or all("401" in text for text in wrong)
        page.close()
