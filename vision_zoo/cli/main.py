"""Run one command and tell what went wrong in words."""

import os
import sys
from collections.abc import Sequence

from vision_zoo.cli.messages import explain, quiet
from vision_zoo.cli.parser import VisionZooCLI
from vision_zoo.training.performance import keep_freed_memory
from vision_zoo.training.processes import leave_processes, reported_elsewhere


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: words of the command line, without the program's name.

    Returns:
        The exit code: 0 success, 1 failure, 2 wrong usage or input, 128 + n stopped by signal n.
    """
    quiet()
    keep_freed_memory()
    try:
        VisionZooCLI(list(argv))
        leave_processes()
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("VISION_ZOO_DEBUG") == "1":
            raise
        message, code = explain(error)
        if not reported_elsewhere(error):
            sys.stderr.write(f"vision_zoo: {message}\n")
        return code
    except KeyboardInterrupt:
        return 130
    except SystemExit as asked:  # the parser's --help and --print_config; Lightning turns Ctrl-C into an exit
        return 130 if isinstance(asked.__context__, KeyboardInterrupt) else int(asked.code or 0)
    return 0
