"""The documentation site: it builds without a warning, and its links lead somewhere."""

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import clsp_plugin

ROOT = Path(__file__).parents[2]


class Told(logging.Handler):
    """Collects the warnings of a build."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.warnings = []

    def emit(self, record):
        self.warnings.append(record.getMessage())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `mkdocs build --strict` builds it."""
    out, told = tmp_path_factory.mktemp("site"), Told()
    logging.getLogger("mkdocs").addHandler(told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(out))
        try:
            build(config)
        except Abort:
            pytest.fail("\n".join(told.warnings))
        finally:
            logging.getLogger("mkdocs").removeHandler(told)
    return out


class Links(HTMLParser):
    """What a page links to, and what it loads by itself."""

    def __init__(self, page):
        super().__init__()
        self.links, self.loaded, self.ids = set(), set(), set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and attrs.get("href"):
            self.links.add(attrs["href"])
        loads = tag in ("script", "img", "iframe") or attrs.get("rel") in ("stylesheet", "icon")
        if loads and (attrs.get("src") or attrs.get("href")):
            self.loaded.add(attrs.get("src") or attrs.get("href"))


@pytest.fixture(scope="module")
def pages(site):
    return {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}


def test_links_lead_to_pages_and_headings(site, pages):
    seen = 0
    for page, found in pages.items():
        for link in found.links | found.loaded:
            parts = urlparse(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target /= "index.html" if target.is_dir() else ""
            assert target.is_file(), (page, link)
            if target in pages and parts.fragment and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].ids, (page, link)
            seen += 1
    assert seen > 500


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for page, found in pages.items():
        assert not {link for link in found.loaded if urlparse(link).netloc}, page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(\"?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_first_page_is_the_readme(site):
    text = re.sub(r"<[^>]*>", "", (site / "index.html").read_text(encoding="utf-8"))
    for heading in re.findall(r"^## (.*)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert heading in text
    assert "mkdocs serve" in text


def test_the_api_has_every_public_name_method_and_loss(pages, site):
    ids = set().union(*(found.ids for page, found in pages.items() if page.parent.name == "api"))
    assert {f"clsp_plugin.{name}" for name in clsp_plugin.__all__} <= ids
    methods = {
        f"clsp_plugin.methods.{file.stem}.{name}"
        for file in (ROOT / "clsp_plugin/methods").glob("*.py")
        for name in re.findall(r"^@register_method\(.*\)\nclass (\w+)", file.read_text(), re.M)
    }
    assert len(methods) > 20
    assert methods <= ids
    losses = {
        name
        for file in (ROOT / "clsp_plugin/losses").glob("*.py")
        for name in re.findall(r"^def ([a-z]\w+_loss)\(", file.read_text(), re.M)
    }
    names = {str(name).rsplit(".", 1)[-1] for name in ids}
    assert losses <= names
    assert {
        "load_encoder",
        "import_drawn",
        "export_backbone",
        "export_store",
        "import_store",
    } <= names


def test_docstrings_are_markdown(site):
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        source = r'<details class="mkdocstrings-source".*?</details>'
        text = re.sub(source, "", text, flags=re.DOTALL)
        assert not re.findall(r":(?:func|class|meth):`|``|::</p>", text), page
        assert "<autoref" not in text, page


def test_the_search_finds_settings_and_no_source_code(site):
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    texts = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert "synthetic.weight" in texts["configuration/pretrain.html#synthetic"]
    api = {where: text for where, text in texts.items() if where.startswith("api/")}
    assert not [where for where, text in api.items() if "def __init__" in text]
