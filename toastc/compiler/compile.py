"""The main job, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..passes import Shrink
from ..passes.prove import output_error
from ..passes.state import State, run
from ..plans.cost import saved_macs, saved_params
from ..report import Report, Size
from ..report.data import coupling_rows, site_rows, token_rows
from ..report.evidence import curves, kernel_rows, photo, surroundings
from ..system.errors import VerificationFailed
from ..system.memory import give_back
from ..system.progress import Tell, silent
from .choose import Seconds, apply_merges, choose_widths
from .request import Request
from .result import Result
from .sources.protocol import Deployable, Source


def compile(source: Source, request: Request, tell: Tell = silent) -> Result:
    """open -> merge tokens -> match, score, plan -> shrink -> write -> prove -> deploy"""
    seconds: Seconds = {}
    with timed(source.opening, seconds):
        graph = source.open()
        macs, before = graph.totals()[0], source.size(graph)
    if request.allow is None and not source.leaves_out:
        request = replace(request, allow=("channels",))
    state, request = apply_merges(graph, request, macs, source.open, tell)
    state, took = choose_widths(state, request, source.open, tell)
    seconds |= took
    report = draft_report(source, request, state, before, seconds)
    if not state.plan and not request.deploy:
        return Result(source.unchanged(), state.plan, replace(report, after=before), state.moments, changed=False)
    if request.options.dry_run:
        note = "dry run: no model was written"
        return Result(source.unfinished(state), state.plan, replace(report, notes=(*report.notes, note)), state.moments)

    state, took = run([Shrink()], state)
    seconds |= took
    verified = measured = deployed = None
    with source.written(state, request, seconds, tell) as made:
        if request.options.verify:
            tell("verify")
            with timed("verify", seconds):
                proof = made.prove(state.plan, request.options.seed)
            if not proof.ok:
                raise VerificationFailed(f"{source.name}: verification failed: {proof.reason}{source.consequence}")
            verified = proof.to_dict()
            if state.data is not None:
                give_back(cycles=True)
                measured = output_error(source.open, made.graph, state.apart or state.data, state.apart is not None)
        if request.deploy:
            assert isinstance(made, Deployable), "its room's row says that it is"
            with timed("deploy", seconds):
                deployed = made.deploy(request, state.data, tell)
        after = made.size(report.after.macs)
    notes = (*state.notes, *made.notes, *proof_notes(verified), *(deployed.notes if deployed is not None else ()))
    report = replace(
        report, after=after, seconds=seconds, verified=verified, measured=measured, notes=notes,
        deployed=None if deployed is None else deployed.to_dict(),
    )  # fmt: skip
    return Result(made.model, state.plan, report, state.moments)


@contextmanager
def timed(what: str, seconds: Seconds) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start


def draft_report(source: Source, request: Request, state: State, before: Size, seconds: Seconds) -> Report:
    """What there is to say before anything is cut; the bytes are not known yet, and nothing is proven."""
    sites, plan = state.sites, state.plan
    macs = state.graph.totals()[0] - saved_macs(sites, plan)
    after = Size(macs, before.params - saved_params(sites, plan), None)
    settings = {"command": request.options.command, "seed": request.options.seed, "recipe": request.recipe, **surroundings()}
    return Report(
        source.name, request.recipe, before, after, coupling_rows(sites, plan), state.rejects, seconds, notes=state.notes,
        settings=settings, kernels=kernel_rows(state.graph, source.single_nodes(sites), plan),
        sites=site_rows(sites, plan, state.unmerged), tokens=token_rows(state.merges), curves=curves(state),
        promise=None if state.kept is None else state.kept.to_dict(),
        photo=photo(state.data) if state.merges else None,
    )  # fmt: skip


def proof_notes(verified: dict[str, object] | None) -> tuple[str, ...]:
    """What has to be known of a proof besides its error."""
    return (str(verified["note"]),) if verified is not None and verified["note"] else ()
