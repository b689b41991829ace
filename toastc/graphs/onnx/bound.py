"""Running a session many times: on tensors of torch where the model is, which share their memory with the runtime's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ...system.errors import ToastcError
from ...system.vocabulary import Array
from .session import reason, run_session, runtime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DEVICES = {"cuda": "cuda"}  # of torch, for the providers whose tensors it can have as they are
Running = Callable[[Mapping[str, Array], Sequence[str]], list[Array]]


def running(made: InferenceSession, provider: str) -> Running:
    """How a session is run: where torch sees the device that the model is on, tensors stay there."""
    device = DEVICES.get(provider)
    if device is None or importlib.util.find_spec("torch") is None:
        return partial(run_session, made, "the model")
    return partial(run_bound, made, device)


def run_bound(made: InferenceSession, device: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
    """With tensors of torch, which share their memory with the runtime's; bools, which differ, are copied."""
    import torch

    ort, binding = runtime(), made.io_binding()
    given = {name: torch.as_tensor(array, device=device).contiguous() for name, array in feeds.items()}
    try:
        for name, tensor in given.items():
            if tensor.dtype is torch.bool:
                value = ort.OrtValue.ortvalue_from_numpy(tensor.cpu().numpy(), device, 0)
            else:
                value = ort.OrtValue.from_dlpack(tensor)
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, device)
        made.run_with_iobinding(binding)
    except Exception as error:  # noqa: BLE001  onnxruntime raises classes of its own that share no base
        raise ToastcError(f"the model: ONNX Runtime can not run it ({reason(error)})") from None
    found = binding.get_outputs()
    copied = [value.data_type() == "tensor(bool)" for value in found]
    return [
        torch.as_tensor(value.numpy(), device=device) if bools else torch.utils.dlpack.from_dlpack(value)
        for value, bools in zip(found, copied, strict=True)
    ]
