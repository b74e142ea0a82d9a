"""Texts that tokenizers get wrong."""

from __future__ import annotations

import collections
import inspect

TEXTS: tuple[str, ...] = (
    "Hello world",
    "",
    " ",
    "\n",
    "  two  spaces   three\n\n\nnew\tlines \t\t x",
    "trailing   ",
    "naïve café ñ 你好 🙂👩‍👩‍👧 \u200b\u00a0x",
    "def f(x):\n    return x**2  # hi\n\n\n\n",
    "I'll don't WE'VE y'all'd",
    "<html><table></table> </p>",
    "1234567 12 3.14 ٣٤ ½ x2y3",
    "a" * 300,
    "\x00\x01\x7f",
    "\r\n\r\r\n",
    "İstanbul ǅ ﬁ Ａ",
    "e\u0301 vs \u00e9",
    "!?!?...---///\\\\",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 \U0010ffff",
    "العربية עברית हिन्दी ไทย",
    inspect.getdoc(collections.OrderedDict) or "",
    (inspect.getsource(collections) * 2)[:30000],
)
