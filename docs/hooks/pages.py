"""A hook of mkdocs: pages that lie outside docs/, and links as GitHub reads them.

The first page is the README. Links in pages name files of the repository, as they do on GitHub; in
the site they lead to the page that the file became. A folder becomes a list of its files.
"""

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# files outside docs/, and the pages that they become
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
_LINK = re.compile(r"\[([^][]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
_SHOWN_SOURCE = '<details class="mkdocstrings-source"'
log = logging.getLogger("mkdocs.hooks.pages")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and a list of files for every folder that a page links to."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    linked = {
        target
        for file in files.documentation_pages()
        for target in _targets(file.src_uri, file.content_string)
    }
    for folder in sorted(target for target in linked if (ROOT / target).is_dir()):
        if not folder.startswith("docs/"):
            continue  # on_page_markdown warns
        page = f"{folder.removeprefix('docs/')}/index.md"
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=_listing(ROOT / folder)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Point the links of a page at pages of the site."""
    here = page.file.src_uri
    return _outside_code(
        markdown, lambda text: _LINK.sub(lambda match: _link(match, here, files), text)
    )


def on_page_content(html: str, **_: Any) -> str:
    """Leave the source code in the pages of the API out of the search."""
    return html.replace(_SHOWN_SOURCE, f"{_SHOWN_SOURCE} data-search-exclude")


def _source(page: str) -> str:
    """Return the file of the repository that a page was made from."""
    outside = {made: source for source, made in OUTSIDE.items()}
    return outside.get(page, f"docs/{page}")


def _target(page: str, link: str) -> str:
    """Return the file of the repository that a link of a page names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_source(page)), link))


def _targets(page: str, markdown: str) -> set[str]:
    found: set[str] = set()
    _outside_code(
        markdown, lambda text: found.update(_target(page, m[2]) for m in _LINK.finditer(text)) or ""
    )
    return found


def _link(match: re.Match[str], here: str, files: Files) -> str:
    label, link, anchor = match[1], match[2], match[3] or ""
    target = _target(here, link)
    page = OUTSIDE.get(target, target.removeprefix("docs/"))
    if target not in OUTSIDE and not target.startswith("docs/"):
        log.warning("%s links to %s, which is not in the site.", _source(here), target)
    if (ROOT / target).is_dir():
        page += "/index.md"
    found = files.get_file_from_path(page)
    if found is not None and label == target:  # a page is named by its title here
        label = _title(found.content_string) or label
    return f"[{label}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{anchor})"


def _title(markdown: str) -> str | None:
    first = re.match(r"# (.+)", markdown)
    return first[1] if first else None


def _outside_code(markdown: str, change: Any) -> str:
    """Change the text between code, which stays as it is."""
    parts = _CODE.split(markdown)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def _listing(folder: Path) -> str:
    found = (
        Path(where, name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
    )
    lines = [f"- [{name}]({name})" for name in sorted(found)]
    return "\n".join([f"# Files in {folder.relative_to(ROOT).as_posix()}", "", *lines, ""])
