"""Chat templates in the styles that model families write, and conversations to render with them."""

from __future__ import annotations

from typing import Any

STYLES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
        "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "default system": (
        "{%- if messages[0].role == 'system' -%}\n    {%- set system = messages[0].content -%}\n"
        "    {%- set rest = messages[1:] -%}\n{%- else -%}\n    {%- set system = 'You help.' -%}\n"
        "    {%- set rest = messages -%}\n{%- endif -%}\n{{ bos_token }}<<SYS>>{{ system | trim }}<</SYS>>\n"
        "{% for m in rest %}\n    {% if m.role == 'user' %}\n[INST] {{ m.content }} [/INST]\n    {% else %}\n"
        "{{ m.content }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n"
    ),
    "headers": (
        "{{- bos_token }}\n{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
        "+ '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "alternating": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token}}{% endif %}{% endfor %}"
    ),
    "turns": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim "
        "+ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "tags": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] "
        "+ eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}"
        "\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "plain words": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}USER: "
        "{{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "instruction": (
        "{% set ns = namespace(seen=false) %}{% for m in messages %}{% if m.role == 'system' and not ns.seen %}"
        "{{ m.content }}{% set ns.seen = true %}{% endif %}{% if m.role == 'user' %}{{ '\n\n### Instruction:\n' ~ "
        "m.content }}{% elif m.role == 'assistant' %}{{ '\n\n### Response:\n' ~ m.content }}{% endif %}{% endfor %}"
        "{{ '\n\n### Response:\n' if add_generation_prompt }}"
    ),
    "tools": (
        "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n        {{- '\\n' }}\n"
        "        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '\\n</tools>\\n' }}\n{%- endif %}\n"
        "{%- for m in messages %}\n    {%- if m.tool_calls is defined and m.tool_calls %}\n"
        '        {%- for call in m.tool_calls %}\n            {{- \'<call>{"name": "\' + call.function.name + '
        "'\", \"arguments\": ' }}{{ call.function.arguments | tojson }}{{- '}</call>' }}\n        {%- endfor %}\n"
        "    {%- else %}\n        {{- m.role + ': ' + m.content + '\\n' }}\n    {%- endif %}\n{%- endfor %}"
    ),
    "thinking": (
        "{%- macro turn(role, text) -%}\n<{{ role }}>{{ text }}</{{ role }}>\n{% endmacro -%}\n"
        "{%- for m in messages %}\n    {%- set text = m.content %}\n    {%- if m.role == 'assistant' and "
        "'</think>' in text %}\n        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}\n    {%- endif %}\n"
        "    {{- turn(m.role, text) }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<assistant>' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
    ),
    "content parts": (
        "{% for m in messages %}<{{ m['role'] | upper }}>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% if not loop.last %} "
        "{% endif %}{% endfor %}{% endif %}{% endfor %}"
    ),
    "training marks": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.role }}> {{ m.content }}\n{% endif %}{% endfor %}"
    ),
    "loop control": (
        "{%- set last = namespace(index=-1) -%}\n{%- for m in messages -%}{%- if m.role == 'user' -%}"
        "{%- set last.index = loop.index0 -%}{%- endif -%}{%- endfor -%}\n{%- for m in messages -%}\n"
        "{%- if loop.index0 < last.index -%}{%- continue -%}{%- endif -%}\n{{ loop.index }}/{{ loop.length }} "
        "{{ m.content.replace('\\n', ' ').strip() }};\n{%- endfor -%}"
    ),
    "filters": (
        "{{ messages | map(attribute='role') | join(', ') }} | {{ messages | selectattr('role', 'equalto', 'user') | "
        "list | length }} | {{ (messages | last).content | upper | replace('A', '4') }} | "
        "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first | default('none') }} "
        "| {{ '%s said %d' | format('they', messages | length) }}"
    ),
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "What is 2 + 2?"}],
    "system and turns": [
        {"role": "system", "content": "  Be brief.  "},
        {"role": "user", "content": "Hi <|im_end|> & \"quotes\" 'single' <b>"},
        {"role": "assistant", "content": "<think>hm</think>\n\nHello 🙂"},
        {"role": "user", "content": "naïve\n\n日本語\t{{ not a template }}"},
    ],
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Today's <weather> & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bern", "Zürich"]}}},
        },
    }
]

CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "far": None}}}],
    },
    {"role": "tool", "content": "sunny"},
]

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

_DOUBLE = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x XX ns.x %}{% endfor %}"
_SHARE = "{% set ns = namespace(x=[1, 2, 3]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
_NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}"
_MAP = "{% set ns = namespace(x={'a': 1}) %}{% for i in range(90) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}"
_LOOPS = "{% for i in range(100000) %}"

BOMBS: list[str] = [
    "{{ 'a' * 10**9 }}",
    "{{ 'ab' * 1000000000 }}",
    "{{ ('a' * 60000) * 60000 }}",
    "{{ [0] * 10**9 }}",
    "{{ ([0] * 50000) * 50000 }}",
    "{{ 10 ** 100000 }}",
    "{{ 2 ** 2 ** 2 ** 2 ** 2 ** 2 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%0999999999.3f' | format(1.0) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ 'a' | indent(1000000000) }}",
    "{{ ('a\n' * 50000) | indent(50000) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ range(10**12) | list }}",
    "{{ range(100000) | list | join('x' * 60000) }}",
    "{{ (range(100000) | list | string) * 1000 }}",
    _DOUBLE.replace("XX", "~") + "{{ ns.x }}",
    _DOUBLE.replace("XX", "+") + "{{ ns.x }}",
    _DOUBLE.replace("XX", "~") + "{{ ns.x | length }}",
    _DOUBLE.replace("ns.x XX ns.x", "ns.x | replace('a', 'aa')") + "{{ ns.x | length }}",
    _DOUBLE.replace("ns.x XX ns.x", "[ns.x, ns.x] | join('')") + "{{ ns.x | length }}",
    _DOUBLE.replace("ns.x XX ns.x", "ns.x.replace('a', 'aa')") + "{{ ns.x | length }}",
    _DOUBLE.replace("ns.x XX ns.x", "ns.x | upper ~ ns.x | lower") + "{{ ns.x | length }}",
    _DOUBLE.replace("'aaaaaaaa'", "[1]").replace("XX", "+") + "{{ ns.x | length }}",
    _SHARE + "{{ ns.x }}",
    _SHARE + "{{ ns.x | tojson }}",
    _SHARE + "{{ ns.x | string | length }}",
    _SHARE + "{{ ns.x == [ns.x, ns.x] }}",
    _SHARE + "{{ ns.x ~ '' }}",
    _SHARE + "{{ ns.x | join }}",
    _SHARE + "{{ [ns.x, ns.x] | unique | list }}",
    _SHARE + "{{ [ns.x, ns.x] | sort }}",
    _SHARE + "{{ ns.x | pprint }}",
    _SHARE + "{{ raise_exception(ns.x) }}",
    _SHARE + "{{ strftime_now(ns.x) }}",
    _MAP + "{{ ns.x }}",
    _MAP + "{{ ns.x | tojson }}",
    _MAP + "{{ ns.x | dictsort }}",
    _NEST + "{{ ns.x }}",
    _NEST + "{{ ns.x | tojson }}",
    _LOOPS * 3 + "x" + "{% endfor %}" * 3,
    _LOOPS + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}" * 1,
    _LOOPS + "{{ messages | tojson }}{% endfor %}",
    _LOOPS + "{{ range(100000) | list | length }}{% endfor %}",
    _LOOPS + "{% set x = range(100000) | list | sort %}{% endfor %}",
    _LOOPS + "{{ strftime_now('%Y' * 10000) }}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% for i in range(n) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(100000) }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ '" + "(" * 20000 + "' }}{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "-" * 50000 + "1 }}",
    "{{ " + "not " * 50000 + "1 }}",
    "{% if 1 %}" * 20000 + "{% endif %}" * 20000,
    "{{ strftime_now('%1000000000d') }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{% set x = messages %}{{ x | map('tojson', indent=10000000) | list }}",
]
"""Templates that ask for more time, memory or text than there is."""

ESCAPES: list[str] = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['sys'].modules }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__ }}",
    "{{ messages[0].items.__self__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages | attr('__class__') }}",
    "{{ tojson.__globals__ }}",
]
"""Templates that reach for Python or for files."""
