"""The command line: ``clsp VERB``.

The verbs that run experiments are Hydra applications with solo-learn's calling convention:
``clsp pretrain --config-path DIR --config-name NAME key=value ...``. Configurations that ship
with the package are found by name alone, as ``NAME`` (of the offline data set) or
``DATASET/NAME``.
"""

import argparse
import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clsp_plugin import __version__, streams
from clsp_plugin.commandline import composing, hydra_overrides
from clsp_plugin.configurations import fingerprint, shipped
from clsp_plugin.errors import ClspError, Terminated, nearest
from clsp_plugin.processes import check_launch
from clsp_plugin.rules import SEED, Rule, check_value, short
from clsp_plugin.user_yaml import read_yaml

__all__ = ["compose", "main", "shipped", "task_of"]

_DEFAULT_DATASET = "digits"
# What the system says of a file that a user can do something about, and what that is.
_REFUSALS = {
    getattr(errno, name): advice
    for names, advice in (
        ("EDQUOT ENOSPC EFBIG EROFS", "make room or name another place"),
        ("EACCES EPERM", "let this user read and write there, or name another place"),
        ("EMFILE ENFILE", "allow more open files (`ulimit -n 65536`)"),
        ("EIO ESTALE ETIMEDOUT", "the disk or its connection fails: look after it"),
        ("ENOENT EEXIST EISDIR ENOTDIR ENAMETOOLONG ELOOP", "name another place"),
    )
    for name in names.split()
    if hasattr(errno, name)
}
# verb -> (what it does, configuration used when none is named; None: one must be named)
_HYDRA_VERBS = {
    "denoiser": ("train a diffusion model on your images", "denoiser"),
    "generate": ("draw candidates for every image with a denoiser", "generate"),
    "pretrain": ("pre-train a method, with or without synthetic positives", None),
    "linear": ("linear probe on a checkpoint's frozen features", "linear"),
    "knn": ("nearest-neighbour accuracy of a checkpoint's features", "knn"),
    "transfer": ("linear accuracy of a checkpoint's features on other data sets", "transfer"),
    "finetune": ("train a checkpoint's backbone and a classifier on labels", "finetune"),
}
_PLAIN_VERBS = {
    "import-denoiser": "convert a denoiser of the authors' code",
    "embed": "features or clusters of the images, to condition a denoiser on",
    "inspect": "what a candidate store holds, and how good it is",
    "bench": "run a suite of experiments and make its tables and figures",
    "table": "turn the records of runs into a table",
    "figures": "draw what the records of runs say",
    "report": "tables, figures and configurations of runs in one HTML file",
    "demo": "the whole of CLSP on the offline data set, in minutes",
    "doctor": "what is installed, which solo-learn is seen, and what is wrong",
}


def _names(verb: str) -> list[str]:
    """Shipped configurations of a verb: ``DATASET/NAME``, or ``NAME`` where one fits all."""
    root = shipped() / verb
    files = [*root.glob("*.yaml"), *root.glob("*/*.yaml")]
    return sorted(str(p.relative_to(root).with_suffix("")) for p in files)


def _overview() -> str:
    verbs = {verb: text for verb, (text, _) in _HYDRA_VERBS.items()} | _PLAIN_VERBS
    lines = "\n".join(f"  {verb:<15} {text}" for verb, text in verbs.items())
    return f"""usage: clsp VERB ...

Contrastive learning with synthetic positives (clsp-plugin {__version__}).

{lines}

clsp VERB --help says more. First steps:
  clsp demo                              everything once, offline, in minutes
  clsp pretrain --config-name simclr     one method on the offline data set
"""


def _verb_help(verb: str) -> str:
    text, default = _HYDRA_VERBS[verb]
    names = "\n".join(f"  {name}" for name in _names(verb))
    using = "" if default is None else f" (default: {default})"
    return f"""usage: clsp {verb} [--config-path DIR] [--config-name NAME] [-m] [key=value ...]

{text[0].upper()}{text[1:]}.

  --config-name NAME   a YAML file{using}; a name without a
                       data set is looked for under {_DEFAULT_DATASET}/
  --config-path DIR    the folder it is in, if it is not one of ours
  key=value            any setting of the YAML or of its defaults, such as seed=1
  --cfg job            print the configuration and stop
  -m, --multirun       run every combination of key=a,b,c (Hydra's sweeps)

Configurations that ship with the package:
{names}
"""


def _take(args: list[str], *flags: str) -> str | None:
    """Remove ``--flag value`` or ``--flag=value`` from arguments and return the value."""
    for number, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in flags:
            if equals:
                del args[number]
                return value
            if number + 1 == len(args):
                raise ClspError(f"{name} needs a value.")
            value = args[number + 1]
            del args[number : number + 2]
            return value
    return None


def _locate(verb: str, path: str | None, name: str | None) -> tuple[Path, str]:
    """The folder and the name of a configuration.

    Raises:
        ClspError: there is none, with the nearest that there is.
    """
    if name is None:
        name = _HYDRA_VERBS[verb][1]
        if name is None:
            raise ClspError(f"Name a configuration, such as --config-name {_names(verb)[0]}.")
    name = re.sub(r"\.ya?ml$", "", name)
    root = shipped() / verb
    if path is None:
        folders = [root, root / _DEFAULT_DATASET, Path.cwd()]
    else:
        # a folder of the user's, else one of ours, by its name or by its place in a checkout
        folders = [Path(path), root / Path(path).name]
    for folder in folders:
        file = folder / f"{name}.yaml"
        if file.is_file():
            if not file.resolve().is_relative_to(root.resolve()):
                read_yaml(file)  # a mistake is told with its line
            return file.parent.resolve(), file.stem
    where = f"in {path}" if path is not None else "among the configurations that ship with us"
    names = _names(verb) if path is None else [p.stem for p in Path(path).glob("*.yaml")]
    raise ClspError(f"There is no {name}.yaml {where}{nearest(name, names)}")


def _source(verb: str, path: str | None, folder: Path, stem: str) -> str:
    """The name by which :func:`compose` finds a configuration again, from the same directory."""
    root = (shipped() / verb).resolve()
    if folder.is_relative_to(root):
        return (folder / stem).relative_to(root).as_posix()
    return (Path(path or ".") / stem).as_posix()


def compose(verb: str, name: str, overrides: Sequence[str] = ()):
    """Read a shipped configuration as the command line would.

    Args:
        verb: such as ``"pretrain"``.
        name: such as ``"digits/simclr"``.
        overrides: ``key=value`` each.

    Returns:
        The configuration, a DictConfig.
    """
    import hydra

    folder, stem = _locate(verb, None, name)
    with hydra.initialize_config_dir(str(folder), version_base="1.2"):
        return hydra.compose(stem, hydra_overrides(overrides, folder))


def _frechet(name: str, real, data) -> Callable:
    """``clsp denoiser``'s fid, inception or a checkpoint: distance of samples from the images."""
    from clsp_plugin.benchmark.inspection import Encoder, frechet_from

    return frechet_from(2048 if name == "inception" else Encoder(name, data=data), real)


def task_of(verb: str) -> Callable:
    if verb == "denoiser":
        from clsp_plugin.diffusion.verbs import denoiser

        task = functools.partial(denoiser, frechet=_frechet)
    elif verb == "generate":
        from clsp_plugin.diffusion.verbs import generate as task
    elif verb == "pretrain":
        from clsp_plugin.engine.pretrain import pretrain as task
    elif verb == "linear":
        from clsp_plugin.evaluation.verbs import linear as task
    elif verb == "transfer":
        from clsp_plugin.evaluation.verbs import transfer as task
    elif verb == "finetune":
        from clsp_plugin.evaluation.verbs import finetune as task
    else:
        from clsp_plugin.evaluation.verbs import knn as task
    return task


def _hydra(verb: str, args: list[str]) -> None:
    """Run one of the experiment verbs under Hydra."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from clsp_plugin.engine.record import made_from

    check_launch()
    original = list(sys.argv)
    args = list(args)
    path = _take(args, "--config-path", "-cp")
    name = _take(args, "--config-name", "-cn")
    folder, stem = _locate(verb, path, name)
    task = task_of(verb)

    source = _source(verb, path, folder, stem)
    refused: list[ClspError] = []
    composed: list[bool] = []

    def run(cfg):
        composed.append(True)
        sys.argv = original  # what a launcher of further processes has to repeat
        given = HydraConfig.get().overrides.task
        OmegaConf.set_struct(cfg, False)
        try:
            with _files_told(), made_from(source, given, fingerprint(cfg)):
                return task(cfg)
        except ClspError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the launcher may be another process
            refused.append(error)  # Hydra would print lines of its own around it

    run.__module__, run.__qualname__ = "clsp", f"clsp_{verb}"
    sys.argv = [original[0], "--config-path", str(folder), "--config-name", stem]
    multirun = any(arg in ("-m", "--multirun") for arg in args)
    sys.argv += hydra_overrides(args, folder, multirun)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as they are
    try:
        hydra.main(version_base="1.2", config_path=None)(run)()
    except (ClspError, BrokenPipeError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ClspError):
            raise cause from error
        # the boundary to Hydra: what it, OmegaConf and PyYAML raise while they read what the user
        # wrote has no common class; once the task has begun it is ours
        if composed and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        raise ClspError(f"{composing(error)}.") from error
    finally:
        sys.argv = original
    if refused:
        raise refused[0]


def _table(args: list[str]) -> None:
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

    from clsp_plugin.benchmark.table import listing, make_table
    from clsp_plugin.data.files import write_text
    from clsp_plugin.engine.record import find_records

    records = find_records(options.paths)
    told = listing(options.paths, records)
    table = make_table(
        records, protocol=options.protocol, published=options.published,
        by=options.by or told.by, layout=options.layout, decimals=options.decimals,
        points=told.points, variants=told.variants, absent=told.absent,
    )  # fmt: skip
    text = table.render(options.format, options.out and options.out.parent)
    if options.out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    elif options.out.exists():
        raise ClspError(f"{options.out} exists already; choose another --out.")
    else:
        write_text(options.out, text)


def _figures(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="clsp figures",
        description="Draw every figure that the records of runs allow, as SVG and PNG, and say "
        "what the others would need.",
    )
    _add_drawing(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", type=_words, default=[], help="such as epochs,tsne")
    parser.epilog = (
        "Figures: epochs, candidates, lambda, w, quality, similarity, tsne, neighbours. Files of "
        "an earlier call in the folder are replaced."
    )
    options = parser.parse_args(args)

    from clsp_plugin.benchmark.figures.draw import write_figures
    from clsp_plugin.engine.record import find_records

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
    """What :func:`_add_drawing` was given, as options of the figures of some records."""
    from clsp_plugin.benchmark.figures.picture import Options
    from clsp_plugin.benchmark.origins import read_reports
    from clsp_plugin.benchmark.table import listing

    reports, told = read_reports(given.reports), listing(given.paths, records)
    return Options(given.protocol, given.published, given.limit, reports, told)


def _report(args: list[str]) -> None:
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

    from clsp_plugin.benchmark.report import write_report
    from clsp_plugin.engine.record import find_records

    records = find_records(options.paths)
    write_report(records, options.out, _drawing(options, records))
    print(f"Written to {options.out}")


def _import_denoiser(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="clsp import-denoiser",
        description="Convert a checkpoint of the authors' train_diffusion.py or "
        "train_conditional_diffusion.py (ckpt_ema_*.pt) to a denoiser in diffusers' format, which "
        "`clsp generate denoiser=DIR` takes.",
    )
    parser.add_argument("file", type=Path, help="the .pt file")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--image-size", type=int, default=32, help="in pixels (default 32)")
    parser.add_argument("--beta-start", type=float, default=1e-4, help="default 1e-4")
    parser.add_argument(
        "--beta-end",
        type=float,
        default=0.02,
        help="default 0.02; the class-conditional recipe has 0.028",
    )
    options = parser.parse_args(args)

    from clsp_plugin.diffusion.authors import import_denoiser

    name = import_denoiser(**vars(options))
    print(f"Denoiser: {options.out} ({name}, from {options.file})")


def _embed(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="clsp embed",
        description="Write the features of the training images in a pre-trained encoder, or their "
        "clusters, to a file that `clsp denoiser` and `clsp generate` take as condition=FILE.",
    )
    parser.add_argument("encoder", type=Path, help="a checkpoint, or the directory of a run")
    _add_images(parser, "denoiser")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.npz)")
    parser.add_argument("--clusters", type=int, help="write k-means clusters, so many of them")
    parser.add_argument("--seed", type=int, default=0, help="of k-means (default 0)")
    options = parser.parse_intermixed_args(args)

    check_value("--seed", options.seed, SEED)
    check_value("--clusters", options.clusters, Rule(low=1))
    from clsp_plugin.benchmark.embedding import embed
    from clsp_plugin.data.images import load_images

    name = options.config_name or f"{_DEFAULT_DATASET}/denoiser"
    data = _data_of("denoiser", name, options.data)
    array = load_images(data, "train")
    print(embed(options.encoder, array, options.out, options.clusters, options.seed, data))


def _add_images(parser: argparse.ArgumentParser, verb: str) -> None:
    """Which images another verb takes; see :func:`_data_of`."""
    parser.add_argument(
        "data", nargs="*", metavar="data.key=value", help=f"as `clsp {verb}` is given them"
    )
    parser.add_argument("--config-name", "-cn", help=f"that `clsp {verb}` is given")


def _is_data(arg: str) -> bool:
    return re.match(r"data\.\w+=", arg) is not None


def _data_of(verb: str, name: str, given: list[str]):
    """The data block of a shipped configuration with the changes on a command line."""
    from clsp_plugin.engine.config import Data, typed

    strangers = [arg for arg in given if not _is_data(arg)]
    if strangers:
        raise ClspError(f"{strangers[0]} is not a data.key=value.")
    return typed(compose(verb, name, given).data, Data)


def _inspect(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="clsp inspect",
        description="Print a store's manifest, and write a report and pictures of its candidates: "
        "a sheet, and how near they are to their anchors.",
    )
    parser.add_argument(
        "store",
        nargs="+",
        help="a store that `clsp generate` wrote; several of the same images are compared, in "
        "numbers and a picture, which takes --encoder and --out",
    )
    _add_images(parser, "generate")
    parser.add_argument("--out", type=Path, help="folder to write to (default STORE/report)")
    parser.add_argument(
        "--encoder",
        type=Path,
        help="a checkpoint: adds the similarity of positive pairs, the agreement of labels and a "
        "Frechet distance in its features",
    )
    parser.add_argument(
        "--denoiser",
        help="the store's: adds a sheet of several weights w, samples with the middle feature "
        "masked, and a t-SNE of middle features",
    )
    parser.add_argument(
        "--condition", help="with --denoiser, as it was given to `clsp generate`, if it was"
    )
    parser.add_argument("--fid", action="store_true", help="adds the FID (needs torch-fidelity)")
    parser.add_argument("--limit", type=int, default=1000, help="anchors looked at (default 1000)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="only read all of it and hold it against the digests of its shards",
    )
    options = parser.parse_intermixed_args(args)

    from clsp_plugin.benchmark.inspection import inspect_store, open_store, summary, verify_store
    from clsp_plugin.data.images import load_images

    # argparse gives all that follows a first store to this list
    options.data += [arg for arg in options.store if _is_data(arg)]
    options.store = [Path(arg) for arg in options.store if not _is_data(arg)]
    if not options.store:
        raise ClspError("clsp inspect needs a store; name one that `clsp generate` wrote.")
    if options.verify:
        for each in options.store:
            print(verify_store(each))
        return
    store, *more = options.store
    of_digits = open_store(store).manifest.dataset.startswith("digits")
    name = options.config_name or f"{'digits' if of_digits else 'cifar'}/generate"
    data = _data_of("generate", name, options.data)
    if more:
        _compare(options, data)
        return
    report = inspect_store(
        store,
        load_images(data, "train"),
        options.out or store / "report",
        encoder=options.encoder,
        denoiser=options.denoiser,
        condition=options.condition,
        fid=options.fid,
        limit=options.limit,
        data=data,
    )
    print(summary(report))
    print(f"Written to {options.out or store / 'report'}")


def _compare(options: argparse.Namespace, data) -> None:
    """``clsp inspect`` of several stores."""
    if options.encoder is None or options.out is None:
        raise ClspError("Several stores are compared by an encoder: give --encoder and --out.")
    if options.denoiser or options.condition or options.fid:
        raise ClspError(
            "--denoiser, --condition and --fid are about one store; name one, or leave them out."
        )

    from clsp_plugin.benchmark.plane import compare_stores, side_by_side
    from clsp_plugin.data.images import load_images

    keys = {"encoder": options.encoder, "limit": options.limit, "data": data}
    print(
        side_by_side(compare_stores(options.store, load_images(data, "train"), options.out, **keys))
    )
    print(f"Written to {options.out}")


def _bench(args: list[str]) -> None:
    suites = ", ".join(sorted(file.stem for file in (shipped() / "bench").glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="clsp bench",
        description="Run a suite of experiments and make its tables and figures. What is done is "
        "not run again; stopped at any moment and started again, it continues.",
        epilog=f"Suites that ship with the package: {suites}.",
    )
    parser.add_argument("suite", help="a suite's name, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings for every run of the suite"
    )
    parser.add_argument("--out", type=Path, help="where to write (default runs/SUITE)")
    parser.add_argument(
        "--artifacts", type=Path, help="where denoisers, candidates and runs lie, which suites can "
        "share (default: in --out if it is given, else runs/artifacts)",
    )  # fmt: skip
    parser.add_argument("--protocol", help="strict or paper, in place of the suite's")
    parser.add_argument("--jobs", type=int, help="units at a time (default: one a core or GPU)")
    parser.add_argument(
        "--launcher", help="a launcher of Hydra's instead: joblib, submitit_slurm, submitit_local, "
        "ray or basic; its settings are overrides, such as hydra.launcher.partition=gpu",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost")
    parser.add_argument("--datasets", type=_words, default=[], help="such as digits,cifar10")
    parser.add_argument("--methods", type=_words, default=[], help="such as simclr,byol")
    parser.add_argument("--seeds", type=_words, default=[], help="such as 0,1,2")
    parser.add_argument(
        "--keep-stale",
        action="store_true",
        help="take what older numerics made; the table marks it",
    )
    options = parser.parse_intermixed_args(args)
    if not all(re.fullmatch(r"[0-9]{1,20}", seed) for seed in options.seeds):
        raise ClspError(f"--seeds {short(','.join(options.seeds))} are not numbers, such as 0,1,2.")
    check_value("--seeds", [int(seed) for seed in options.seeds], SEED)

    from clsp_plugin.benchmark.bench import bench

    bench(
        options.suite, options.out, artifacts=options.artifacts, jobs=options.jobs,
        launcher=options.launcher, dry_run=options.dry_run, keep_stale=options.keep_stale,
        datasets=options.datasets, methods=options.methods,
        seeds=[int(seed) for seed in options.seeds], protocol=options.protocol,
        overrides=options.overrides,
    )  # fmt: skip


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _demo(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="clsp demo",
        description="Train a denoiser, draw candidates, pre-train five methods under one budget, "
        "evaluate them and write a table and pictures; continues where it was stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where to write")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method (default 2)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size of everything; 0.05 is a quick look"
    )
    options = parser.parse_args(args)
    check_value("--seeds", options.seeds, Rule(low=1, high=1000))
    check_value("--scale", options.scale, Rule(above=0, high=1000))
    from clsp_plugin.benchmark.demo import demo

    demo(options.out, seeds=options.seeds, scale=options.scale)


def _doctor(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="clsp doctor",
        description="Say what is installed, which solo-learn is seen, whether Hydra finds us, and "
        "what is wrong; ends with exit code 1 if something is.",
    )
    parser.add_argument("folder", nargs="?", default=".", help="a clone of solo-learn (default .)")
    options = parser.parse_args(args)
    from clsp_plugin.solo.doctor import examine

    report = examine(options.folder)
    print(report)
    return 1 if report.problems else 0


@contextmanager
def _files_told() -> Iterator[None]:
    """One sentence where the system refuses a file (no room, no permission, ..) or memory."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        name = f"{short(error.filename, 300)}: " if error.filename else ""
        raise ClspError(
            f"{name}{error.strerror}. What was written whole is kept; "
            f"{_REFUSALS[error.errno]}, and give the same command again."
        ) from error
    except MemoryError as error:
        raise ClspError(
            f"The memory is too small for this ({str(error) or 'the system gives no more'}); give "
            f"fewer or smaller images, a smaller batch size or network, or a larger machine."
        ) from error


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return
    verb, args = argv[0], argv[1:]
    if verb == "linear" and any(re.fullmatch(r"\+*finetune=(?i:true)", arg) for arg in args):
        verb = "finetune"  # as solo-learn says it; its settings are another file's
    if verb in ("-V", "--version"):
        print(__version__)
    elif verb in _HYDRA_VERBS:
        if any(arg in ("-h", "--help") for arg in args):
            print(_verb_help(verb), end="")
        else:
            _hydra(verb, args)
    elif verb == "table":
        _table(args)
    elif verb == "figures":
        _figures(args)
    elif verb == "report":
        _report(args)
    elif verb == "import-denoiser":
        _import_denoiser(args)
    elif verb == "embed":
        _embed(args)
    elif verb == "inspect":
        _inspect(args)
    elif verb == "bench":
        _bench(args)
    elif verb == "demo":
        _demo(args)
    elif verb == "doctor":
        sys.exit(_doctor(args))
    else:
        raise ClspError(f"there is no verb {verb}{nearest(verb, {*_HYDRA_VERBS, *_PLAIN_VERBS})}")


@contextmanager
def _terminated() -> Iterator[None]:
    """Let SIGTERM end what is done as Ctrl-C does, in order; a second one ends it at once."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # it has no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Entry point; bad input ends with one sentence and exit code 2."""
    streams.prepare()
    try:
        with _terminated(), _files_told():
            try:
                _dispatch(sys.argv[1:])
            finally:
                streams.flush()
    except BrokenPipeError:
        streams.abandon()
    except ClspError as error:
        print(f"clsp: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("clsp: stopped; the same command continues where it can.", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


if __name__ == "__main__":
    main()
