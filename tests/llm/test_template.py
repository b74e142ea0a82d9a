"""Chat templates: the bytes transformers renders, and nothing more than that."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_styles import BOMBS, CALLS, CONVERSATIONS, ESCAPES, SPECIAL, STYLES, TOOLS
from transformers.utils.chat_template_utils import render_jinja_template

from headway.core.errors import BadInput
from headway.llm import template
from headway.llm.language_model import LanguageModel
from headway.llm.template import ChatTemplate

SECONDS = 0.1
BYTES = 32 << 20


def theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """What transformers renders."""
    from jinja2.exceptions import TemplateError

    options.setdefault("add_generation_prompt", True)
    try:
        rendered, _ = render_jinja_template(conversations=[messages], chat_template=source, **SPECIAL, **options)
    except TemplateError as error:
        return f"refused: {error}"
    return str(rendered[0])


def ours(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        return ChatTemplate(source, SPECIAL).render(messages, **options)
    except BadInput as error:
        return f"refused: {str(error).partition('refuses the messages: ')[2].partition(';')[0]}"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_common_styles_render_byte_for_byte_as_in_transformers(style: str, conversation: str, prompt: bool) -> None:
    messages = CONVERSATIONS[conversation]
    expected = theirs(STYLES[style], messages, add_generation_prompt=prompt)
    assert ours(STYLES[style], messages, add_generation_prompt=prompt) == expected


def test_tools_and_calls_render_as_in_transformers() -> None:
    assert ours(STYLES["tools"], CALLS, tools=TOOLS) == theirs(STYLES["tools"], CALLS, tools=TOOLS)


@pytest.mark.parametrize("thinking", [True, False])
def test_the_thinking_switch_reaches_the_template(thinking: bool) -> None:
    messages = CONVERSATIONS["one turn"]
    expected = theirs(STYLES["thinking"], messages, enable_thinking=thinking)
    assert ours(STYLES["thinking"], messages, enable_thinking=thinking) == expected


def test_content_in_parts_renders_as_in_transformers() -> None:
    parts = [{"type": "text", "text": " a "}, {"type": "image"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    assert ours(STYLES["content parts"], messages) == theirs(STYLES["content parts"], messages)


def test_the_packaged_models_template_renders_as_in_transformers(smollm2: LanguageModel) -> None:
    assert smollm2.template is not None
    for messages in CONVERSATIONS.values():
        expected = theirs(smollm2.template.source, messages)
        assert smollm2.render(messages) == expected
        assert expected.startswith("<|im_start|>system\n")


def test_a_refusal_carries_the_templates_own_words() -> None:
    with pytest.raises(BadInput, match="refuses the messages: roles must alternate"):
        ChatTemplate(STYLES["alternating"], SPECIAL).render([{"role": "assistant", "content": "x"}])


@pytest.fixture
def worker_peaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The worker with a line that records its peak memory after every request, and when it ends."""
    source = template._WORKER.read_text()
    log = tmp_path / "peaks"
    watched = source.replace(
        "    main()\n",
        "    import threading, time\n"
        "    def watch():\n"
        "        base = 0\n"
        "        while True:\n"
        "            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "            base = base or peak\n"
        f"            open({str(log)!r}, 'a').write(f'{{peak - base}}\\n')\n"
        "            time.sleep(0.002)\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
        "    time.sleep(0.01)\n"
        "    main()\n",
    )
    script = tmp_path / "watched.py"
    script.write_text(watched)
    monkeypatch.setattr(template, "_WORKER", script)
    template._RENDERER.stop()
    yield log
    template._RENDERER.stop()


def test_every_bomb_is_stopped_within_its_time_and_memory(worker_peaks: Path) -> None:
    """Processor time of this process and of the workers that ended, a worker's start included, over all bombs."""
    template._RENDERER.stop()
    messages = CONVERSATIONS["one turn"]
    for source in BOMBS:
        start = _cpu()
        try:
            text = ChatTemplate(source, SPECIAL).render(messages)
        except BadInput as error:
            assert "\n" not in str(error)
        else:
            assert len(text) < 1 << 20, source[:80]
        # Not stopped, the smallest of them takes minutes; a worker's own start counts too.
        assert _cpu() - start <= 10 * SECONDS, source[:80]
    peaks = [int(line) << 10 for line in worker_peaks.read_text().split()]
    assert max(peaks) <= BYTES
    assert len(BOMBS) >= 60


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_python_or_files(source: str) -> None:
    try:
        text = ChatTemplate(source, SPECIAL).render(CONVERSATIONS["one turn"])
    except BadInput:
        return
    assert text.strip() in ("", "None"), text


def test_rendering_goes_on_after_a_bomb() -> None:
    messages = CONVERSATIONS["one turn"]
    for _ in range(3):
        with pytest.raises(BadInput, match="more time or memory"):
            ChatTemplate(BOMBS[[b.endswith("{{ ns.x | tojson }}") for b in BOMBS].index(True)], SPECIAL).render(
                messages
            )
        assert ours(STYLES["chatml"], messages) == theirs(STYLES["chatml"], messages)


@pytest.mark.parametrize("count", [10, 100_000, 4_000_000])
def test_long_messages_render_whole(count: int) -> None:
    text = ours(STYLES["chatml"], [{"role": "user", "content": "x" * count}])
    assert text.count("x") == count


def test_many_messages_render_whole() -> None:
    messages = [{"role": "user", "content": "hello there"}] * 5000
    assert ours(STYLES["chatml"], messages) == theirs(STYLES["chatml"], messages)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        {"role": "user", "content": "x"},
        [{"content": "x"}],
        [{"role": 3, "content": "x"}],
        ["x"],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": float("nan")}],
        [{"role": "user", "content": object()}],
        [{"role": "user", "content": "x"}] * 20000,
    ],
    ids=range(10),
)
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    with pytest.raises(BadInput):
        ChatTemplate(STYLES["chatml"], SPECIAL).render(messages)


def test_only_named_values_reach_the_template() -> None:
    source = "{{ tokenize }}{{ chat_template }}{{ messages[0].content }}"
    with pytest.raises(TypeError):
        ChatTemplate(source).render(CONVERSATIONS["one turn"], tokenize=False)  # type: ignore[call-arg]
    assert json.dumps(ours(source, CONVERSATIONS["one turn"])) == '"What is 2 + 2?"'


def test_a_template_beyond_the_size_limit_is_refused() -> None:
    with pytest.raises(BadInput, match="the limit is"):
        ChatTemplate("x" * (1 << 20) + "y")
