"""Several processes share the data that consumers are fitted on, and come to the same plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import numpy as np

from toastc.plans.plan import Keep, Plan


def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    """The first writes; what it writes is what one alone would have, but for the order of sums."""
    model, data = models.save(models.vit(models.weights()), tmp_path / "m.onnx"), tmp_path / "data.npy"
    np.save(data, np.random.default_rng(0).standard_normal((100, 3, models.IMAGE, models.IMAGE)).astype(np.float32))
    plans = {}
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        out, plan = tmp_path / f"{count}.onnx", tmp_path / f"{count}.safetensors"
        asked = [str(model), "-o", str(out), "--target", "macs=0.6", "--calibrate", str(data), "--plan-out", str(plan)]
        done = subprocess.run([sys.executable, *launch, "-m", "toastc", *asked], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and out.exists(), done.stderr
        assert done.stdout.count("verified") == 1, "one of them speaks"
        plans[count] = Plan.load(plan).choices
    one, two = plans[1], plans[2]
    assert one.keys() == two.keys() and any(isinstance(c, Keep) and c.consumer is not None for c in one.values())
    for name, choice in one.items():
        assert choice.width == two[name].width, name
        mine, other = choice.consumer, two[name].consumer
        assert (mine is None) == (other is None), name
        if mine is not None and other is not None and np.array_equal(choice.index, two[name].index):
            assert np.abs(mine.weight - other.weight).max() <= 2e-2 * np.abs(mine.weight).max(), name
