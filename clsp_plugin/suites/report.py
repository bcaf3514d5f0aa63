"""``clsp report``: a report on runs as one HTML file that needs no server and no network."""

import base64
import html
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from clsp_plugin import __version__
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.names import PROTOCOLS
from clsp_plugin.figures.draw import Drawn, draw
from clsp_plugin.figures.groups import group, settings, symbol, telling, value_of
from clsp_plugin.figures.picture import Options, Picture
from clsp_plugin.figures.sheets import candidate_sheet, store_caption
from clsp_plugin.figures.style import rendered
from clsp_plugin.inspection.summary import summary
from clsp_plugin.records.belonging import (
    check_store,
    images_of,
    some_of_each,
    store_of,
    store_report,
)
from clsp_plugin.records.recipe import BUDGET, Records, sorting_key
from clsp_plugin.records.record import Record, evaluated_on
from clsp_plugin.records.stale import changed, is_stale
from clsp_plugin.system.files import write_text
from clsp_plugin.tables.formats import counted
from clsp_plugin.tables.make import Listing, commit_of, hardware_of, make_table
from clsp_plugin.tables.rows import LAYOUTS

__all__ = ["write_report"]

_MARK = '<meta name="generator" content="clsp report">'
_LARGEST = 1_500_000  # bytes of a figure as SVG; a larger one becomes a PNG
_ANCHORS = 8  # rows of a sheet

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --muted: #5f6368; --page: #ffffff;
  --line: #d5d8dc; --soft: #f4f5f7; --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --muted: #a2a7ad; --page: #16181b;
  --line: #3a3e44; --soft: #202327; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.3rem;
  border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1.05rem; }
a { color: var(--link); } nav a { margin-right: 1.1rem; }
.lead, figcaption, caption, .quiet { color: var(--muted); font-size: .875rem; }
.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem;
  min-width: min(56rem, 88vw); }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); } .number { text-align: right; }
thead th { border-bottom: 2px solid var(--muted); } sup { font-size: .7em; }
figure { margin: 1rem 0 2rem; } figure img { display: block; max-width: 100%; height: auto;
  background: #fff; border: 1px solid var(--line); border-radius: 4px; padding: .4rem; }
figcaption { margin-top: .4rem; max-width: 60rem; }
section.run { border-left: 3px solid var(--line); padding-left: 1rem; margin: 1.25rem 0; }
section.run:target { border-left-color: var(--link); background: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .4rem 0;
  font-size: .9rem; } dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--link); }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; font-size: .8rem;
  line-height: 1.4; border-radius: 4px; } .flag { border-left: 3px solid #D55E00;
  padding: .3rem .8rem; background: var(--soft); }
@media print { :root { --ink: #000; --muted: #444; --page: #fff; --line: #bbb; --soft: #fff;
  --link: #000; } body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  figure, table, section.run { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; } th, td { white-space: normal; padding-right: .5rem; }
  figure img { border: 0; padding: 0; max-height: 22cm; } a { text-decoration: none; } }
"""


def write_report(
    records: Records, out: str | Path, options: Options, drawn: Drawn | None = None
) -> None:
    """Write a page with tables, figures, sheets of candidates, and every run behind them.

    Args:
        records: pairs of a path and its record, as ``find_records`` returns them.
        out: path of the file; an earlier report is replaced, any other file is not.
        options: options of the figures, which are of one protocol; tables are made for each.
        drawn: the figures, where they were drawn already.

    Raises:
        ClspError: a bad option, or another file is there.
    """
    out = Path(out)
    if out.exists() and not _is_report(out):
        raise ClspError(f"{out} exists and is no report of ours; choose another --out.")
    drawn = draw(records, options) if drawn is None else drawn
    sheets, absent = _sheets(records, options)
    places = {path: f"run-{number}" for number, (path, _) in enumerate(records, 1)}
    parts = [
        _head(records, sheets),
        "<h2 id=tables>Tables</h2>",
        *_tables(records, options, places),
        "<h2 id=figures>Figures</h2>",
        *map(_figure, drawn.pictures),
        *_missing([*drawn.missing, *absent]),
        *(["<h2 id=candidates>Candidates</h2>", *sheets] if sheets else []),
        "<h2 id=runs>Runs</h2>",
        *_runs(records, places, options.told),
        "</body></html>\n",
    ]
    text = "\n".join(parts)
    write_text(out, text.encode(errors="replace").decode())  # names of files need not be text


def _is_report(path: Path) -> bool:
    return path.is_file() and _MARK.encode() in path.read_bytes()[:1000]


def _head(records: Records, sheets: Sequence[str]) -> str:
    methods = len({record.method for _, record in records})
    datasets = ", ".join(dict.fromkeys(record.dataset for _, record in records))
    lead = (
        f"{counted(len(records), 'run')} of {counted(methods, 'method')} on {datasets}; "
        f"clsp-plugin {__version__}. A number in a table leads to its runs."
    )
    links = " ".join(
        f'<a href="#{name}">{name.capitalize()}</a>'
        for name in ("tables", "figures", *(["candidates"] if sheets else []), "runs")
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{_MARK}\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>CLSP report: {html.escape(datasets)}</title>\n<style>{_STYLE}</style></head>\n"
        f'<body>\n<h1>Contrastive learning with synthetic positives</h1>\n<p class="lead">'
        f"{html.escape(lead)}</p>\n<nav>{links}</nav>"
    )


def _tables(records: Records, options: Options, places: Mapping[Path, str]) -> Iterator[str]:
    """Yield a table for each protocol and each layout that the runs have evaluations for."""
    tasks = {(e["protocol"], e["task"]) for _, record in records for e in record.evaluations}
    if not tasks:
        yield f'<p class="flag">{_words("No run was evaluated: run `clsp linear`.")}</p>'
    told = options.told
    keys = _telling_settings(records, told)
    points = {
        path: {symbol(k): _scalar(record, k) for k in keys} | dict(told.points.get(path, {}))
        for path, record in records
    }
    by = list(dict.fromkeys([*told.by, *map(symbol, keys)]))
    records = sorted(records, key=lambda p: [sorting_key(points[p[0]].get(k, "")) for k in by])
    for protocol in PROTOCOLS:
        for layout in ("main", "transfer"):
            if not any((protocol, task) in tasks for task in LAYOUTS[layout]):
                continue
            yield f"<h3>{layout.capitalize()}, protocol {protocol}</h3>"
            try:
                table = make_table(
                    records, protocol=protocol, published=options.published, by=by, layout=layout,
                    points=points, variants=told.variants, absent=told.absent,
                )  # fmt: skip
            except ClspError as error:
                yield f'<p class="flag">No table: {_words(str(error))}</p>'
                continue
            text = table.grid().to_html(href=lambda path: f"#{places[path]}")
            yield f'<div class="scroll">{text}</div>'


def _telling_settings(records: Records, told: Listing) -> list[str]:
    """Return the settings that rows must name besides the suites', so that recipes stay apart."""
    alike: dict[tuple, list[dict[str, str]]] = {}
    for path, record in records:
        budget = tuple(getattr(record, name) for name in BUDGET)
        suite = (told.variants.get(path, ""), json.dumps(told.points.get(path, {}), sort_keys=True))
        key = (record.method, record.dataset, budget, *suite)
        alike.setdefault(key, []).append(settings(record))
    return list(dict.fromkeys(key for flat in alike.values() for key in telling(flat)))


def _scalar(record: Record, key: str) -> float | str:
    value = value_of(record, key)
    if value is None:
        return ""
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _embedded(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(picture: Picture) -> str:
    content, kind = rendered(picture.figure, ".svg"), "svg+xml"
    if len(content) > _LARGEST:
        content, kind = rendered(picture.figure, ".png"), "png"
    width = round(picture.figure.get_size_inches()[0] * 96)
    # the caption is part of the figure; here it becomes the text for those who do not see it
    return _shown(_embedded(content, kind), picture.title, picture.caption, width)


def _shown(source: str, title: str, words: str, width: int, caption: str = "") -> str:
    alt = html.escape(f"{title}. {words}", True)
    below = f"\n<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><h3>{html.escape(title)}</h3><img src="{source}" alt="{alt}" width="{width}">'
        f"{below}</figure>"
    )


def _words(text: str) -> str:
    """Return a sentence as HTML, with text in backticks as code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))


def _missing(lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    items = "\n".join(f"<li>{_words(line)}</li>" for line in lines)
    return ["<h3>Not drawn, and what it needs</h3>", f'<ul class="quiet">{items}</ul>']


def _sheets(records: Records, options: Options) -> tuple[list[str], list[str]]:
    """Return a sheet of every store that is still there, and a line for each that is not."""
    parts, absent, seen = [], [], []
    drew = [(p, r, r.candidates) for p, r in records if r.candidates is not None]
    for path, record, candidates in sorted(drew, key=lambda one: (one[1].dataset, one[2]["w"])):
        if candidates in seen:
            continue
        seen.append(candidates)
        try:
            parts.append(_sheet(path, record, options))
        except ClspError as error:
            absent.append(f"Sheet of candidates: {error}")
    return parts, absent


def _sheet(path: Path, record: Record, options: Options) -> str:
    store, array = store_of(path, record), images_of(path, record, "train")
    check_store(store, array)
    rows = some_of_each(array, _ANCHORS)
    anchors = array.taken(torch.tensor(rows), store.width).images.numpy()
    manifest = store.need_manifest()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sheet.png"
        candidate_sheet(anchors, store.images(rows), file)
        content = file.read_bytes()
    point = options.told.points.get(path, {})
    varied = [
        f"{key} = {value}"
        for key, value in point.items()
        if key.startswith(("denoiser.", "generate.")) and key != "generate.w"
    ]
    about = ", ".join([manifest.dataset, f"w = {manifest.w:g}", *varied])
    title = f"Anchors and their candidates: {about}"
    width = int.from_bytes(content[16:20], "big")  # the width in a PNG's header
    text = _shown(_embedded(content, "png"), title, "", width, store_caption(manifest))
    try:
        return text + _details(
            "What clsp inspect found", summary(store_report(path, record, options.reports))
        )
    except ClspError:
        return text  # a report on the store is optional


def _runs(records: Records, places: Mapping[Path, str], told: Listing) -> Iterator[str]:
    for one in group(records, told=told):
        yield f"<h3>{html.escape(one.name)}</h3>"
        for path, record in sorted(one.records, key=lambda pair: pair[1].seed):
            yield _run(path, record, places[path])


def _run(path: Path, record: Record, place: str) -> str:
    versions = {k: v for k, v in record.versions.items() if k not in ("code", "numerics")}
    stale, old = is_stale(record), changed([record], record.evaluations)
    facts = {
        "pre-training": f"{record.dataset}, {record.backbone}, {counted(record.epochs, 'epoch')}, "
        + (counted(record.num_train, "image", ",") if record.num_train else "unknown images"),
        "time": _time(record),
        "hardware": hardware_of(record),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        "commit": commit_of(record) + " (other numerics than this version's)" * stale,
        "changed since": f"the settings of {', '.join(old)}" if old else "",
        "checkpoint": record.checkpoint or "none was kept",
        "record": str(path),
    }
    listed = "".join(
        f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items() if value
    )
    parts = [
        f'<section class="run" id="{place}"><strong>{html.escape(record.method)}, seed '
        f'{record.seed}</strong> <a class="quiet" href="#tables">to the tables</a>',
        f"<dl>{listed}</dl>",
        _evaluations(record),
        _details("Configuration", _yaml(record.config)),
    ]
    if record.candidates is not None:
        parts.append(_details("Candidates", _yaml(record.candidates)))
    return "\n".join([*parts, "</section>"])


def _yaml(content: Mapping[str, Any]) -> str:
    """Return YAML as OmegaConf writes it, but resolve nothing that looks like an interpolation."""
    return yaml.safe_dump(content, default_flow_style=False, allow_unicode=True, sort_keys=False)


def _time(record: Record) -> str:
    seconds = record.timings.get("train_seconds")
    rate = record.timings.get("images_per_second")
    words = [f"{seconds / 60:.1f} minutes of training"] if seconds is not None else []
    words += [f"{rate:,.0f} images/s"] if rate is not None else []
    return ", ".join(words)


def _evaluations(record: Record) -> str:
    if not record.evaluations:
        return '<p class="quiet">Not evaluated.</p>'
    head = ("task", "protocol", "on", "epoch", "top-1 (%)", "top-5 (%)", "chosen",
            "held out (%)", "images, train and test")  # fmt: skip
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in _evaluation(e))}</tr>"
        for e in sorted(record.evaluations, key=lambda e: (e["task"], e["protocol"], e["epoch"]))
    )
    names = "".join(f"<th>{name}</th>" for name in head)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _evaluation(e: Mapping[str, Any]) -> list[str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    chosen = ", ".join(f"{key} = {value:g}" for key, value in (e.get("chosen") or {}).items())
    images = " and ".join(f"{e[k]:,}" for k in ("num_train", "num_test") if e.get(k) is not None)
    return [
        e["task"], e["protocol"], evaluated_on(e), str(e["epoch"]), percent(e.get("top1")),
        percent(e.get("top5")), chosen, percent(e.get("heldout_top1")), images,
    ]  # fmt: skip


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"
