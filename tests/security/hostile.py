"""Strings that others could have named things with, and what must not come of them."""

from __future__ import annotations

import unicodedata

STRINGS = {
    "colour": "good\x1b[31mevil\x1b[0m",
    "concealed": "good\x1b[8mevil",
    "cursor": "good\x1b[2J\x1b[1;1Hevil",
    "title": "good\x1b]0;evil\x07",
    "link": "good\x1b]8;;https://evil.example\x1b\\evil\x1b]8;;\x1b\\",
    "clipboard": "good\x1b]52;c;ZXZpbA==\x07",
    "question": "good\x1b[6n\x1b[c",
    "eight bits": "good\x9b31mevil\x9d0;evil\x9c",
    "carriage return": "good\revil",
    "backspace": "good\b\b\b\bevil",
    "form feed": "good\x0c\x0bevil",
    "null and bell": "good\x00\x07\x7fevil",
    "bidi override": "good\u202elive\u202c",
    "bidi isolate": "good\u2066evil\u2069\u200f",
    "line separator": "good\u2028evil\u2029\x85evil",
    "invisible": "good\u2060\ufeff\U000e0065evil",
    "surrogate": "good\udc80evil",
    "markup": "good[bold red]evil[/]",
    "markup of a link": "good[link=https://evil.example]evil[/link]",
    "markup that closes nothing": "good[/bold]evil",
    "emoji": "good:skull:evil",
}
"""What it is → a name, a label, a text, a path."""

PAGES = {
    "tag": "good<img src=https://evil.example/x.png onerror=alert(1)>",
    "script": "good</code></pre><script>alert(1)</script>",
    "link": "good[evil](javascript:alert(1))",
    "picture": "good![evil](https://evil.example/x.png)",
    "emphasis": "good **evil** _evil_ ~~evil~~",
    "code": "good`</code><script>alert(1)</script>`",
    "fence": "good\n```\n<script>alert(1)</script>\n```",
    "heading": "good\n\n# evil\n\n---\nlicense: evil\n---\n",
    "row": "good | evil | evil |\n| evil |",
    "formula": "good $\\href{https://evil.example}{evil}$",
    "address": "good https://evil.example www.evil.example @evil",
    "entity": "good &lt;b&gt;",
}
"""What it is → a name that would be more than text in Markdown or HTML."""

SHOWN = "\n\t\u200c\u200d"


def controls(shown: str) -> list[str]:
    """The characters of a text that a terminal or a page does not only show."""
    return [sign for sign in shown if unicodedata.category(sign)[0] in "CZ" and sign not in SHOWN and sign != " "]
