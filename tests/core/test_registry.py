"""The registry finds systems by their source alone, and a new one by its presence alone."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headway.core import registry
from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.proof import ProofContext
from headway.core.registry import entry, read_card, scan, systems

TOY = """
from headway.core.card import Card

raise RuntimeError("a scan must not run this")

SYSTEM = Card(
    slug="{slug}",
    title="Toy",
    paper="None, 2026",
    kind="transform",
    slot="weights",
    summary="does nothing",
    claim="none",
    needs=("static_weights",),
)
"""


def test_a_card_is_read_without_running_its_module(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY.format(slug="toy"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text(TOY.format(slug="deep-toy"))
    (tmp_path / "other.py").write_text("SYSTEMS = 3\n")
    found = scan(tmp_path, "package")
    assert {slug: item.module for slug, item in found.items()} == {"toy": "package.toy", "deep-toy": "package.deep"}
    assert found["toy"].card.needs == ("static_weights",)


def test_two_systems_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(TOY.format(slug="toy"))
    with pytest.raises(BadInput, match="both define 'toy'"):
        scan(tmp_path, "package")


def test_a_card_that_is_no_literal_is_refused() -> None:
    with pytest.raises(BadInput, match="literal"):
        read_card(b"\nSYSTEM = Card(\n    slug=name(),\n)\n")


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('kind="transform"', 'kind="transfrom"', "package.toy: no kind 'transfrom'"),
        ('slot="weights"', 'slot="wights"', "package.toy: no slot 'wights'"),
        ('slug="toy"', 'slug="To y"', "package.toy: 'To y' is no name"),
        ('needs=("static_weights",)', 'needs=("staticweights",)', "package.toy: no property 'staticweights'"),
        ('needs=("static_weights",)', 'breaks=("bitwise_equel",)', "package.toy: no property 'bitwise_equel'"),
        ('    claim="none",\n', "", "package.toy: SYSTEM card: claim missing"),
        ('title="Toy"', 'title="Toy" + name', "package.toy: SYSTEM card: an argument that is computed"),
    ],
)
def test_a_card_with_a_word_that_nothing_knows_is_refused_by_its_module(
    tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    (tmp_path / "toy.py").write_text(TOY.format(slug="toy").replace(right, wrong))
    with pytest.raises(BadInput, match=re.escape(said)):
        scan(tmp_path, "package")


def test_every_card_equals_the_one_its_module_makes() -> None:
    for slug, item in systems().items():
        system = item.load()
        assert system.card == item.card
        assert system.card.slug == slug
        assert isinstance(system.card, Card)
        assert all(field.description for field in system.settings.model_fields.values()), slug


def test_every_published_system_ships_a_proof_with_a_baseline() -> None:
    import importlib
    import inspect

    for slug, item in systems().items():
        if item.card.reference:
            continue
        assert item.proof_module is not None, slug
        module = importlib.import_module(item.proof_module)
        assert module.BASELINE.strip()
        assert list(inspect.signature(module.prove).parameters) == ["context"]
        assert ProofContext.__name__ in str(inspect.signature(module.prove))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(BadInput, match="lut-gemm"):
        entry("lutgemm")


def test_names_are_readable_without_torch_numpy_or_pydantic() -> None:
    code = (
        "import sys; import headway; from headway.core.registry import systems; assert 'lut-gemm' in systems();"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'scipy', 'rich') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("head", ["SYSTEM: Card = Card(", "SYSTEM : Final[Card]=Card("])
def test_a_card_may_be_annotated_and_stand_on_one_line(head: str) -> None:
    text = TOY.format(slug="toy")
    assert read_card(text.replace("SYSTEM = Card(", head).encode()) == read_card(text.encode())
    lines = text.partition("SYSTEM = ")[2].splitlines()
    one = f"{head.removesuffix('Card(')}{''.join(lines)}\n\n\ndef later(\n    given\n):\n    pass\n"
    assert read_card(one.encode()) == read_card(text.encode())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ('slug="toy", colour="red"', "no field 'colour'"),
        ('slug="toy", **more', "an argument without a name"),
        ('"toy"', "an argument without a name"),
        ("slug=3", "slug=3 is no str"),
        ('slug="toy", breaks=("a", 1)', "breaks=('a', 1) is no tuple"),
        ('slug="toy" oops', "line 7: invalid syntax"),
        ("", "slug missing"),
    ],
)
def test_what_is_wrong_with_a_card_is_said_in_one_line(changed: str, said: str) -> None:
    source = TOY.format(slug="toy").replace('slug="toy"', changed).replace("    ,\n", "")
    with pytest.raises(BadInput, match=re.escape(said)) as caught:
        read_card(source.encode())
    assert "\n" not in str(caught.value)


CLASS = """
from headway.core.system import Settings, Transform

class Toy(Transform[Settings]):
    card = SYSTEM
    settings = Settings
    applies = predict = apply = None
"""


@pytest.fixture
def plug_ins(tmp_path: Path) -> Path:
    """A package of plug-ins of which one works, another that raises as soon as it is imported, and their metadata."""
    good = TOY.format(slug="toy").replace("raise RuntimeError", "str").replace("SYSTEM = ", "SYSTEM: Card = ")
    modules = {
        "good/__init__": "",
        "good/toy": good + CLASS,
        "good/abstract": TOY.format(slug="abstract").replace("raise RuntimeError", "str")
        + CLASS.replace("= apply", ""),
        "good/fails": TOY.format(slug="fails"),
        "good/lacks": "import minijinja_of_none\n" + TOY.format(slug="lacks"),
        "good/unknown": TOY.format(slug="unknown").replace("slug=", "colour=3, slug="),
        "good/syntax": TOY.format(slug="syntax").replace("slug=", "slug=("),
        "good/called": TOY.format(slug="called").replace('"called"', "name()"),
        "good/slot": TOY.format(slug="slot").replace('"weights"', '"nowhere"'),
        "good/kind": TOY.format(slug="kind").replace('"transform"', '"trick"'),
        "good/int8": TOY.format(slug="int8"),
        "good/cardless": "SYSTEMS = 3\n",
        "bad/__init__": "raise RuntimeError('broken\\npackage')\n",
        "bad/inside": TOY.format(slug="inside"),
    }
    for name, text in modules.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    info = tmp_path / "some-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some\nVersion: 0.1\n")
    points = {name: name.replace("/", ".") for name in modules if "__init__" not in name} | {"gone": "removed.toy"}
    lines = "\n".join(f"{name.rpartition('/')[2]} = {module}" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[headway.systems]\n{lines}\n")
    return tmp_path


def headway(plug_ins: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from headway.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(plug_ins), "HEADWAY_HOME": str(plug_ins / "home")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_broken_plug_in_is_left_out_with_one_line_and_stops_no_other(plug_ins: Path) -> None:
    done = headway(plug_ins, "systems", "--json")
    assert done.returncode == 0
    listed = {card["slug"] for card in json.loads(done.stdout)["systems"]}
    assert {"toy", "fails", "lacks", "inside", "int8"} <= listed
    left_out = {
        "unknown": "no field 'colour'",
        "syntax": "line 6: ",
        "called": "literal",
        "slot": "no slot 'nowhere'",
        "kind": "no kind 'trick'",
        "int8": "Headway itself has a system 'int8'",
        "cardless": "no SYSTEM = Card(...)",
        "gone": "there is no such module",
    }
    lines = {line.split("'")[1]: line for line in done.stderr.splitlines()}
    assert len(lines) == len(done.stderr.splitlines())
    assert lines.keys() == left_out.keys()
    for name, why in left_out.items():
        assert lines[name].startswith(f"headway: left out: plug-in '{name}' (") and why in lines[name]
        assert "; " in lines[name]
    assert "toy: Toy" in headway(plug_ins, "systems", "toy").stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fails", "RuntimeError: a scan must not run this"),
        ("lacks", "No module named 'minijinja_of_none'"),
        ("abstract", "TypeError: Can't instantiate abstract class Toy"),
        ("inside", "RuntimeError: broken package"),
        ("unknown", "no field 'colour'"),
        ("gone", "there is no such module"),
    ],
)
def test_a_broken_plug_in_that_is_asked_for_is_bad_input_in_one_line(plug_ins: Path, name: str, why: str) -> None:
    done = headway(plug_ins, "systems", name)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"headway: plug-in '{name}' (") and why in last and "; " in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("files", "edited"),
    [
        ({"edited_system": "A = 1"}, "edited_system"),
        ({"edited_system": "import edited_helper", "edited_helper": "A = 1"}, "edited_helper"),
        ({"edited_system": "def f():\n    from edited_helper import A", "edited_helper": "A = 1"}, "edited_helper"),
        ({"top/__init__": "", "top/system": "from . import helper", "top/helper": "A = 1"}, "top/helper"),
        ({"top/__init__": "", "top/system": "from top.helper import A", "top/helper": "A = 1"}, "top/helper"),
        ({"top/__init__": "", "top/system": "from .a import A", "top/a": "from .b import A", "top/b": ""}, "top/b"),
        ({"top/__init__": "", "top/sub/system": "from ..b import A", "top/sub/__init__": "", "top/b": ""}, "top/b"),
        ({"top/__init__": "", "top/system": "from .sub import A", "top/sub/__init__": "A = 1"}, "top/sub/__init__"),
        ({"edited_system": "if 1: import os, edited_helper as e", "edited_helper": ""}, "edited_helper"),
        ({"top/system": "from.b import(c,  # a)\n  d)", "top/b/__init__": "", "top/b/d": ""}, "top/b/d"),
        ({"top/system": "from . \\\n  import b", "top/b": ""}, "top/b"),
        ({"spread/system": "from spread import helper", "spread/helper": "A = 1"}, "spread/helper"),
    ],
)
def test_the_digest_of_a_system_follows_its_file_and_what_it_imports_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], edited: str
) -> None:
    module = next(name for name in files if name.endswith("system")).replace("/", ".")
    files = {**files, "unrelated": "A = 1", "foreign/__init__": "import edited_helper"}
    monkeypatch.syspath_prepend(tmp_path)

    def digest() -> str:
        for name, source in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()
        for kept in (registry.source_digest, registry._read_source, registry._python_source):
            kept.cache_clear()
        return registry.source_digest(module)

    first = digest()
    assert first == digest()
    for name, same in ((edited, False), ("unrelated", True), ("foreign/__init__", True)):
        before = digest()
        files[name] += "\nB = 2"
        assert (digest() == before) == same, name
    assert not {module, edited.replace("/", ".")} & set(sys.modules)


def test_the_digest_of_a_system_follows_what_the_weights_slot_shares() -> None:
    read = set(registry._own_sources("headway.llm.weights.lut_gemm"))
    assert {"headway.llm.weights.lut_gemm", "headway.llm.weights.quantizers", "headway.core.weight"} <= read
    assert not any(name.startswith(("headway.cli", "headway.optimize", "headway.vision")) for name in read)
    assert registry.source_digest("no_such_module_at_all") == ""
