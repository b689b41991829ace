"""measure: what prune needs to know of a model on its calibration data, once for any number of targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .calibration import Moments, Preprocess, Unfinished, Workers, fingerprint, open_data
from .errors import NothingToPrune, ToastcError
from .files import check_targets
from .forms import files_of, is_named, open_graph
from .progress import Tell, silent


def measure(
    model: Any,
    data: Any,
    *,
    images: int | None = None,
    preprocess: Preprocess | None = None,
    provider: str = "cpu",
    example_inputs: Sequence[Any] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    tell: Tell = silent,
) -> Moments:
    """What `prune(..., moments=)` needs to know of a model on its calibration data, for any number of targets.

    With `output` it is saved there, and where model and data are files, what has been summed so far is kept beside it, in
    `<output>.part`: a measurement that was stopped goes on from there. Under torchrun every process takes its share of the data,
    all return the same, and nothing is kept.
    """
    if output is not None:
        check_targets([Path(output), Path(f"{output}.part")], [Path(p) for p in (model, data) if isinstance(p, str | Path)])
    from .passes import MEASURE
    from .pipeline import State, replace, run

    with Workers.started() as workers:
        graph, _ = open_graph(model, example_inputs, provider)
        source = open_data(data, graph.input_sizes(), seed=seed, limit=images, preprocess=preprocess)
        state = State(graph, data=source, seed=seed, tell=tell if workers.rank == 0 else silent, workers=workers)
        files = isinstance(model, str | Path) and isinstance(data, str | Path) and not is_named(model)
        if output is not None and workers.count == 1 and files:
            known = fingerprint(files_of(graph, Path(model)), Path(data), seed, images, preprocess)
            state = replace(state, unfinished=Unfinished(Path(f"{output}.part"), known))
        for step in MEASURE:
            state.tell(step.name)
            try:
                state, _ = run([step], state)
            except ToastcError:  # which would be the same another time
                if state.unfinished is not None:
                    state.unfinished.remove()
                raise
            if not state.sites:
                raise NothingToPrune("no attention and no FFN was found that could be measured")
        assert state.moments is not None
        state.moments.notes = state.notes
        if output is not None and workers.rank == 0:
            state.moments.save(Path(output))
        if state.unfinished is not None:
            state.unfinished.remove()
        return state.moments
