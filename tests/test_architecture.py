"""The arrows between the rooms of the house, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOUNS = ("sites", "labels", "views", "plan", "ratios", "cost", "errors", "padding", "files")
TORCH_ROOMS = (
    "toastc/graphs/fx/",
    "toastc/runtimes/torch",
    "toastc/dynamo.py",
    "toastc/calibration/workers.py",
    "toastc/compactors.py",
    "toastc/gates.py",
    "toastc/compile_module.py",
    "toastc/pretrained.py",
    "toastc/sources.py",
    "toastc/timing_modules.py",
    "toastc/finetune.py",
    "toastc/masks.py",
    "passes/verify_module.py",
)
ONNX_ROOMS = (
    "toastc/graphs/onnx/",
    "toastc/runtimes/ort.py",
    "toastc/compile_onnx.py",
    "toastc/api.py",
    "toastc/forms.py",
    "toastc/timing.py",
)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def sources() -> list[Path]:
    return sorted([*(ROOT / "toastc").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])


def test_torch_and_onnx_stay_in_their_rooms() -> None:
    for path in sources():
        where = path.relative_to(ROOT).as_posix()
        if "torch" in imports(path):
            assert where.startswith(TORCH_ROOMS), f"{where} imports torch"
        if imports(path) & {"onnx", "onnx_ir", "onnxruntime"}:
            assert where.startswith(ONNX_ROOMS), f"{where} imports onnx"


def test_nouns_know_numpy_alone() -> None:
    allowed = {"numpy", "safetensors", "__future__", "toastc"} | set(sys.stdlib_module_names)
    for name in NOUNS:
        assert imports(ROOT / "toastc" / f"{name}.py") <= allowed, name


def test_only_the_drivers_reach_passes() -> None:
    for path in (ROOT / "toastc").rglob("*.py"):
        if "passes" in path.read_text() and path.name not in ("__init__.py",):
            text = path.read_text()
            reaches = "from .passes" in text or "from ..passes" in text
            assert not reaches or path.name in (
                "api.py",
                "measuring.py",
                "dynamo.py",
                "cli.py",
                "compile_onnx.py",
                "compile_module.py",
                "deploy_onnx.py",
                "masks.py",
                "driver.py",
                "compactors.py",
                "testing.py",
            ), path


def test_no_method_is_named_in_the_matcher() -> None:
    """The matcher knows no model and no exporter."""
    words = ("timm", "deit", "swin", "bert", "beit", "dinov2", "onnxsim", "dynamo", "torchscript")
    for path in (ROOT / "passes" / "match").glob("*.py"):
        code = path.read_text().lower()
        assert not [w for w in words if w in code], path


def test_importing_toastc_brings_no_framework() -> None:
    code = "import sys, toastc, toastc.cli; print([m for m in ('torch', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def test_no_module_hides_a_function() -> None:
    """A submodule, once imported, would stand in the package's place of that name."""
    import toastc

    assert not [name for name in toastc.__all__ if (ROOT / "toastc" / f"{name}.py").exists()]
