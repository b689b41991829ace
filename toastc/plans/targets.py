"""What a file shall become for the runtime it will live in: fused nodes, half floats, 8-bit numbers.

A runtime is a row. What it says of it is all there is to say: a new one needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..system.errors import ToastcError


@dataclass(frozen=True)
class Runtime:
    name: str
    about: str
    fuses: bool = False  # attention is one node of ONNX Runtime's
    symmetric: bool = False  # 8-bit inputs have no zero point
    equal_widths: bool = False  # its fastest kernels for half floats want queries as wide as values
    widths: int = 1  # widths in multiples of so many at least
    rewrite: str = ""  # one of `compiler.deploy.REWRITES`, which makes its other nodes


ROWS = (
    Runtime("portable", "plain ONNX operators"),
    Runtime("ort-cpu", "ONNX Runtime on a CPU: attention is one node", fuses=True),
    Runtime("ort-cuda", "ONNX Runtime on CUDA: norms and biases are fused as well", fuses=True, equal_widths=True, rewrite="ort"),
    Runtime("tensorrt", "TensorRT: it fuses plain operators itself, and its 8-bit numbers are symmetric", symmetric=True),
    Runtime("openvino", "OpenVINO: it fuses plain operators itself"),
)
RUNTIMES = {row.name: row for row in ROWS}
DTYPES = ("fp16", "bf16")
QUANTIZED = ("int8",)


@dataclass(frozen=True)
class Deploy:
    """Empty: the graph stays one of plain ONNX operators, in float32."""

    runtime: str = "portable"
    dtype: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        for what, given, known in (
            ("for", self.runtime, tuple(RUNTIMES)),
            ("dtype", self.dtype, (None, *DTYPES)),
            ("quantize", self.quantize, (None, *QUANTIZED)),
        ):
            if given not in known:
                raise ToastcError(f"{what}: is one of {', '.join(k for k in known if k)}; got {given}")
        if self.dtype and self.quantize:
            raise ToastcError("dtype and quantize: give one of the two; what is not int8 stays float32")

    def __bool__(self) -> bool:
        return self != PORTABLE

    @property
    def row(self) -> Runtime:
        return RUNTIMES[self.runtime]

    @property
    def int8(self) -> bool:
        return self.quantize is not None

    @property
    def fused(self) -> bool:
        return self.row.fuses

    @property
    def widths(self) -> int:
        """Widths in multiples of so many at least: kernels for 8 bits like 16."""
        return max(self.row.widths, 16 if self.int8 else 1)

    @property
    def equal(self) -> bool:
        """Are queries and values to be as wide as each other?"""
        return self.row.equal_widths and self.dtype is not None


PORTABLE = Deploy()
