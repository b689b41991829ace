"""measure: what prune needs to know of a model on its calibration data, once for any number of targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..calibration import Moments, Preprocess, Unfinished, Workers, fingerprint, open_data
from ..passes import MEASURE, inputs_to_keep
from ..passes.state import State, run
from ..system.errors import NothingToPrune, ToastcError
from ..system.files import check_targets
from ..system.progress import Tell, silent
from ..system.vocabulary import Inputs, Model
from .options import stated
from .sources import open_source
from .sources.protocol import Source


def measure(
    model: Model,
    data: Any,
    *,
    images: int | None = None,
    preprocess: Preprocess | None = None,
    weights: str | None = None,
    provider: str = "cpu",
    example_inputs: Inputs | None = None,
    seed: int = 0,
    inputs: bool = True,
    output: str | Path | None = None,
    tell: Tell = silent,
) -> Moments:
    """What `prune(..., moments=)` needs to know of a model on its calibration data, for any number of targets.

    Images are prepared as the model's own configuration says, if it has one; `preprocess` says otherwise. `weights`: a file, or
    "random", for a model given by name. With `output` the moments are saved there, and where model and data are files, what has
    been summed so far is kept beside it, in `<output>.part`: a measurement that was stopped goes on from there. Under torchrun
    every process takes its share of the data, all return the same, and nothing is kept. As many of the `inputs` as consumers
    would be fitted on are a part of the moments, so that they stand for the data in full; without them consumers keep their fold.
    """
    targets = [] if output is None else [Path(output), Path(f"{output}.part")]
    check_targets(targets, [Path(p) for p in (model, weights, data) if isinstance(p, str | Path)])
    said = stated({"weights": weights, "provider": provider, "example_inputs": example_inputs})
    with Workers.started() as workers:
        tell = tell if workers.rank == 0 else silent
        with open_source(model, said, tell) as (source, own):
            graph = source.open()
            prepare = preprocess or own
            batches = open_data(data, graph.input_sizes(), seed=seed, limit=images, preprocess=prepare)
            check_targets(targets, source.files())
            alone = output is not None and workers.count == 1 and isinstance(data, str | Path)
            kept = unfinished(source, Path(f"{output}.part"), Path(data), seed, images, prepare) if alone else None
            moments = watched(State(graph, data=batches, seed=seed, tell=tell, workers=workers, unfinished=kept), inputs)
        if output is not None and workers.rank == 0:
            moments.save(Path(output))
        if kept is not None:
            kept.remove()
        return moments


def unfinished(source: Source, part: Path, data: Path, *options: object) -> Unfinished | None:
    """Where sums are kept while they are made: of a model that is a file, and of data that are."""
    files = source.files()
    return Unfinished(part, fingerprint(files, data, *options)) if files else None


def watched(state: State, inputs: bool) -> Moments:
    try:
        state, _ = run(MEASURE[:1], state)
        if not state.sites:
            raise NothingToPrune("no attention and no FFN was found that could be measured")
        state, _ = run(MEASURE[1:], state)
    except ToastcError:  # of the model or the data, and it would be the same another time
        if state.unfinished is not None:
            state.unfinished.remove()
        raise
    assert state.moments is not None
    moments: Moments = state.moments
    if inputs:
        moments.inputs = inputs_to_keep(state)
    moments.notes = state.notes
    return moments
