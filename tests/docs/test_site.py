"""The site builds strictly without a network, has a page for every system and verb, and loads nothing from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser
from site_text import ROOT

from headway.cli.main import VERBS
from headway.core.packaged import PACKAGED
from headway.core.registry import systems
from headway.core.slots import SLOTS

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page loads, links to and offers as anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        wanted = given.get(LOADED.get(tag, ""))
        if wanted and given.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.loads.append(wanted)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        for name in ("id", "name"):
            if given.get(name):
                self.anchors.add(given[name] or "")

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "HEADWAY_HOME": str(tmp_path_factory.mktemp("home")), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_system_has_a_page_with_its_card_and_settings(site: Path) -> None:
    for slug, entry in systems().items():
        words = Page(site / "systems" / f"{slug}.html").words
        for told in (entry.card.title, entry.card.claim, entry.card.slot, *entry.load().settings.model_fields):
            assert " ".join(told.split()) in " ".join(words.split()), f"{slug}: {told}"
        assert f"systems/{slug}.html" in (site / "systems" / "index.html").read_text() or f'href="{slug}.html"' in (
            site / "systems" / "index.html"
        ).read_text(encoding="utf-8")


def test_verbs_models_slots_and_keys_are_listed(site: Path) -> None:
    told = Page(site / "cli.html").words
    for verb in VERBS:
        assert f"Usage: headway {verb}" in told
    for model in PACKAGED.values():
        assert model.install in Page(site / "models.html").words
    for slot in SLOTS.values():
        assert slot.what in Page(site / "concepts.html").words
    assert "tokens per second" in Page(site / "grammar.html").words


def test_nothing_is_loaded_from_outside(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 12
    for page in pages.values():
        for address in page.loads:
            assert not urlsplit(address).scheme and not urlsplit(address).netloc, f"{page.path}: {address}"
            if page.path.name == "404.html":  # a server shows it at any depth, so its addresses start at the root
                continue
            file = (page.path.parent / unquote(urlsplit(address).path)).resolve()
            assert file.is_file(), f"{page.path.relative_to(site)} loads {address}"


def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for page in pages.values():
        if page.path.name == "404.html":
            continue
        for address in page.links:
            parts = urlsplit(address)
            assert not parts.scheme, f"{page.path}: {address} leaves the site"
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            target = target / "index.html" if target.is_dir() else target
            assert target in pages, f"{page.path.relative_to(site)} links to {address}"
            if parts.fragment:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page.path.name}: {address}"


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (360, "dark"), (320, "light")])
def test_pages_read_as_files_on_any_width(browser: Browser, site: Path, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if scheme == "dark" else "light", offline=True
    )
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "start", "main-path", "noise", "grammar", "cli", "add-a-system", "systems/index"):
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("load")
        wide, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= room, name
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def test_search_works_without_a_server(browser: Browser, site: Path) -> None:
    context = browser.new_context(viewport={"width": 1180, "height": 800}, offline=True)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    box = page.locator("input.md-search__input")
    box.click()
    page.wait_for_function(
        "!document.querySelector('.md-search-result__meta').textContent.includes('Initializing')", timeout=60_000
    )
    box.press_sequentially("noise floor", delay=20)
    page.locator(".md-search-result__item a", has_text="noise floor").first.wait_for(timeout=60_000)
    context.close()
