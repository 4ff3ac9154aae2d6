"""Completion scripts for shells, written from the table of options and the names that there are.

Those of jsonargparse, argcomplete and shtab, import torch at each TAB or start of a shell, and know no recipes. This
script is plain text, made in a tenth of a second; a new backbone shows after the next start of the shell.
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
    shell = words[0] if words else ""
    given = f", not {' '.join(words)!r}{did_you_mean(shell, SHELLS)}" if words else ""
    hint = 'For bash, in ~/.bashrc: eval "$(vision_zoo completion bash)"'
    wrong = len(words) != 1 or shell not in SHELLS
    refuse(ConfigError, (wrong, f"completion takes bash, zsh or fish{given}\n{hint}"))
    print(completion(shell))
    return 0


def completion(shell: str) -> str:
    """Print a completion script for bash, zsh or fish.

    Args:
        shell: bash, zsh or fish.
    """
    return SHELLS[shell]()


def _values(option: Option) -> tuple[str, str]:
    """The words that a shell offers for an option, and whether it adds FILES or FOLDERS."""
    there_is = {"recipes": listing.recipes, "backbones": listing.backbones, "datasets": listing.datasets}
    words: list[str] = []
    for word in option.completes.split():
        words += [row["name"] for row in there_is[word]()] if option.flag and word in there_is else [word]
    files = {"FILES", "FOLDERS"} & {*words}
    return " ".join(word for word in words if _SAFE.fullmatch(word) and word not in files), "".join(files)


def _flags(name: str) -> list[Option]:
    help_all = [] if COMMANDS[name].light else [Option("--help_all", "", "all options")]
    common = [option for option in COMMANDS[name].options if option.flag]
    return [*common, Option("--help", "", "the common options"), *help_all]


def _bash() -> str:
    """The script for bash; it also serves words of the form --option=value."""
    cases, flags = [], []
    for name, command in COMMANDS.items():
        for option in command.options:
            words, files = _values(option)
            cases.append(f'        {name}:{option.flag or name}) words="{words}" files={files or "none"} ;;')
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
        files=none
        case ${{COMP_WORDS[1]}} in
{lines.join(flags)}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ $files != none ]]; then
        local kind=-f
        [[ $files == FOLDERS ]] && kind=-d
        compopt -o filenames 2>/dev/null
        while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen $kind -- "$current")
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
    lines = [head, "complete -c vision_zoo -f"]
    for name, command in COMMANDS.items():
        lines.append(f"complete -c vision_zoo -n __fish_use_subcommand -a {name} -d {quote(command.text)}")
        for option in [*(option for option in command.options if not option.flag), *_flags(name)]:
            words, files = _values(option)
            offered = f" -a {quote(words)}" if words else ""
            offered = " -a '(__fish_complete_directories)'" if files == "FOLDERS" else offered
            kind = "" if not option.value else " -r -F" if files == "FILES" else " -x"
            about = f" -l {option.flag[2:]}{kind}{offered} -d {quote(option.text)}" if option.flag else offered
            lines.append(f"complete -c vision_zoo -n '__fish_seen_subcommand_from {name}'{about}")
    return "\n".join(lines)


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
