"""What docstrings write in reStructuredText, as Markdown: tables of = signs, and definitions."""

from __future__ import annotations

import re

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

__all__ = ["DocstringExtension", "rewrite"]

_RULE = re.compile(r"^( *)=+(?: +=+)+ *$")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _table(lines: list[str], indent: int) -> list[str]:
    """Return one simple table as a Markdown table; `lines` are those from the first rule on."""
    starts = [match.start() for match in re.finditer("=+", lines[0])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rules = [i for i, line in enumerate(lines) if _RULE.match(line)]
    rows: list[list[str]] = []
    header = len(rules) == 3
    for i, line in enumerate(lines):
        if i in rules:
            continue
        cells = [line[start:stop].strip() for start, stop in spans]
        # A row that goes on: nothing in the first cell, or a word that follows a slash.
        goes_on = not cells[0] or (not any(cells[1:]) and rows and rows[-1][0].endswith("/"))
        if rows and goes_on:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    if not header:
        rows.insert(0, [""] * len(spans))
    rows.insert(1, ["---"] * len(spans))
    return ["", *(" " * indent + "| " + " | ".join(row) + " |" for row in rows), ""]


def _tables(lines: list[str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(lines):
        match = _RULE.match(lines[i])
        if match is None:
            out.append(lines[i])
            i += 1
            continue
        end = i
        seen = 0
        for j in range(i, len(lines)):
            if not lines[j].strip():
                break
            seen += _RULE.match(lines[j]) is not None
            end = j
        out += _table(lines[i : end + 1], len(match[1])) if seen >= 2 else lines[i : end + 1]
        i = end + 1
    return out


def _definitions(lines: list[str]) -> list[str]:
    """Return terms with an indented text below as Markdown's definition lists."""
    out: list[str] = []
    terms: int | None = None  # their indent, within a list of definitions
    fenced = text_begins = False
    for i, line in enumerate(lines):
        fenced ^= line.lstrip().startswith("```")
        indent = _indent(line)
        below = lines[i + 1] if i + 1 < len(lines) else ""
        if text_begins:
            line = " " * (indent - 4) + ":   " + line.lstrip()
            text_begins = False
        elif line.strip() and not fenced and (terms is None or indent <= terms):
            begins = (
                below.strip()
                and _indent(below) == indent + 4
                and (terms == indent or not out or not out[-1].strip())
                and not re.match(r"([-*|#>:`]{3}|[-*|#>] |\d+\.)", line.lstrip())
            )
            if begins and out and out[-1].strip():
                out.append("")
            terms = indent if begins else None
            text_begins = bool(begins)
        out.append(line)
    return out


def rewrite(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as Markdown."""
    if not any(_RULE.match(line) or line.startswith(" ") for line in lines):
        return lines
    return _definitions(_tables(lines))


class _Rewriter(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return rewrite(lines)


class DocstringExtension(Extension):
    """Markdown with the tables and definitions of docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:
        # Before fenced code is taken out (25), after white space is tidied (30).
        md.preprocessors.register(_Rewriter(md), "docstrings", 28)
