"""What a file shall become for the runtime it will live in: fused nodes, half floats, 8-bit numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ..system.errors import ToastcError

RUNTIMES = ("portable", "ort-cpu", "ort-cuda", "tensorrt")
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
            ("for", self.runtime, RUNTIMES),
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
    def widths(self) -> int:
        """Widths in multiples of so many at least: kernels for 8 bits like 16."""
        return 16 if self.quantize else 1

    @property
    def equal(self) -> bool:
        """Are queries and values as wide as each other? The fastest kernels for half floats ask for that."""
        return self.runtime == "ort-cuda" and self.dtype is not None

    @property
    def fused(self) -> bool:
        return self.runtime.startswith("ort")


PORTABLE = Deploy()
