"""Whatever methods, data sets, variants and folders are called, it stays a name in every format."""

import csv
import html
import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from clsp_plugin.figures.style import dress, legend, new_figure, rendered
from clsp_plugin.records.record import Record
from clsp_plugin.tables.formats import Grid, GridCell, csv_cell, one_line
from clsp_plugin.tables.make import make_table

NAMES = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["=1+1", "+cmd|'/C calc'!A0", "@SUM(A1)", "a|b", "<script>alert(1)</script>", "&lt;", "-1",
     "[x](javascript:y)", "**b**", "_a_", "clsp_simclr", "`c`", "a\\|b", "$x^2$", "$\\frac{$",
     "a\r\nb", "\x00"]
)  # fmt: skip
FOLDERS = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


class Cells(HTMLParser):
    """The texts of cells, and every link."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.links, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key == "href"]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def grid(name, folder="runs"):
    cells = (GridCell(name), GridCell("1.0", links=(Path("base") / folder / "record.json",)))
    return Grid((name, "n"), (cells,), 1, name)


def read(markdown):
    """A row's cells as CommonMark and GitHub read them: no mark is left that is not escaped."""
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", markdown)[1:-1]
    plain = [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.strip()) for cell in cells]
    return cells, plain


@given(NAMES, FOLDERS)
@example("x", "javascript:alert(1)")
@example("x", "a#b?c%41)d e")
@settings(max_examples=60)
def test_a_name_is_a_name_in_html(name, folder):
    page = Cells(grid(name, folder).to_html(Path("base")))
    assert page.cells[0] == page.cells[2] == one_line(name)
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "a", "caption"}
    (link,) = page.links
    assert link.startswith("./")
    assert re.fullmatch(r"[\w./~%-]+", link, re.ASCII)


@given(NAMES, FOLDERS)
@settings(max_examples=60)
def test_a_name_is_a_name_in_markdown(name, folder):
    lines = grid(name, folder).to_markdown(Path("base")).split("\n")
    head, rule, row, _, caption, _ = lines
    for line in (head, row):
        cells, plain = read(line)
        assert len(cells) == 2
        assert plain[0] == one_line(name).strip()
        bare = re.sub(r"\\.", "", cells[0])
        assert not re.search(r"[\[\]*`~$]|<[A-Za-z/!?]|&[#A-Za-z]", bare)
    assert rule == "| --- | ---: |"
    assert re.search(r"\]\(\./[\w./~%-]+\) \|$", row, re.ASCII)
    assert "\n" not in caption


@given(NAMES)
@settings(max_examples=60)
def test_a_name_is_a_name_in_csv(name):
    (head, *_), (first, number) = csv.reader(io.StringIO(grid(name).to_csv()))
    for text in (head, first):
        assert text.removeprefix("'") == one_line(name).removeprefix("'")
        computed = text.lstrip()[:1] in ("=", "+", "-", "@")
        assert not computed or re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?.*", text, re.I | re.S)
    assert number == "1.0"


def test_numbers_stay_numbers_in_csv():
    for number in (-1.5, "-0.3", "-1e-05", "+0.2 (n = 3)", "-1.0 ± 0.2†", 7, "", " "):
        assert csv_cell(number) == str(number)
    for formula in ("-1+cmd", "=1", "-x", "@a", "\t=1", " =1", "-1 (=1)"):
        assert csv_cell(formula).startswith("'")


@given(NAMES)
@settings(max_examples=50)
def test_a_name_is_one_line_of_latex(name):
    text = grid(name).to_latex()
    assert text.count("\n") == 12
    body = text.split("\\midrule\n")[1].split("\n")[0]
    assert len(re.findall(r"(?<!\\)&", body)) == 1


@given(NAMES, NAMES, NAMES)
@settings(max_examples=25, deadline=None)
def test_tables_of_records_of_any_name(method, dataset, variant):
    evaluation = {"task": "knn", "protocol": "strict", "dataset": dataset, "epoch": 1, "top1": 1.0}
    record = Record(method, dataset, "resnet18", 1, 0, None, None, evaluations=[evaluation])
    path = Path("record.json")
    table = make_table([(path, record)], variants={path: variant})
    assert Cells(table.render("html")).cells[4] == one_line(variant)
    markdown = [line for line in table.to_markdown().split("\n") if line.startswith("| ")]
    assert len({len(read(line)[0]) for line in markdown}) == 1
    (line,) = csv.DictReader(io.StringIO(table.to_csv()))
    assert line["method"].removeprefix("'") == one_line(method).removeprefix("'")


@given(NAMES)
@settings(max_examples=5, deadline=None)
@example("$\\frac{$")
@example("$x$\x01")
def test_a_name_is_a_name_on_a_figure(name):
    figure = new_figure(4, 3)
    axis = figure.subplots()
    axis.plot([1, 2], [1, 2], label=f"a {name}")
    dress(axis, name, name, name)
    legend(figure, [axis], name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font lacks some characters
        text = rendered(figure, ".svg").decode()
    import xml.dom.minidom

    xml.dom.minidom.parseString(text)
    if name == "$x$\x01":
        assert "<!-- $x$  -->" in text or html.escape("$x$ ") in text
