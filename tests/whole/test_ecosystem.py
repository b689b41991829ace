"""What toastc writes is read by others, and others' chains can call it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import RATIOS
from models import run_file
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import toastc

ROOT = Path(__file__).resolve().parents[2]
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def small(deit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    toastc.prune(deit, RATIOS, recipe="magnitude", output=path)
    return path


class Reader(CalibrationDataReader):
    def __init__(self, name: str) -> None:
        self.left = iter([{name: IMAGES}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def test_openvino_runs_it(small: Path) -> None:
    import openvino

    made = openvino.Core().compile_model(small, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(made(IMAGES)[0], run_file(small, IMAGES), atol=1e-3)


def test_openvino_runs_the_int8_file(deit: Path, tmp_path: Path) -> None:
    import openvino

    file = tmp_path / "int8.onnx"
    toastc.prune(deit, RATIOS, recipe="magnitude", quantize="int8", data=IMAGES, output=file)
    made = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = run_file(file, IMAGES)
    assert np.abs(made(IMAGES)[0] - expected).max() < 0.05 * np.abs(expected).max()


def test_onnx_runtime_quantizes_it(small: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.onnx"
    quant_pre_process(small, ready)  # or it stumbles over the exporter's shapes, pruned or not
    quantize_dynamic(ready, tmp_path / "dynamic.onnx")
    name = onnx.load(small).graph.input[0].name
    quantize_static(ready, tmp_path / "static.onnx", Reader(name), quant_format=QuantFormat.QDQ)
    expected = run_file(small, IMAGES)
    for file in ("dynamic.onnx", "static.onnx"):
        assert np.abs(run_file(tmp_path / file, IMAGES) - expected).max() < 0.25 * np.abs(expected).max()


def test_olive_has_a_pass_that_prunes(deit: Path, tmp_path: Path) -> None:
    import olive

    import toastc.olive

    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(deit)},
        "passes": {"prune": {"type": "ToastcPrune", "target": "macs=0.6", "recipe": "magnitude"}},
        "engine": {"output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    olive.run(str(tmp_path / "c.json"), package_config=toastc.olive.package())
    made = next((tmp_path / "out").rglob("*.onnx"))
    assert toastc.inspect(made)["macs"] <= 0.6 * toastc.inspect(deit)["macs"]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_built_package_is_whole(kind: str, tmp_path: Path) -> None:
    """Built from what git would give, installed elsewhere, run from there."""
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists() and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta as b; import sys; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
    subprocess.run([sys.executable, "-c", build, kind, str(tmp_path)], cwd=source, check=True, capture_output=True)
    built = next(p for p in tmp_path.iterdir() if p.suffix in (".whl", ".gz"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(tmp_path / "there"), str(built)], check=True, capture_output=True)
    if kind == "wheel":
        names = zipfile.ZipFile(built).namelist()
        assert {"toastc/py.typed", "toastc/report/assets/page.html", "toastc/passes/shrink/__init__.py"} <= set(names)
        assert not [n for n in names if n.startswith(("tests/", "tools/"))]
    code = "import toastc, sys; print(toastc.__file__); from toastc.cli import main; sys.exit(main(sys.argv[1:]))"
    model = tmp_path / "tiny.onnx"
    import models

    models.save(models.vit(), model)
    run = [sys.executable, "-P", "-c", code, str(model), "-o", str(tmp_path / "o.onnx"), "--target", "macs=0.7", "--recipe",
           "magnitude", "--report", str(tmp_path / "r.html"), "--quiet"]  # fmt: skip
    done = subprocess.run(
        run, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "there")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "there"))
    assert (tmp_path / "o.onnx").exists() and (tmp_path / "r.html").exists()
