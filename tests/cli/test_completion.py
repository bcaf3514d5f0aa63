"""What Tab offers in bash, and that zsh is offered the same; ``clsp --version``."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from clsp_plugin import __version__
from clsp_plugin.verbs import VERBS


@pytest.fixture(scope="module")
def scripts():
    import contextlib
    import io

    from clsp_plugin.cli.completion import completion

    made = {}
    for shell in ("bash", "zsh"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            completion([shell])
        made[shell] = out.getvalue()
    return made


def offered(script, line):
    """What bash offers at the end of a line; like bash, it takes ``=`` for a word of its own."""
    words = [part for word in line.split(" ") for part in re.split("(=)", word)]
    words = [word for word in words[:-1] if word] + words[-1:]
    code = (
        f"{script}\nCOMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _clsp; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-uc", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clsp ", ["--help", "--version", *VERBS]),
        ("clsp pretr", ["pretrain"]),
        ("clsp pretrain --config-name cifar/clsp_s", ["cifar/clsp_simclr"]),
        ("clsp pretrain --config-name=cifar/clsp_s", ["cifar/clsp_simclr"]),
        ("clsp pretrain -cn simclr_a", ["simclr_adainf", "simclr_aug"]),
        ("clsp denoiser --config-name digits/", ["digits/denoiser", "digits/view"]),
        ("clsp embed run --config-name digits/", ["digits/denoiser", "digits/view"]),
        ("clsp generate --c", ["--cfg", "--config-name", "--config-path"]),
        ("clsp pretrain data.train_path=/tm", []),  # a file
        ("clsp bench lad", ["ladder"]),
        ("clsp bench ladder --d", ["--datasets", "--dry-run"]),
        ("clsp table --format la", ["latex"]),
        ("clsp show transf", ["transfer/transfer"]),
        ("clsp completion ", ["bash", "zsh"]),
        ("clsp unknown ", []),
    ],
)
def test_bash_offers(scripts, line, expected):
    found = offered(scripts["bash"], line)
    assert sorted(found) == sorted(expected)


def test_every_option_of_a_verb_is_offered(scripts, clsp):
    for verb in ("inspect", "figures", "demo", "knn"):
        _, text, _ = clsp(verb, "--help")
        known = set(re.findall(r"--[a-z][a-z-]+", text))
        assert set(offered(scripts["bash"], f"clsp {verb} -")) == known | {"--help"}


def test_zsh_has_the_words_of_bash(scripts):
    def words(script):
        return set(re.findall(r"[\w/.-]+", script.replace("{", " "))) & known

    known = {word for verb in VERBS for word in offered(scripts["bash"], f"clsp {verb} -")}
    for line in ("", "pretrain -cn ", "bench ", "show ", "table --format "):
        known |= set(offered(scripts["bash"], f"clsp {line}"))
    assert len(known) > 200
    assert words(scripts["zsh"]) == known - {"--version"}
    zsh = shutil.which("zsh")
    if zsh:
        subprocess.run([zsh, "-n"], input=scripts["zsh"].encode(), check=True)


def test_another_shell_is_told(clsp):
    code, _, err = clsp("completion", "fish")
    assert (code, err) == (
        2, "clsp: There is no completion for fish; valid names: bash, zsh\n"
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_has_a_name(clsp, option):
    assert clsp(option) == (0, f"clsp-plugin {__version__}\n", "")


def test_completion_and_help_take_no_torch():
    """Completion runs whenever a shell starts."""
    code = (
        "import sys; from clsp_plugin.cli import main; sys.argv = ['clsp', 'completion', 'bash']; "
        "main(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_overview_is_a_column(clsp):
    _, text, _ = clsp()
    begins = {line.index(verb.does) for verb in VERBS.values() for line in text.splitlines()
              if line.split()[:1] == [verb.name]}  # fmt: skip
    assert len(begins) == 1
