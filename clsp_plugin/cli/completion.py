"""``clsp completion bash|zsh``: a script that completes verbs, options and configurations.

Its words are those of the installed version, so nothing is started when Tab is pressed.
"""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clsp_plugin import __version__
from clsp_plugin.cli.experiments import help_of
from clsp_plugin.config.compose import names_of, typed_names
from clsp_plugin.config.shipped import shipped
from clsp_plugin.errors import ClspError, nearest
from clsp_plugin.verbs import EXPERIMENTS, VERBS, Verb

__all__ = ["completion"]

# The verbs that are given images, by the configurations of which verb.
_IMAGES_OF = {"embed": "denoiser", "inspect": "generate"}


@dataclass(frozen=True)
class _Words:
    """What may follow a verb: options, values by the pattern of their option, other words."""

    options: Sequence[str]
    after: Mapping[str, Sequence[str]]
    others: Sequence[str] = ()


def completion(args: list[str]) -> None:
    """Run ``clsp completion`` with the arguments that follow it."""
    parser = argparse.ArgumentParser(
        prog="clsp completion",
        description="Print what lets a shell complete verbs, options and the names of "
        'configurations. Put eval "$(clsp completion bash)" into ~/.bashrc, or eval "$(clsp '
        'completion zsh)" into ~/.zshrc after compinit.',
    )
    parser.add_argument("shell", help="bash or zsh")
    shell = parser.parse_args(args).shell
    if shell not in _SHELLS:
        raise ClspError(f"There is no completion for {shell}{nearest(shell, _SHELLS)}")
    words = {name: _words(verb) for name, verb in VERBS.items()}
    print(_SHELLS[shell](words), end="")


def _words(verb: Verb) -> _Words:
    """Return what a verb takes, by its own help and by what ships with the package."""
    text = help_of(verb.name) if verb.experiment else _help(verb)
    options = {"--help", *re.findall(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", text, re.MULTILINE)}
    after = {
        option: values.split(",") for option, values in re.findall(r"(--[\w-]+) \{(.*?)\}", text)
    }
    named = _IMAGES_OF.get(verb.name, verb.name)
    if named in EXPERIMENTS:
        after["--config-name|-cn"] = list(dict.fromkeys(typed_names(named)))
    return _Words(sorted(options), after, _others(verb.name))


def _help(verb: Verb) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        verb.run(["--help"])
    return out.getvalue()


def _others(verb: str) -> Sequence[str]:
    if verb == "bench":
        return sorted(file.stem for file in (shipped() / "bench").glob("*.yaml"))
    if verb == "show":
        return [f"{verb}/{name}" for verb in EXPERIMENTS for name in names_of(verb)]
    return list(_SHELLS) if verb == "completion" else ()


def _cases(words: Mapping[str, _Words], some: str, joined: str) -> str:
    """Return the branches of a ``case`` over verbs.

    Args:
        words: of each verb.
        some: the assignment of words, with ``{}`` for these.
        joined: the condition that the word begins like an option.
    """
    lines = []
    for verb, own in words.items():
        lines += [f"    {verb})", "        case $prev in"]
        for option, values in own.after.items():
            lines.append(f"            {option}) {some.format(_quoted(values))} ;;")
        lines += [
            f"            *) if {joined}; then {some.format(_quoted(own.options))}",
            f"               else {some.format(_quoted(own.others))}; fi ;;",
            "        esac ;;",
        ]
    return "\n".join(lines)


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _bash(words: Mapping[str, _Words]) -> str:
    verbs = _quoted(["--help", "--version", *words])
    cases = _cases(words, 'known="{}"', '[ "${cur:0:1}" = "-" ]')
    return f"""# clsp {__version__} in bash
_clsp() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} known=
    # = is a word of its own here
    if [ "$cur" = "=" ]; then cur=
    elif [ "$prev" = "=" ]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    if [ "$COMP_CWORD" -eq 1 ]; then known="{verbs}"
    else case ${{COMP_WORDS[1]}} in
{cases}
    esac; fi
    COMPREPLY=($(compgen -W "$known" -- "$cur"))
}}
complete -o default -F _clsp clsp
"""


def _zsh(words: Mapping[str, _Words]) -> str:
    verbs = " ".join(shlex.quote(f"{name}:{VERBS[name].does}") for name in words)
    cases = _cases(words, "known=({})", "[[ $PREFIX = -* ]]")
    return f"""#compdef clsp
# clsp {__version__} in zsh
_clsp() {{
    local prev=$words[CURRENT-1]
    local -a known
    if (( CURRENT == 2 )); then
        known=({verbs})
        _describe verb known
        return
    fi
    if compset -P '*='; then prev=${{IPREFIX%=}}; fi
    case $words[2] in
{cases}
    esac
    if (( $#known )); then compadd -a known; else _files; fi
}}
if [[ $funcstack[1] = _clsp ]]; then _clsp "$@"; else compdef _clsp clsp; fi
"""


_SHELLS = {"bash": _bash, "zsh": _zsh}
