"""What an error ends the command in: an exit status, and one line that says whose fault it is."""

from __future__ import annotations

import os

from ..system.errors import ToastcError
from .parser import say

STARVED = (  # words of libraries that find no memory
    "start new thread",
    "Failed to serialize proto",
    "bad allocation",
    "bad_alloc",
    "failed to map segment",
    "Cannot allocate memory",
    "array is too big",
)


def exit_status(error: BaseException) -> int:
    """The exit status of an error, which is told in one line."""
    if was_interrupted(error):
        say("interrupted")
        return 130
    if isinstance(error, ToastcError):
        say(str(error))
        return error.status
    if isinstance(error, MemoryError):
        return unforeseen("not enough memory: ", error)
    if is_starved(error):
        return unforeseen("not enough memory: ", error.__cause__ or error)
    if isinstance(error, RuntimeError | OSError):
        return unforeseen("", error)
    return unforeseen("a bug of toastc, please report it: ", error)


def was_interrupted(error: BaseException | None) -> bool:
    """Ctrl-C, or what a library made of it: one that is just being loaded says that it can not be."""
    seen = set[int]()  # an error may have been raised from one that was raised while it was handled
    while error is not None and not isinstance(error, KeyboardInterrupt) and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


def is_starved(error: BaseException) -> bool:
    return any(words in str(error) for words in STARVED)


def unforeseen(what: str, error: BaseException) -> int:
    if os.environ.get("TOASTC_DEBUG"):
        raise error
    say(f"{what}{type(error).__name__}: {str(error)[:300]} (TOASTC_DEBUG=1 shows where)")
    return 2
