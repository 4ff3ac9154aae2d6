"""Completion scripts for shells, plain text with the names that there are when it is made.

Those of jsonargparse, argcomplete and shtab import torch at each TAB or start of a shell, and know no recipes.
"""

import re
from collections.abc import Sequence
from shlex import quote

from vision_zoo.cli.commands import COMMANDS, Option
from vision_zoo.errors import ConfigError, did_you_mean, refuse
from vision_zoo.verbs import list_ as listing

_SAFE = re.compile(r"[\w./+=-]+")  # of names that become part of a script which a shell evaluates


def main(words: Sequence[str]) -> int:
    """Answer ``vision_zoo completion``; the exit code."""
    print(completion(" ".join(words)))
    return 0


def completion(shell: str) -> str:
    """Print a completion script for bash, zsh or fish.

    Args:
        shell: bash, zsh or fish.
    """
    given = f", not {shell!r}{did_you_mean(shell, SHELLS)}" if shell else ""
    hint = 'For bash, in ~/.bashrc: eval "$(vision_zoo completion bash)"'
    refuse(ConfigError, (shell not in SHELLS, f"completion takes bash, zsh or fish{given}\n{hint}"))
    return SHELLS[shell]()


def _names() -> dict[str, str]:
    """The names of what there is, by the word that stands for them; the shell itself knows its FILES."""
    rows = {"RECIPES": listing.recipes(), "BACKBONES": listing.backbones(), "DATASETS": listing.datasets(), "FILES": []}
    names = {word: [row["name"] for row in found if _SAFE.fullmatch(row["name"])] for word, found in rows.items()}
    return {word: " ".join(found) for word, found in names.items()}


def _flags(name: str) -> list[Option]:
    help_all = [] if COMMANDS[name].light else [Option("--help_all", "", "all options")]
    common = [option for option in COMMANDS[name].options if option.flag]
    return [*common, Option("--help", "", "the common options"), *help_all]


def _bash() -> str:
    """The script for bash; it also serves words of the form --option=value."""
    names, cases, flags = _names(), [], []
    for name, command in COMMANDS.items():
        for option in command.options:
            words = " ".join(names.get(word, word) for word in option.completes.split())
            files = "yes" if "FILES" in option.completes else "no"
            before = option.flag or ("networks" if option.value == "WORDS" else name)
            cases.append(f'        {name}:{before}) words="{words}" files={files} ;;')
        flags.append(f'            {name}) words="{" ".join(option.flag for option in _flags(name))}" ;;')
    lines = "\n"
    return f"""# bash completion of vision_zoo. In ~/.bashrc: eval "$(vision_zoo completion bash)"
_vision_zoo() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words="" files=""
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$current"))
        return
    fi
    if [[ $current == "=" ]]; then
        current=""
    elif [[ $before == "=" ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    case ${{COMP_WORDS[1]}}:$before in
{lines.join(cases)}
    esac
    if [[ -z $files || ( $current == -* && $before != -* ) ]]; then
        files=no
        case ${{COMP_WORDS[1]}} in
{lines.join(flags)}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ $files == yes ]]; then
        compopt -o filenames 2>/dev/null
        while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$current")
    fi
}}
complete -F _vision_zoo vision_zoo"""


def _zsh() -> str:
    """The script for zsh, which reads that of bash."""
    head = '# zsh completion of vision_zoo. In ~/.zshrc: eval "$(vision_zoo completion zsh)"'
    return f"{head}\nautoload -Uz compinit bashcompinit && compinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    """The script for fish; commands and options come with their texts."""
    head = "# fish completion of vision_zoo. In ~/.config/fish/config.fish: vision_zoo completion fish | source"
    names, lines = _names(), [head, "complete -c vision_zoo -f"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c vision_zoo -n __fish_use_subcommand -a {name} -d {quote(command.text)}")
        for option in [*(option for option in command.options if not option.flag), *_flags(name)]:
            words = " ".join(names.get(word, word) for word in option.completes.split())
            offered = f" -a {quote(words)}" if words else ""
            kind = "" if not option.value else " -r -F" if "FILES" in option.completes else " -x"
            about = f" -l {option.flag[2:]}{kind}{offered} -d {quote(option.text)}" if option.flag else offered
            lines.append(f"complete -c vision_zoo -n '__fish_seen_subcommand_from {name}'{about}")
    return "\n".join(lines)


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
