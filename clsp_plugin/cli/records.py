"""``clsp table``, ``figures`` and ``report``, which present the records of runs."""

import argparse
from pathlib import Path

from clsp_plugin.cli.arguments import words
from clsp_plugin.errors import ClspError

__all__ = ["figures", "report", "table"]


def table(args: list[str]) -> None:
    """Run ``clsp table`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp table", description="Turn the records of runs into a table."
    )
    parser.add_argument("paths", nargs="+", help="records, or folders of runs or of a suite")
    parser.add_argument(
        "--format", choices=("markdown", "csv", "latex", "html"), default="markdown"
    )
    parser.add_argument(
        "--layout",
        default="main",
        help="main (default), finetune, transfer, or ablation (with --by)",
    )
    parser.add_argument(
        "--by", action="append", default=[], metavar="KEY",
        help="a setting that tells rows apart, such as synthetic.weight or candidates.w",
    )  # fmt: skip
    parser.add_argument("--decimals", type=int, choices=range(5), default=1)
    parser.add_argument("--protocol", default="strict", help="strict (default) or paper")
    parser.add_argument(
        "--published", action="store_true", help="put the paper's numbers beside ours"
    )
    parser.add_argument("--out", type=Path, help="write to a new file instead of the screen")
    options = parser.parse_args(args)

    from clsp_plugin.records.record import find_records
    from clsp_plugin.system.files import write_text
    from clsp_plugin.tables.make import listing, make_table

    records = find_records(options.paths)
    told = listing(options.paths, records)
    made = make_table(
        records, protocol=options.protocol, published=options.published,
        by=options.by or told.by, layout=options.layout, decimals=options.decimals,
        points=told.points, variants=told.variants, absent=told.absent,
    )  # fmt: skip
    text = made.render(options.format, options.out and options.out.parent)
    if options.out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    elif options.out.exists():
        raise ClspError(f"{options.out} exists already; choose another --out.")
    else:
        write_text(options.out, text)


def figures(args: list[str]) -> None:
    """Run ``clsp figures`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp figures",
        description="Draw every figure that the records of runs allow, as SVG and PNG, and say "
        "what the others would need.",
    )
    _add_drawing(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", type=words, default=[], help="such as epochs,tsne")
    parser.epilog = (
        "Figures: epochs, rows, candidates, lambda, w, quality, similarity, tsne, neighbours. "
        "Files of an earlier call in the folder are replaced."
    )
    options = parser.parse_args(args)

    from clsp_plugin.figures.draw import write_figures
    from clsp_plugin.records.record import find_records

    records = find_records(options.paths)
    drawn = write_figures(records, options.out, _drawing(options, records), options.only)
    for path in drawn.files:
        print(path)
    for line in drawn.missing:
        print(f"Not drawn: {line}")
    if not drawn.files:
        raise ClspError("None of the figures could be drawn; the lines above say what they need.")


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", help="records, or folders of runs or of a suite")
    parser.add_argument("--protocol", default="strict", help="strict (default) or paper")
    parser.add_argument(
        "--published", action="store_true", help="put published numbers beside ours"
    )
    parser.add_argument(
        "--limit", type=int, default=1000,
        help="images that figures of features look at, at most (default 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--reports", action="append", default=[], metavar="PATH",
        help="of `clsp inspect`, or a folder of some, besides those in the stores",
    )  # fmt: skip


def _drawing(given: argparse.Namespace, records):
    """Turn the arguments of :func:`_add_drawing` into options for the figures of ``records``."""
    from clsp_plugin.figures.picture import Options
    from clsp_plugin.records.belonging import read_reports, reports_of_suites
    from clsp_plugin.tables.make import listing

    told = listing(given.paths, records)
    reports = read_reports([*given.reports, *reports_of_suites(given.paths)])
    return Options(given.protocol, given.published, given.limit, reports, told)


def report(args: list[str]) -> None:
    """Run ``clsp report`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp report",
        description="Write one HTML file that needs nothing else: tables, figures, sheets of "
        "candidates, and where every number comes from.",
    )
    _add_drawing(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file to write (default report.html)"
    )
    options = parser.parse_args(args)

    from clsp_plugin.records.record import find_records
    from clsp_plugin.suites.report import write_report

    records = find_records(options.paths)
    write_report(records, options.out, _drawing(options, records))
    print(f"Written to {options.out}")
