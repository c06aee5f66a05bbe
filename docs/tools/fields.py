"""What the docstring of a settings class says of each field: `name: text`, `first, second: text`, one or several a line."""

import re
from collections.abc import Iterable


def describe(docstring: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The text before the first field, and the text of each field that the docstring explains, as one line.

    Args:
      docstring: of the class. names: of its fields; no other word before a colon counts as one.
    """
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not known:
        return " ".join(docstring.split()), {}
    head = re.compile(rf"(?:^|\n\s*|(?<=[.;:])\s+)((?:{known})(?:,\s+(?:{known}))*):\s")
    marks = list(head.finditer(docstring))
    texts: dict[str, str] = {}
    ends = [mark.start() for mark in marks[1:]] + [len(docstring)]
    for mark, end in zip(marks, ends, strict=bool(marks)):
        text = " ".join(docstring[mark.end() : end].split()).rstrip(";")
        together = [name.strip() for name in mark.group(1).split(",")]
        for name in together:
            others = [f"`{other}`" for other in together if other != name]
            texts[name] = f"With {', '.join(others)}: {text}" if others else text
    return docstring[: marks[0].start()].strip() if marks else docstring.strip(), texts
