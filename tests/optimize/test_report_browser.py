"""The report in a real browser, without a network: it draws, answers to pointer and keyboard, and fits a phone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from report_example import WINNER, example, loaded, proof

from headway.optimize.report.page import page

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@dataclass
class Opened:
    """A page with everything it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reports")
    (made / "met.html").write_text(page([example()], [{"schema": 1}]), encoding="utf-8")
    (made / "missed.html").write_text(page([example(met=False), proof(met=False)]), encoding="utf-8")
    (made / "hostile.html").write_text(page([example(subject=HOSTILE, winner=HOSTILE)]), encoding="utf-8")
    (made / "load.html").write_text(page([loaded()]), encoding="utf-8")
    return made


def show(
    browser: Browser, file: Path, *, width: int = 1180, height: int = 900, scheme: str = "light", media: str = "screen"
) -> Opened:
    """Open a file with no network and wait until every chart is drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        offline=True,
        reduced_motion="reduce",
    )
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.emulate_media(media="print" if media == "print" else "screen")
    opened.page.goto(file.as_uri())
    opened.page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=60_000)
    return opened


def winner_mark(opened: Opened) -> tuple[float, float]:
    """Where the winner is drawn, scrolled into view."""
    opened.page.locator("#r1-front .plot").scroll_into_view_if_needed()
    opened.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    mark = opened.page.locator("#r1-front .plot path[aria-label*='winner']")
    box = mark.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("name", ["met", "missed", "hostile", "load"])
def test_it_draws_every_chart_and_asks_for_nothing(browser: Browser, folder: Path, name: str) -> None:
    opened = show(browser, folder / f"{name}.html")
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    plots = opened.page.locator(".plot[data-chart]")
    for index in range(plots.count()):
        box = plots.nth(index).locator("svg.marks").bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 40
    for index in range(opened.page.locator(".hero .mark").count()):
        box = opened.page.locator(".hero .mark").nth(index).bounding_box()
        assert box is not None and 20 < box["width"] < 60
    opened.page.context.close()


def test_hostile_names_run_nothing(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "hostile.html")
    opened.page.mouse.move(*winner_mark(opened))
    assert HOSTILE in opened.page.locator("#tip").inner_text()
    assert HOSTILE in opened.page.locator("#r1 .chosen").inner_text()
    assert "owned" not in opened.page.title().replace(HOSTILE, "")
    assert opened.page.locator("img").count() == 0
    opened.page.context.close()


def test_pointing_at_a_point_shows_its_recipe_and_numbers(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "met.html")
    tip = opened.page.locator("#tip")
    assert tip.is_hidden()
    opened.page.mouse.move(*winner_mark(opened))
    tip.wait_for(state="visible")
    words = tip.inner_text()
    assert WINNER in words
    for text in ("the winner", "71.2\u202fMB", "71.3\u202fMB", "0.9816"):
        assert text in words
    opened.page.mouse.move(5, 5)
    tip.wait_for(state="hidden")
    opened.page.context.close()


def test_the_axis_can_be_chosen_and_the_chart_follows(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "met.html")
    front = opened.page.locator("#r1-front")
    assert front.locator("svg.marks").get_by_text("size, MB").count() == 1
    before = winner_mark(opened)
    front.get_by_role("radio", name="Latency per token").check()
    front.locator("svg.marks").get_by_text("latency per token, ms/token").wait_for()
    assert front.locator("svg.marks").get_by_text("latency per token ≤ 6").count() >= 1
    assert winner_mark(opened) != before
    front.get_by_role("checkbox", name="predictions").check()
    front.get_by_role("checkbox", name="only near the quality limit").check()
    opened.page.wait_for_timeout(300)
    assert opened.complaints == []
    opened.page.context.close()


def test_the_keyboard_reaches_every_candidate_and_control(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "met.html")
    row = opened.page.locator("#r1-front tr[data-candidate='c3'] button.pick")
    row.focus()
    opened.page.keyboard.press("Enter")
    assert "lut-gemm(bits=8, group_size=128)" in opened.page.locator("#r1 .chosen").inner_text()
    stops = opened.page.evaluate(
        "[...document.querySelectorAll('button, summary, a[href], input')].filter(e => e.tabIndex < 0).length"
    )
    assert stops == 0
    opened.page.context.close()


def test_a_load_run_draws_each_rate_twice_and_follows_what_is_chosen(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "load.html")
    card = opened.page.locator("#r1-load")
    waits = card.locator(".plot[data-chart='waits']")
    assert waits.locator("svg.marks .mark-line path").count() == 6  # three rates, engine and simulator
    dashes = waits.locator("svg.marks .mark-line path").evaluate_all(
        "lines => lines.map(line => getComputedStyle(line).strokeDasharray)"
    )
    assert sum(dash.startswith("5") for dash in dashes) == 3
    assert waits.get_by_text("time to first token").count() == 1
    card.get_by_role("radio", name="Time between tokens").check()
    waits.locator("svg.marks").get_by_text("time between tokens").wait_for()
    running = card.locator(".plot[data-chart='running'] svg.marks")
    before = running.inner_html()
    card.get_by_role("radio", name="1.2/s").check()
    opened.page.wait_for_timeout(300)
    assert running.inner_html() != before
    assert opened.complaints == []
    opened.page.context.close()


def test_pointing_at_a_load_run_tells_rate_engine_or_simulator_and_value(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "load.html")
    mark = opened.page.locator("#r1-load .plot[data-chart='attainment'] .mark-symbol path").first
    mark.scroll_into_view_if_needed()
    opened.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = mark.bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = opened.page.locator("#tip")
    tip.wait_for(state="visible")
    words = tip.inner_text()
    assert "0.4/s" in words and "Within the limits" in words and "%" in words
    for name, said in (("waits", ("engine", "of the requests")), ("pages", ("Pages in use", "%"))):
        plot = opened.page.locator(f"#r1-load .plot[data-chart='{name}']")
        plot.scroll_into_view_if_needed()
        opened.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = plot.locator(".mark-symbol path").nth(60).bounding_box()
        assert box is not None
        opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        opened.page.wait_for_function(f"document.getElementById('tip').innerText.includes({said[0]!r})")
        assert said[1] in tip.inner_text()
    opened.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["met", "load"])
def test_no_width_scrolls_sideways(browser: Browser, folder: Path, tmp_path: Path, name: str, scheme: str) -> None:
    opened = show(browser, folder / f"{name}.html", scheme=scheme)
    for width, height in ((1180, 900), (768, 1024), (360, 740), (320, 640)):
        opened.page.set_viewport_size({"width": width, "height": height})
        opened.page.wait_for_timeout(400)
        wide, room, drawn = opened.page.evaluate(
            """[document.documentElement.scrollWidth, document.documentElement.clientWidth,
                Math.max(...[...document.querySelectorAll('svg.marks')].map(s => s.getBoundingClientRect().right))]"""
        )
        assert wide <= room
        assert drawn <= room
        picture = opened.page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        assert len(picture) > 20_000
    assert opened.complaints == []
    opened.page.context.close()


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """WCAG 2 contrast ratio of two sRGB colours, 0..255."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour[:3])]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_colours_stand_out_from_their_ground(browser: Browser, folder: Path, scheme: str) -> None:
    opened = show(browser, folder / "met.html", scheme=scheme)
    read = """name => {
        const probe = document.createElement('i');
        probe.style.color = `var(--${name})`;
        document.body.append(probe);
        const found = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number);
        probe.remove();
        return found;
    }"""

    def colour(name: str) -> tuple[float, ...]:
        return tuple(opened.page.evaluate(read, name))

    for ink in ("text", "muted", "ok", "bad", "winner", "link", "base"):
        assert contrast(colour(ink), colour("surface")) >= 4.5, ink
    for ink in ("text", "muted"):
        assert contrast(colour(ink), colour("raised")) >= 4.5, ink
    for ink in ("front", "guess", "again", *(f"rate-{place}" for place in range(1, 7))):
        assert contrast(colour(ink), colour("surface")) >= 3, ink
    for bits in ("2", "3", "4", "6", "8", "16"):
        assert contrast(colour(f"bits-{bits}-ink"), colour(f"bits-{bits}")) >= 4.5, bits
    opened.page.context.close()


def test_it_prints_in_light_colours_without_controls(browser: Browser, folder: Path) -> None:
    opened = show(browser, folder / "met.html", width=720, scheme="dark", media="print")
    wide, room = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= room
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    ink = opened.page.evaluate("getComputedStyle(document.body).color")
    assert contrast(tuple(float(v) for v in ink[4:-1].split(",")), (255, 255, 255)) > 10
    assert opened.page.locator("#r1-front .controls").is_hidden()
    assert opened.page.locator("#r1-front svg.marks").is_visible()
    assert len(opened.page.pdf()) > 50_000
    opened.page.context.close()


def test_without_scripts_every_number_is_still_there(browser: Browser, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    opened = context.new_page()
    opened.goto((folder / "met.html").as_uri())
    words = opened.locator("body").inner_text()
    for candidate in example().candidates:
        assert candidate.recipe in words
    assert "every number is in the tables" in words
    context.close()
