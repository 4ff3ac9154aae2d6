"""The console script's door: what needs no torch is answered before it is imported, which takes seconds."""

import contextlib
import importlib
import mmap
import os
import sys

from vision_zoo.cli.commands import COMMANDS, ELSEWHERE, command_help, overview
from vision_zoo.errors import InputError, VisionZooError, did_you_mean, lack, missing
from vision_zoo.stopping import until_stopped
from vision_zoo.version import __version__

OPENBLAS = 128 * 2**20  # bytes that it may ask for as it is loaded
SPARE = 8 * 2**20  # bytes that are let go where there are no others, for the end takes some as well


def main(argv: list[str] | None = None) -> int:
    """Run vision_zoo; see ``vision_zoo --help``.

    Args:
        argv: words of the command line, without the program's name; by default those of this process.

    Returns:
        The exit code: 0 success, 1 failure, 2 wrong usage or input, 128 + n stopped by signal n.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes may be any bytes
    return until_stopped(lambda: _answer(words), own_process=argv is None)


def _answer(words: list[str]) -> int:
    """Run the command and put its end in words; the exit code."""
    spare = bytearray(SPARE)
    try:
        code = _run(words)
        sys.stdout.flush()
    except VisionZooError as error:
        sys.stderr.write(f"vision_zoo: {error}\n")
        return error.exit_code
    except Exception as error:
        spare.clear()
        what = lack(error) or missing()  # while torch was imported, which needs much of everything
        if os.environ.get("VISION_ZOO_DEBUG") == "1" or not (what or isinstance(error, OSError)):
            raise
        with contextlib.suppress(OSError):  # no file: the embedding program has put something else in its place
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python writes again as it ends
        if not isinstance(error, BrokenPipeError):  # whose reader, such as head, has seen enough
            sys.stderr.write(f"vision_zoo: {what or error}\n")
        return 1
    return code


def _run(words: list[str]) -> int:
    """Answer what needs no torch, and let cli.main run the rest; the exit code."""
    words = [*words[1:2], "--help"] if words[:1] == ["help"] and words[1:2] else words
    first = words[0] if words else ""
    if first in ("", "-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0 if words else 2
    if first == "--version":
        sys.stdout.write(f"vision_zoo {__version__}\n")
        return 0
    if first not in COMMANDS:
        problem = f"there is no command {first!r}{did_you_mean(ELSEWHERE.get(first, first), COMMANDS)}"
        if first.startswith("-"):
            follows = f" must follow a command, as in: vision_zoo fit {' '.join(words[:2])}"
            problem = first + (did_you_mean(first, ("--version", "--help")) or follows)
        raise InputError(f"{problem}\nCommands: {', '.join(COMMANDS)}. See: vision_zoo --help")
    command = COMMANDS[first]
    if "-h" in words or "--help" in words or (command.light and "--help_all" in words):
        sys.stdout.write(command_help(first))
        return 0
    if command.light:
        module = importlib.import_module(f"vision_zoo.{command.where.partition(':')[0]}")
        return int(module.main(words[1:]))
    if "" not in sys.path:  # the user's own modules, in the working directory; last, so that none hides another
        sys.path.append("")
    with mmap.mmap(-1, OPENBLAS):  # which asks without end for memory that is not there
        pass
    importlib.import_module("scipy.linalg")  # loads it
    from vision_zoo.cli.main import main as run  # noqa: PLC0415  # imports torch, which takes seconds

    return run([first, "--help"] if "--help_all" in words else words)


if __name__ == "__main__":
    sys.exit(main())
