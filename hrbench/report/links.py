"""Links of a page: to papers, and to the files that lie beside it."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from urllib.parse import quote

from jinja2.utils import urlize
from markupsafe import Markup

__all__ = ["file_link", "linked"]

_ARXIV = re.compile(r"\barXiv[: ]\s*(\d{4}\.\d{4,5})(v\d+)?\b", re.IGNORECASE)


def linked(text: str) -> Markup:
    """Return `text` as markup in which addresses and numbers of arXiv are links.

    Examples
    --------
    >>> print(linked("Roth et al., arXiv 2106.08265"))
    Roth et al., <a href="https://arxiv.org/abs/2106.08265" rel="noopener">arXiv 2106.08265</a>
    """
    parts, end = [], 0
    for found in _ARXIV.finditer(text):
        parts.append(Markup(urlize(text[end : found.start()], rel="noopener")))
        address = f"https://arxiv.org/abs/{found[1]}{found[2] or ''}"
        parts.append(Markup('<a href="{}" rel="noopener">{}</a>').format(address, found[0]))
        end = found.end()
    return Markup("").join([*parts, Markup(urlize(text[end:], rel="noopener"))])


def file_link(path: Path, folder: Path | None) -> str:
    """Return the address of a file for a page in `folder`; "" where it may be elsewhere for a reader of the page.

    A page travels with the folder that it lies in, or with the one above, in which a command puts ``report/`` beside
    ``runs/``. Addresses are relative: they say nothing of the machine.
    """
    if folder is None:
        return ""
    here, target = Path(folder).resolve(), path.resolve()
    if not target.is_file() or not target.is_relative_to(here.parent) or here.parent == here.parent.parent:
        return ""
    return quote(Path(os.path.relpath(target, here)).as_posix())
