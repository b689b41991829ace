"""Signals that come at the worst moment: while what must not stay is being removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from toastc.graphs.onnx.files import staged
from toastc.system.files import scratch, stop_cleanly, uninterrupted, write_beside

Stop = Callable[[], None]
Room = Callable[[], AbstractContextManager[Path]]


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def stop(request: pytest.FixtureRequest) -> Iterator[Stop]:
    """Sends the signal as the system would: to whichever thread takes it, here not the one that handles it."""
    done = threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)
    other.start()
    seen, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have silenced it
    awake = signal.set_wakeup_fd(told)

    def send() -> None:
        """Comes back once it has arrived, and is about to be handled."""
        signal.pthread_kill(other.ident or 0, request.param)
        os.read(seen, 1)

    with stop_cleanly():
        yield send
    signal.set_wakeup_fd(awake)
    signal.signal(signal.SIGINT, before)
    done.set()
    other.join()
    os.close(seen)
    os.close(told)


def stopped(removing: Callable[..., None], stop: Stop) -> Callable[..., None]:
    """The signal comes as the first removal begins."""
    left = [stop]

    def removed(*args: object, **more: object) -> None:
        if left:
            left.pop()()
        removing(*args, **more)

    return removed


@pytest.mark.parametrize("room", [scratch, partial(staged, Path("out.onnx"))], ids=["scratch", "staged"])
def test_a_folder_that_is_being_removed(stop: Stop, temp: Path, monkeypatch: pytest.MonkeyPatch, room: Room) -> None:
    def work() -> None:
        with room() as inside:
            folder = inside if inside.is_dir() else inside.parent
            (folder / "out.onnx").touch()

    monkeypatch.chdir(temp)
    monkeypatch.setattr(shutil, "rmtree", stopped(shutil.rmtree, stop))
    with pytest.raises(KeyboardInterrupt):
        work()
    assert {p.name for p in temp.iterdir()} <= {"out.onnx"}


def test_a_file_that_is_being_removed(stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        with write_beside(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise OSError("full")

    monkeypatch.setattr(Path, "unlink", stopped(Path.unlink, stop))
    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []


def test_signals_wait(stop: Stop) -> None:
    seen = []

    def work() -> None:
        with uninterrupted():
            for _ in range(3):
                stop()
            seen.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["the end"]


class Thing:
    """What weak references are made to."""


def test_a_stop_that_python_throws_away_comes_again(stop: Stop, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        thing = Thing()
        watching = weakref.ref(thing, lambda gone: stop())
        del thing
        time.sleep(10)
        pytest.fail(f"nothing came of {watching}")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == ""


def test_other_threads_are_left_alone() -> None:
    """Only the main thread may set handlers."""
    seen: list[signal.Handlers | int | Callable[..., object] | None] = []

    def work() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def loading(stopped: bool) -> None:
    with stop_cleanly():
        if stopped:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        raise ImportError("its extensions failed")


def test_what_a_library_says_when_it_was_stopped() -> None:
    """One that is being loaded may swallow the stop, and say that it is not installed as it should be."""
    with pytest.raises(KeyboardInterrupt) as caught:
        loading(stopped=True)
    assert isinstance(caught.value.__cause__, ImportError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ImportError):
        loading(stopped=False)
