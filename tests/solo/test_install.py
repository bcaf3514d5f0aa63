"""Installed with pip, as a user would, Hydra finds us; other applications do not notice."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("clsp_plugin", "hydra_plugins", "scripts")
FILES = ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in")

# An application of Hydra's like main_pretrain.py: a registry is there before it starts.
APPLICATION = """
import sys, types
if "host" in sys.argv:
    sys.argv.remove("host")
    sys.modules["solo"] = types.ModuleType("solo")
    sys.modules["solo.methods"] = types.ModuleType("solo.methods")
    sys.modules["solo.methods"].METHODS = {"simclr": type("SimCLR", (), {})}
import hydra

@hydra.main(version_base="1.2", config_path=".")
def main(cfg):
    ours = sorted(name for name in sys.modules if name.startswith("clsp_plugin"))
    methods = getattr(sys.modules.get("solo.methods"), "METHODS", {})
    where = sys.modules["clsp_plugin"].__file__ if ours else ""
    print("RESULT", sorted(methods), len(ours), cfg.get("method"), where, sep="|")

main()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what an installation needs, so that building leaves nothing in the checkout."""
    why = "wheels are built with setuptools 70.1 or newer here"
    pytest.importorskip("setuptools", minversion="70.1", reason=why)
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, folder)
    return folder


def environment_with(source, folder, *how):
    """A virtual environment with us in it and with the packages of this one; its Python."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (packages,) = folder.glob("[Ll]ib/**/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    # as plain paths: those of editable installs in there, perhaps of us, are not followed
    (packages / "others.pth").write_text("\n".join(here))
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
               "--no-build-isolation", "--ignore-installed", *how, source]  # fmt: skip
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=_clean())
    assert out.returncode == 0, out.stderr
    return python


def _clean():
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.mark.parametrize("how", [[], ["-e"]], ids=["wheel", "editable"])
def test_hydra_finds_an_installation(source, tmp_path, how):
    python = environment_with(source, tmp_path / "env", *how)
    application = tmp_path / "application.py"
    application.write_text(APPLICATION)
    (tmp_path / "simclr.yaml").write_text(
        "method: simclr\nhydra:\n  output_subdir: null\n  run:\n    dir: .\n"
    )

    def start(*args):
        command = [str(python), str(application), *args]
        out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_clean())
        assert out.returncode == 0, out.stderr
        assert out.stderr == ""
        (line,) = out.stdout.splitlines()  # nothing else is printed
        return line.split("|")[1:]

    methods, loaded, _, where = start("--config-name", "simclr", "host")
    assert methods == "['clsp_simclr', 'simclr', 'simclr_aug']"
    assert int(loaded) > 0
    assert Path(where).is_relative_to(source if how else tmp_path / "env")
    # one of our configurations, which the application does not have
    assert start("--config-name", "clsp_simclr", "host")[2] == "clsp_simclr"
    # without solo-learn nothing of ours is even imported but the plugin's one file
    assert start("--config-name", "simclr") == ["[]", "0", "simclr", ""]
