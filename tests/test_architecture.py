"""The arrows between the rooms of the house, and what an import may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOUNS = ("sites", "labels", "views", "plan", "ratios", "cost", "errors", "padding", "files")
TORCH_ROOMS = (
    "toastc/graphs/fx/",
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
    "toastc/forms.py",
)
DRIVERS = (  # they reach passes
    "toastc/api.py",
    "toastc/measuring.py",
    "toastc/dynamo.py",
    "toastc/compile_onnx.py",
    "toastc/compile_module.py",
    "toastc/deploy_onnx.py",
    "toastc/masks.py",
    "toastc/driver.py",
    "toastc/compactors.py",
    "toastc/testing.py",
)
REACHES = re.compile(r"^\s*from \.+passes\b", re.M)


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


def beyond(found: Iterable[Path], allowed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files that no allowance covers, and allowances that no file needs."""
    names = [path.relative_to(ROOT).as_posix() for path in found]
    return [n for n in names if not n.startswith(tuple(allowed))], [a for a in allowed if not any(n.startswith(a) for n in names)]


def test_torch_and_onnx_stay_in_their_rooms() -> None:
    assert beyond((p for p in sources() if "torch" in imports(p)), TORCH_ROOMS) == ([], [])
    assert beyond((p for p in sources() if imports(p) & {"onnx", "onnx_ir", "onnxruntime"}), ONNX_ROOMS) == ([], [])


def test_nouns_know_numpy_alone() -> None:
    found = {name: imports(ROOT / "toastc" / f"{name}.py") - set(sys.stdlib_module_names) for name in NOUNS}
    assert set().union(*found.values()) == {"numpy", "safetensors"}, found


def test_only_the_drivers_reach_passes() -> None:
    found = [path for path in (ROOT / "toastc").rglob("*.py") if REACHES.search(path.read_text())]
    assert beyond(found, DRIVERS) == ([], [])


def test_no_method_is_named_in_the_matcher() -> None:
    """The matcher knows no model and no exporter."""
    words = ("timm", "deit", "swin", "bert", "beit", "dinov2", "onnxsim", "dynamo", "torchscript")
    for path in (ROOT / "passes" / "match").glob("*.py"):
        code = path.read_text().lower()
        assert not [w for w in words if w in code], path


def test_importing_toastc_brings_no_framework() -> None:
    code = "import sys, toastc, toastc.cli.main; print([m for m in ('torch', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def test_no_module_hides_a_function() -> None:
    """A submodule, once imported, would stand in the package's place of that name."""
    import toastc

    assert not [name for name in toastc.__all__ if (ROOT / "toastc" / f"{name}.py").exists()]
