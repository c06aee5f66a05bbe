"""For the API's pages: the fields that a class's docstring explains in running text become a list."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from fields import describe


class Fields(griffe.Extension):
    """Rewrites docstrings of classes whose fields are annotated, such as dataclasses and named tuples."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        del kwargs
        names = [name for name, member in cls.members.items() if member.is_attribute]
        if cls.docstring is None or not names:
            return
        before, texts = describe(cls.docstring.value, names)
        if texts:
            cls.docstring.value = "\n".join([before, "", *(f"* `{name}`: {text}" for name, text in texts.items())]).strip()
