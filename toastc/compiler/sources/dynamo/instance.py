"""A captured graph with its weights: dense while it is observed, then the smaller one."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ....graphs.fx.capture import frozen
from ....graphs.fx.names import hint
from ....passes import recipe
from ....passes.match import match
from ....passes.prove import rms_apart
from ....passes.state import PassFailed
from ....plans.plan import Plan
from ....plans.promises import Promise, read_target
from ....plans.ratios import narrowed
from ....plans.sites import Site
from ....system.arrays import as_array
from ....system.errors import ToastcError
from ....system.vocabulary import Inputs
from ...compile import compile
from ...options import Options
from ...request import Request
from ...result import Result
from . import cache
from .observed import Observed, number_of, observed, together
from .source import DynamoSource

log = logging.getLogger("toastc")
FAR = 0.05  # of the outputs: who moves them further is told
ADVICE = "; they move less with data= (inputs to calibrate on), or where less is asked for"
TRAINING = (
    "toastc: this graph was captured in training mode (%s): it stays dense and nothing is observed; call model.eval() before "
    "what is compiled runs for the first time"
)

Callee = Callable[..., Any]


class Stage(NamedTuple):
    """What runs now, and which of the graph's inputs it takes."""

    run: Callee
    used: list[int]


class Instance:
    """What runs is one attribute, so that every thread sees either. Whoever brings the last input that is wanted chooses, while
    all others go on with the dense graph.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Inputs, weights: Sequence[int], options: Options, session: int) -> None:
        self.options, self.session = options, session
        self.held = [weakref.ref(inputs[i]) for i in weights]
        self.versions = [inputs[i]._version for i in weights]
        self.free = any(isinstance(value, torch.SymInt) for value in inputs)
        self.device = next((value.device.type for value in inputs if isinstance(value, torch.Tensor)), "cpu")
        self.seen: Observed | None = None
        self.waiting = False  # for inputs enough
        self.begin(gm, inputs)

    def __call__(self, inputs: Inputs) -> Any:
        if self.waiting and self.seen is not None:
            self.observe(self.seen, inputs)
        run, used = self.now
        with torch.no_grad():
            return run(*[inputs[i] for i in used])

    @property
    def alive(self) -> bool:
        return all(weight() is not None for weight in self.held)

    # ---- what runs -------------------------------------------------------------------------------------

    def begin(self, gm: fx.GraphModule, inputs: Inputs) -> None:
        """With a plan that is known, by measuring what is given, or by observing."""
        own, self.used = frozen(gm, inputs)
        self.source = DynamoSource(own, [inputs[i] for i in self.used], "this graph", self.options.fuse)
        dense = self.source.open()
        sites, rejects = match(dense)[1:]
        if training := self.source.trains:
            log.warning(TRAINING, training)
        elif not sites:
            why = f"{rejects[0].node}: {rejects[0].reason}" if rejects else "nothing in it looks like one"
            log.warning("toastc: no attention or FFN in this graph (%s); a graph break may have cut a block in two", why)
        else:
            waits, self.key = self.waits(sites), cache.key_of(own, self.options) if self.options.plan is None else None
            if self.carried_out(cache.load(self.key), inputs):
                return
            if not waits:
                cache.save(self.key, self.choose(self.options, inputs).plan)
                return
            placeholders = [node.name for node in own.graph.nodes if node.op == "placeholder"]
            wanted = dense.input_sizes()
            self.names = {name: i for name, i in zip(placeholders, self.used, strict=True) if name in wanted}
            self.seen = observed(self.key, self.session, self.options.observe)
            self.waiting = True
        self.now = Stage(self.handed_on(dense.gm), self.used)

    def waits(self, sites: Sequence[Site]) -> bool:
        """Is what happens here to be seen before anything is cut? What is wrong with the options is said now."""
        options = self.options
        given = any(value is not None for value in (options.data, options.moments, options.plan))
        look = Request.of(replace(options, data=[]) if options.observe and not given else options)
        passes = look.spelled or recipe(options.recipe, data=True)
        measures = any(getattr(step, "measures", False) for step in passes)
        cuts = look.ratios is None or bool(narrowed(look.ratios, sites))
        return bool(options.observe) and not given and measures and cuts

    def handed_on(self, gm: fx.GraphModule) -> Callee:
        if self.options.then == "eager":
            return gm.forward
        made: list[Callee] = []

        def run(*inputs: Any) -> Any:
            if not made:  # not before, and with code of its own: what there is while Dynamo compiles, it leaves alone ever after
                own = fx.GraphModule(gm, gm.graph)
                made.append(torch.compile(own, backend="inductor", mode=self.options.mode, dynamic=True if self.free else None))
            return made[0](*inputs)

        return run

    def carried_out(self, plan: Plan | None, inputs: Inputs) -> bool:
        """A plan that is known already: of this graph with another batch, or of another process."""
        if plan is None:
            return False
        try:
            self.choose(replace(self.options, data=None, plan=plan, target=None, ratios=None, tokens=None, search=None), inputs)
        except (ToastcError, PassFailed) as error:
            log.warning("toastc: a plan that was kept does not fit (%s)", error)
            return False
        return True

    # ---- observing -------------------------------------------------------------------------------------

    def observe(self, seen: Observed, inputs: Inputs) -> None:
        """No call fails for what is chosen here: where it can not be done, the dense graph stays."""
        if not seen.over and not seen.add({name: inputs[i] for name, i in self.names.items()}):
            if seen.in_vain:
                log.warning("toastc: the dense graph stays: of %d inputs only %d differ; give data=", seen.came, seen.count)
                self.waiting = False
            return
        if not seen.choosing.acquire(blocking=False):
            return
        try:
            if not seen.over:
                seen.finish(self.choose_by(seen, inputs))
            elif self.waiting:
                self.carried_out(seen.plan, inputs)
            self.waiting = False
        finally:
            seen.choosing.release()

    def choose_by(self, seen: Observed, inputs: Inputs) -> Plan | None:
        begun = time.perf_counter()
        try:
            plan = self.choose(replace(self.options, data=seen.inputs, target=self.own_target()), inputs).plan
        except (ToastcError, PassFailed) as error:
            log.error("toastc: the dense graph stays: %s", error)
            return None
        cache.save(self.key, plan)
        log.info("toastc: chosen in %.0f s by the %d inputs that came first", time.perf_counter() - begun, seen.count)
        return plan

    def own_target(self) -> Any:
        """What is promised of a model is shared out to the graphs it is made of: their errors are independent, more or less."""
        target = None if self.options.target is None else read_target(self.options.target)
        count = len(together(self.session))
        if not isinstance(target, Promise) or target.what != "error" or count < 2:
            return target
        log.info("toastc: %d graphs share %s", count, target)
        return Promise("error", target.bound / count**0.5)

    # ---- choosing --------------------------------------------------------------------------------------

    def choose(self, options: Options, inputs: Inputs) -> Result:
        """The smaller graph in the place of the dense one."""
        with torch.autocast(self.device, enabled=False) if torch.is_autocast_enabled(self.device) else nullcontext():
            result = compile(self.source, Request.of(options))
        if self.options.plan_out is not None and result.changed:
            path, number = Path(self.options.plan_out), number_of(self.session)
            result.plan.save(path.with_stem(f"{path.stem}-{number + 1}") if number else path)
        small = result.model if result.changed else self.source.open().gm
        target = self.options.target
        promised = target is not None and isinstance(read_target(target), Promise)
        tell(self.source, small, [inputs[i] for i in self.used], result, promised)
        self.now = Stage(self.handed_on(small), self.used)
        return result


@torch.no_grad()
def tell(source: DynamoSource, small: fx.GraphModule, inputs: Inputs, result: Result, promised: bool) -> None:
    """What was cut, what it loses and what it gains."""
    report = result.report
    if not result.changed:
        log.warning(
            "toastc: the dense graph stays: %s", "; ".join(n for n in report.notes if n.startswith("target:")) or "nothing to cut"
        )
        return
    given = [hint(value) for value in inputs]
    outs = [
        [as_array(t) for t in pytree.tree_leaves(gm(*given)) if isinstance(t, torch.Tensor)] for gm in (source.captured, small)
    ]
    far = rms_apart(list(zip(*outs, strict=True)))
    level, more = (logging.WARNING, ADVICE) if far > FAR and not promised else (logging.INFO, "")
    promise = "" if report.promise is None else f"; {next(n for n in report.notes if n.startswith('target:'))}"
    left, cut = report.after.macs / report.before.macs, len(result.plan.choices)
    said = "toastc: %d couplings narrower, %.0f %% of the MACs left; the outputs of this call moved by %.1f %% (rms)%s%s"
    log.log(level, said, cut, 100 * left, 100 * far, promise, more)
