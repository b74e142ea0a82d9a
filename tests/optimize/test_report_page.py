"""The page is one file, loads nothing, runs only its own scripts, and holds every number without them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from report_example import example, proof

from headway.optimize.report.charts import bits_summary, cells, chart_data, prediction_error
from headway.optimize.report.page import SCRIPTS, page
from headway.optimize.report.run import Run, SiteBits

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>\u2028<!--'
"""A recipe or model name as an attacker would choose it."""


class Page(HTMLParser):
    """Elements with their attributes, the text of scripts, and the text people read."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


@pytest.fixture(scope="module")
def whole() -> str:
    return page([example()], [{"schema": 1}])


def test_nothing_is_fetched(whole: str) -> None:
    seen = Page(whole)
    for _, attributes in seen.elements:
        for name in ("src", "srcset", "data", "action", "poster"):
            assert name not in attributes
        link = attributes.get("href") or "#"
        assert link.startswith(("#", "data:image/svg+xml,"))
    assert not re.search(r"@import|url\(", files("headway.optimize.report").joinpath("report.css").read_text())


def test_the_policy_allows_these_scripts_and_nothing_else(whole: str) -> None:
    seen = Page(whole)
    meta = [m["content"] or "" for m in seen.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in meta[0].split(";"))
    assert rules["default-src"] == "'none'"
    kinds = [attributes.get("type") for attributes in seen.of("script")]
    running = [text for kind, text in zip(kinds, seen.scripts, strict=True) if kind is None]
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert rules["script-src"].split() == [f"'sha256-{one}'" for one in sums]
    assert len(running) == len(SCRIPTS)
    assert not any(name.startswith("on") for _, attributes in seen.elements for name in attributes)


def test_hostile_names_stay_text() -> None:
    hostile = page([example(subject=HOSTILE, winner=HOSTILE)], [{"name": HOSTILE}])
    seen, harmless = Page(hostile), Page(page([example()], [{}]))
    assert [name for name, _ in seen.elements] == [name for name, _ in harmless.elements]
    assert seen.words.count(HOSTILE) >= 3
    data = json.loads(seen.scripts[0])
    assert any(candidate["recipe"] == HOSTILE for candidate in data["runs"][0]["candidates"])


def test_the_verdict_comes_first_and_every_candidate_is_in_a_table(whole: str) -> None:
    words = Page(whole).words
    assert words.index("to spare") < words.index("Recipe, and how") < words.index("Every recipe that was")
    run = example()
    for candidate in run.candidates:
        assert candidate.recipe in words
    for text in (run.command, run.apply_command, run.recipe_toml.strip(), "±1.3%", "0.276 [0.272, 0.281]"):
        assert text in words


def test_a_page_is_about_a_megabyte(whole: str) -> None:
    assert len(whole.encode()) < 1_100_000


def test_a_proof_shows_the_papers_figure_the_bar_and_ours() -> None:
    words = Page(page([proof(met=False)])).words
    for text in ("The claim does not hold here", "0.48", "<= 0.70", "0.61", "1.41", "✗ missed", "✓ met"):
        assert text in words


def test_several_runs_get_an_overview_and_their_own_sections() -> None:
    seen = Page(page([example(), proof(met=False)]))
    assert "1 of 2 hold" in seen.words
    identifiers = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {attributes["href"] for attributes in seen.of("a")}
    assert {"#r1", "#r2"} <= targets
    assert {target[1:] for target in targets if target} <= set(identifiers)


def test_a_run_with_nothing_but_a_name_still_makes_a_page() -> None:
    words = Page(page([Run("r1", "bench", "tiny", None)])).words
    assert "Measured" in words and "tiny" in words
    assert "What was tried" not in words


def test_numbers_that_are_not_finite_are_written_as_json() -> None:
    run = example()
    odd = replace(run.ratios[0], low=0.0, high=float("inf"), floor=float("inf"))
    seen = Page(page([replace(run, ratios=(odd,))]))
    data = json.loads(seen.scripts[0], parse_constant=lambda name: pytest.fail(name))
    assert data["runs"][0]["ratios"][0]["high"] is None
    assert "too few pairs (40) to say" in seen.words


def test_sites_become_rows_by_role_and_columns_by_layer() -> None:
    made, axis = cells(example().sites)
    assert axis == "layer"
    assert (made[0]["role"], made[0]["column"]) == ("head", 0)
    down = [cell for cell in made if cell["role"] == "mlp.down"]
    assert [cell["column"] for cell in down] == list(range(30))


def test_sites_with_several_numbers_are_placed_in_execution_order() -> None:
    names = [f"blocks.{stage}.{block}.conv_pw" for stage in range(2) for block in range(3)]
    made, axis = cells([SiteBits(name, "conv1x1", "int8", 8.0, 10, 10) for name in names])
    assert axis.startswith("place")
    assert {cell["role"] for cell in made} == {"conv_pw"}
    assert [cell["column"] for cell in made] == list(range(6))


def test_bytes_by_form_add_up() -> None:
    sites = example().sites
    rows = bits_summary(sites)
    assert sum(size for _, _, size, _ in rows) == sum(site.nbytes for site in sites)
    assert sum(count for _, count, _, _ in rows) == len(sites)
    assert sum(share for *_, share in rows) == pytest.approx(1)


def test_prediction_error_is_the_median_over_candidates_with_both() -> None:
    run = example()
    errors = sorted(abs(c.predicted["tpot_s"] / c.measured["tpot_s"] - 1) for c in run.candidates)
    assert prediction_error(run, "tpot_s") == pytest.approx(errors[len(errors) // 2])
    assert prediction_error(run, "quality") is None


def test_axes_lead_with_what_was_minimised_and_limited() -> None:
    assert [axis["key"] for axis in chart_data(example())["axes"]][:2] == ["size_bytes", "tpot_s"]


def test_the_vendored_scripts_are_the_ones_the_notice_names() -> None:
    folder = files("headway.optimize.report").joinpath("vendor")
    notice = folder.joinpath("NOTICE").read_text()
    for name in SCRIPTS[:3]:
        content = folder.joinpath(name.removeprefix("vendor/")).read_bytes()
        assert hashlib.sha256(content).hexdigest() in notice
        assert f"LICENSE.{name.removeprefix('vendor/').removesuffix('.min.js')}" in notice
