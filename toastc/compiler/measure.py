"""measure: what prune needs to know of a model on its calibration data, once for any number of targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..calibration import Moments, Preprocess, Unfinished, Workers, fingerprint, open_data
from ..system.errors import NothingToPrune, ToastcError
from ..system.files import check_targets
from ..system.progress import Tell, silent
from .forms import at_hand, blamed, open_graph


def measure(
    model: Any,
    data: Any,
    *,
    images: int | None = None,
    preprocess: Preprocess | None = None,
    weights: str | None = None,
    provider: str = "cpu",
    example_inputs: Sequence[Any] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    tell: Tell = silent,
) -> Moments:
    """What `prune(..., moments=)` needs to know of a model on its calibration data, for any number of targets.

    Images are prepared as the model's own configuration says, if it has one; `preprocess` says otherwise. `weights`: a file, or
    "random", for a model given by name. With `output` the moments are saved there, and where model and data are files, what has
    been summed so far is kept beside it, in `<output>.part`: a measurement that was stopped goes on from there. Under torchrun
    every process takes its share of the data, all return the same, and nothing is kept.
    """
    targets = [] if output is None else [Path(output), Path(f"{output}.part")]
    check_targets(targets, [Path(p) for p in (model, weights, data) if isinstance(p, str | Path)])
    from ..graphs.onnx import external_files
    from ..passes import MEASURE
    from ..passes.state import State, replace, run

    with Workers.started() as workers, at_hand(model, weights, tell if workers.rank == 0 else silent) as (given, own):
        with blamed(given):
            graph, _ = open_graph(given, example_inputs, provider)
        preprocess = preprocess or own
        source = open_data(data, graph.input_sizes(), seed=seed, limit=images, preprocess=preprocess)
        state = State(graph, data=source, seed=seed, tell=tell if workers.rank == 0 else silent, workers=workers)
        if isinstance(given, str | Path):
            files = [Path(given), *external_files(graph.model)]
            check_targets(targets, files)
            if output is not None and workers.count == 1 and isinstance(data, str | Path):
                known = fingerprint(files, Path(data), seed, images, preprocess)
                state = replace(state, unfinished=Unfinished(Path(f"{output}.part"), known))
        try:
            with blamed(given):
                state, _ = run(MEASURE[:1], state)
                if not state.sites:
                    raise NothingToPrune("no attention and no FFN was found that could be measured")
                state, _ = run(MEASURE[1:], state)
        except ToastcError:  # of the model or the data, and it would be the same another time
            if state.unfinished is not None:
                state.unfinished.remove()
            raise
        assert state.moments is not None
        state.moments.notes = state.notes
        if output is not None and workers.rank == 0:
            state.moments.save(Path(output))
        if state.unfinished is not None:
            state.unfinished.remove()
        return state.moments
