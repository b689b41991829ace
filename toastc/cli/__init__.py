"""The command. What is asked is parsed first, and only then are its parts loaded, so that `--help` comes at once."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from ..system.files import stop_cleanly
from ..system.progress import quiet_libraries
from .exits import exit_status
from .parser import COMMANDS, parser_for


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; every foreseen error is one line on stderr."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # or numpy's threads keep the cores busy, waiting, while the model runs
    asked = list(sys.argv[1:] if argv is None else argv)
    command, given = (asked[0], asked[1:]) if asked and asked[0] in COMMANDS else ("prune", asked)
    args = parser_for(command).parse_args(given)
    args.asked = shlex.join(["toastc", *asked])
    try:
        with stop_cleanly(), quiet_libraries():
            status: int = getattr(import_module(".commands", __package__), command)(args)
            return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the last one who can say it in one line
        return exit_status(error)
