"""What only a GPU can show. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from zoo_exports import make_variant, quiet
from zoo_models import FAMILIES

import toastc

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]
RATIOS = {"attention": {"qk": 0.5, "vo": 0.5}, "ffn": 0.5}


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="onnxruntime-gpu is not installed")
def test_fused_half_floats_on_onnxruntime(tmp_path: Path) -> None:
    with quiet():
        make_variant(FAMILIES["deit_tiny"], FAMILIES["deit_tiny"].small(), "dynamo20-dyn", tmp_path)
    dense = tmp_path / "deit_tiny.dynamo20-dyn.onnx"
    toastc.prune(dense, RATIOS, output=tmp_path / "plain.onnx")
    toastc.prune(dense, RATIOS, runtime="ort-cuda", dtype="fp16", output=tmp_path / "fast.onnx")
    name = ort.InferenceSession(dense).get_inputs()[0].name
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    runs = [
        ort.InferenceSession(tmp_path / file, providers=[provider]).run(None, {name: images})[0]
        for file, provider in (("plain.onnx", "CPUExecutionProvider"), ("fast.onnx", "CUDAExecutionProvider"))
    ]
    assert np.abs(runs[0] - runs[1]).max() < 2e-2 * np.abs(runs[0]).max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_free_batches_through_the_backend(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    with quiet():
        model = FAMILIES["deit_tiny"].small().eval().cuda()
    compiles: list[int] = []
    from toastc.compiler.sources.dynamo import backend

    def counted(gm: torch.fx.GraphModule, inputs: list[torch.Tensor], **words: object) -> object:
        compiles.append(1)
        return backend(gm, inputs, options={"ratios": RATIOS})

    compiled = torch.compile(model, backend=counted, dynamic=True)
    with torch.no_grad(), torch.autocast("cuda", dtype):
        for batch in (2, 3, 7):
            assert compiled(torch.randn(batch, 3, 32, 32, device="cuda")).isfinite().all()
    assert len(compiles) == 1


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_modes_of_inductor(mode: str) -> None:
    torch._dynamo.reset()
    with quiet():
        model = FAMILIES["deit_tiny"].small().eval().cuda()
    images = torch.randn(4, 3, 32, 32, device="cuda")
    plain = torch.compile(model, backend="toastc", options={"ratios": RATIOS, "recipe": "magnitude", "then": "eager"})
    with torch.no_grad():
        expected = plain(images)
        torch._dynamo.reset()
        got = torch.compile(model, backend="toastc", options={"ratios": RATIOS, "recipe": "magnitude", "mode": mode})(images)
    assert torch.allclose(expected, got, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)
