"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from safetensors import SafetensorError

from .errors import ToastcError


def check_targets(targets: Sequence[Path], taken: Sequence[Path] = ()) -> None:
    """Before the work begins: each target is the name of a file, stands for itself, and is none of the inputs."""
    seen: set[Path] = set()
    for target in targets:
        try:
            found, folder, real = target.exists(), target.absolute().parent, target.resolve()
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in circles
            raise ToastcError(f"{target}: can not be written ({getattr(error, 'strerror', None) or error})") from None
        if target.is_dir():
            raise ToastcError(f"{target}: is a folder; give the name of a file to write")
        if not folder.is_dir():
            raise ToastcError(f"{target}: its folder does not exist")
        if not os.access(folder, os.W_OK):
            raise ToastcError(f"{target}: can not be written ({os.strerror(errno.EACCES)})")
        if found and not target.is_file():
            raise ToastcError(f"{target}: is a pipe or a device; give the name of a file to write")
        if any(found and given.exists() and target.samefile(given) for given in taken):
            raise ToastcError(f"{target}: would overwrite the input; choose another output")
        if real in seen:
            raise ToastcError(f"{target}: is the target of two outputs; choose another name for one")
        seen.add(real)


@contextlib.contextmanager
def write_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it over the target if all goes well."""
    target = Path(target)
    check_targets([target])
    temporary = hidden(target)
    try:
        with removed(temporary):
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            os.chmod(temporary, mode)  # safetensors makes the file anew, for its owner alone
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise ToastcError(f"{target}: can not be written ({getattr(error, 'strerror', None) or error})") from None


def hidden(target: Path) -> Path:
    """A name beside it that nobody has. It is known before there is anything to remove, so that Ctrl-C finds no gap."""
    return target.absolute().parent / f".{target.name}.{os.urandom(4).hex()}.part"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what nobody will ask for."""
    with contextlib.ExitStack() as kept:
        try:
            with uninterrupted():  # the first look for a place tries it with a file
                folder = Path(tempfile.gettempdir()) / f"toastc-{os.urandom(6).hex()}"
            kept.enter_context(removed(folder))
            folder.mkdir(mode=0o700)
        except OSError as error:
            why = error.strerror or error
            raise ToastcError(f"no folder for temporary files can be written to; set TMPDIR to one ({why})") from None
        yield folder


@contextlib.contextmanager
def removed(path: Path) -> Iterator[None]:
    """It is gone at the end, whatever signals come while it goes."""
    try:
        yield
    finally:
        try:
            with uninterrupted():
                remove(path)
        finally:  # a signal on the way into the block above
            remove(path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else moves files into this folder meanwhile, so that two files that belong together arrive together."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until the block is done. (A mask would not do: libraries' threads take them, and Python handles them here.)"""
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread alone
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    came: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda which, frame: came.append(which))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def stop_cleanly() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C does, so that temporary files are removed. Where Python throws exceptions away
    (a weak reference's callback, a `__del__`) the stop comes again a moment later. What fails after a stop was stopped:
    libraries that are just being loaded say something else.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def again() -> None:
        if callable(signal.getsignal(signal.SIGTERM)):  # it is still somebody's to stop
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def unheard(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            timer = threading.Timer(0.01, again)
            timer.daemon = True
            timer.start()
        else:
            hook(lost)

    before, hook = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}, sys.unraisablehook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    sys.unraisablehook = unheard
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
