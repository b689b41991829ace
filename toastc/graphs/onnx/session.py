"""ONNX Runtime: run a file, and time two files side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...system.cores import CORES
from ...system.errors import ToastcError
from ...system.interleave import interleave
from ...system.memory import make_room
from ...system.vocabulary import Operand

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def runtime() -> Operand:
    """ONNX Runtime is installed as one of two packages, or not at all: looking at a file does without it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ToastcError(f"ONNX Runtime is not here; pip install 'toastc[cpu]', or 'toastc[gpu]' ({error})") from None
    return onnxruntime


def session(
    path: Path, provider: str = "cpu", threads: int = 0, frugal: bool = False, given: Mapping[str, str] | None = None
) -> InferenceSession:
    """`frugal` keeps one copy of the weights in memory, not a second, rearranged one, and nothing of a run that is over. `given`
    are the provider's options.
    """
    name, ort = PROVIDERS[provider], runtime()
    if name not in ort.get_available_providers():
        raise ToastcError(f"ONNX Runtime here has no {name}; install the matching extra (toastc[gpu])")
    options = options_of(frugal)
    options.intra_op_num_threads = threads
    if frugal:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_pattern = False
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    make_room()
    try:
        return ort.InferenceSession(str(path), options, providers=[(name, dict(given or {}))])
    except Exception as error:  # noqa: BLE001  onnxruntime raises classes of its own that share no base
        raise ToastcError(f"{path}: ONNX Runtime can not load it ({reason(error)})") from None


def options_of(frugal: bool) -> Operand:
    options = runtime().SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or it takes a core from whoever runs next
    if frugal:
        options.enable_cpu_mem_arena = False
    return options


def reason(error: Exception) -> str:
    """The runtime's own words on one line. Where it names files and functions first, what went wrong stands at the end."""
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:80]} ... {text[-150:]}"


def session_of(
    model: bytes,
    folder: Path | None,
    provider: str = "cpu",
    weights: Mapping[str, np.ndarray] | None = None,
    frugal: bool = False,
    lanes: int = 1,
) -> InferenceSession:
    """A session of a model in memory, whose external weights are in `folder`, or are these: they must live as long as it does.
    `frugal` keeps nothing of a run that is over; the second copy of the weights makes a run a fifth faster, and stays.
    `lanes`: so many runs at one time, which share the cores.
    """
    ort = runtime()
    options = options_of(frugal)
    if lanes > 1:
        options.intra_op_num_threads = max(1, CORES // lanes)
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if weights:
        options.add_external_initializers(list(weights), [ort.OrtValue.ortvalue_from_numpy(a) for a in weights.values()])
    make_room()
    try:
        return ort.InferenceSession(model, options, providers=[PROVIDERS[provider]])
    except Exception as error:  # noqa: BLE001  onnxruntime raises classes of its own that share no base
        raise ToastcError(f"ONNX Runtime can not load the model ({reason(error)})") from None


def run(path: Path, feeds: Sequence[Mapping[str, np.ndarray]], provider: str = "cpu") -> list[list[np.ndarray]]:
    """The outputs for each of several inputs."""
    made = session(path, provider, frugal=True)
    return [[np.asarray(out) for out in run_session(made, path, feed)] for feed in feeds]


def run_session(
    made: InferenceSession, path: Path | str, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> list[Operand]:
    try:
        return made.run(outputs, dict(feeds))  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001  onnxruntime raises classes of its own that share no base
        raise ToastcError(f"{path}: ONNX Runtime can not run it ({reason(error)})") from None


def milliseconds(model: bytes, given: np.ndarray, provider: str = "cpu") -> float:
    """The median of a few runs of a model with one input, after a warm-up."""
    made = session_of(model, None, provider)
    return float(np.median(interleave([partial(made.run, None, {made.get_inputs()[0].name: given})], 0.0)[0]))


def time_interleaved(
    paths: Sequence[Path],
    feeds: Mapping[str, np.ndarray],
    provider: str,
    threads: int,
    seconds: float,
    options: Mapping[str, str] | None = None,
) -> list[list[float]]:
    """Milliseconds of each run of each file, taking turns."""
    sessions = [session(p, provider, threads, given=options) for p in paths]
    return interleave([partial(run_session, s, p, feeds) for s, p in zip(sessions, paths, strict=True)], seconds)
