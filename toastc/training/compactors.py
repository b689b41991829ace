"""Channels pruned while a model trains: CAIT's consistent dynamic channel pruning, in a training loop of your own.

model, groups, control = toastc.compact(model, target="macs=0.5")
optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
for images, labels in batches:
    loss(model(images), labels).backward()
    control.before_step()
    optimizer.step()
    control.after_step()
    optimizer.zero_grad()
plan = control.finish()                       # the compactors are folded into the weights
small = toastc.prune(model, plan=plan).model

A compactor is a matrix that the output of a linear is multiplied by, the identity at first. Here it is a parametrization of the
linear's weight and bias, `K W` and `K b`, which is the same and costs nothing for each token. The model stays the module that
it is. Every coupling has its compactors: Q and K one for each head and one set of channels, V one for each head, an FFN one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..graphs.fx import FxGraph
from ..graphs.fx.capture import capture, example_inputs_of
from ..passes import ScoreWeights
from ..passes.match import match
from ..passes.state import State
from ..plans.cost import Target, counted
from ..plans.plan import Keep, Plan
from ..plans.ratios import NARROWEST
from ..system.errors import NothingToPrune, ToastcError
from ..system.vocabulary import Inputs, Json
from .gates import Gate, install

__all__ = ["Compacted", "Controller", "compact"]


class Compacted(NamedTuple):
    model: nn.Module
    groups: list[Json]  # for an optimizer: the model's own parameters, and the compactors
    control: Controller


def compact(
    model: nn.Module,
    target: str | float | Target,
    *,
    example_inputs: Inputs | None = None,
    every: int = 50,
    warmup: int = 100,
    ramp: int = 1,
    penalty: float = 1e-4,
    masked_penalty: float | None = None,
    momentum: float = 0.99,
    lr: float | None = None,
    round_to: int = 8,
    begin: str = "alike",
) -> Compacted:
    """Put compactors behind every coupling of a module, in place, so that training it finds the channels to keep.

    For `warmup` steps nothing is masked; from then on the masks are drawn anew every `every` steps, and reach the `target`
    (`"macs=0.5"` or `"params=0.5"`) at the `ramp`-th drawing. A masked row gets no gradient of the loss; `penalty` pulls
    all rows towards zero, the masked ones without resistance. `lr` and `momentum` are those of the compactors. With a
    `masked_penalty` masked rows lose that much of their norm (1 to begin with) in each step, whatever the optimizer is: for
    short training, and for Adam, which scales gradients as small as the penalty's away. At first all rows are alike, and training
    has to tell them apart, as published; `begin="magnitude"` lets the weights say so from the first drawing on.
    """
    goal = Target.parse(target)
    if goal.what == "latency":
        raise ToastcError("target: compactors are trained for macs or params, not for latency")
    if min(every, ramp, round_to) < 1 or warmup < 0:
        raise ToastcError("compact: every, ramp and round_to are at least 1, warmup at least 0")
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise ToastcError(f"{type(model).__name__}: has parametrized weights already; remove those first")
    if begin not in ("alike", "magnitude"):
        raise ToastcError(f"compact: begin is alike or magnitude, not {begin}")
    modes = {module: module.training for module in model.modules()}
    gm, _ = capture(model.eval(), example_inputs if example_inputs is not None else example_inputs_of(model))
    for module, training in modes.items():
        module.training = training
    graph = FxGraph(gm)
    sites = match(graph)[1]
    weights = list(model.parameters())
    gates, left_out = install(model, graph, sites)
    if not gates:
        why = f"; {next(iter(left_out.items()))}" if left_out else ""
        raise NothingToPrune(f"no attention and no FFN was found that compactors could stand behind{why}")
    if begin == "magnitude":
        scores = ScoreWeights()(State(graph, sites=tuple(sites))).scores
        for gate in gates:
            score = np.maximum(scores[gate.name], 0.0)
            gate.weight = torch.from_numpy(score / max(score.mean(), 1e-30))
    own = [matrix for gate in gates for matrix in gate.matrices]
    groups: list[Json] = [{"params": weights}, {"params": own, "weight_decay": 0.0, "momentum": momentum}]
    if lr is not None:
        groups[1]["lr"] = lr
    total = graph.totals()[0 if goal.what == "macs" else 1]
    schedule = Schedule(goal, total, every, warmup, ramp, penalty, masked_penalty or 0.0, round_to)
    return Compacted(model, groups, Controller(model, gates, schedule, left_out))


# ---- which channels stay ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    target: Target
    total: int  # MACs or parameters of the dense model
    every: int
    warmup: int
    ramp: int
    penalty: float
    masked_penalty: float
    round_to: int


@dataclass(eq=False)
class Controller:
    """Masks of all couplings, drawn anew as training goes on. Call `before_step` between backward and the optimizer's step
    (with a GradScaler, behind `unscale_`), `after_step` behind it.
    """

    model: nn.Module
    gates: list[Gate]
    schedule: Schedule
    left_out: Mapping[str, str]  # couplings without compactors, and why
    step: int = 0
    drawn: int = 0
    finished: bool = field(default=False)

    def __post_init__(self) -> None:
        self.widths(1.0)  # fails now if the target can not be met

    def before_step(self) -> None:
        """Masked rows lose the loss's gradient; all rows are pulled towards zero."""
        for gate in self.gates:
            for matrix in gate.matrices:
                if matrix.grad is None:
                    continue
                rows = matrix.detach()
                pull = rows / rows.norm(dim=2, keepdim=True).clamp_min(1e-12)
                matrix.grad.mul_(gate.alive.to(matrix.device)[:, :, None]).add_(pull, alpha=self.schedule.penalty)

    def after_step(self) -> None:
        """Count the step, and draw the masks anew when it is time."""
        self.step += 1
        for gate in self.gates if self.schedule.masked_penalty else ():
            for matrix in gate.matrices:
                norms = matrix.detach().norm(dim=2, keepdim=True).clamp_min(1e-12)
                left = (1 - self.schedule.masked_penalty / norms).clamp_min(0.0)
                matrix.data.mul_(torch.where(gate.alive.to(matrix.device)[:, :, None], 1.0, left))
        behind = self.step - self.schedule.warmup
        if behind >= 0 and behind % self.schedule.every == 0:
            self.draw()

    def draw(self) -> None:
        """Mask the channels with the lowest norm per MAC saved until the budget is met; every channel has its chance again."""
        self.drawn += 1
        widths = self.widths(min(1.0, self.drawn / self.schedule.ramp))
        for gate in self.gates:
            order = gate.worth().argsort(dim=1, descending=True, stable=True)[:, : widths[gate.name]]
            gate.alive = torch.zeros_like(gate.alive).scatter(1, order, True)
            if dist.is_available() and dist.is_initialized():  # all processes have the same sums; this makes sure of it
                there = gate.alive.to(gate.matrices[0].device, torch.uint8)
                dist.broadcast(there, 0)
                gate.alive = there.cpu().bool()

    def widths(self, share: float) -> dict[str, int]:
        """What every gate keeps when `share` of the way to the target is gone. All heads of a gate keep as much."""
        goal, what = self.schedule.target, self.schedule.target.what
        excess = share * (1 - goal.keep) * self.schedule.total
        widths = {gate.name: gate.coupling.width for gate in self.gates}
        steps = sorted((step for gate in self.gates for step in self.steps_down(gate, what)), key=lambda s: (s[0], s[1], -s[2]))
        for _, name, width, saved in steps:
            if excess <= 0:
                break
            widths[name], excess = width, excess - saved
        if excess > 0:
            least = (goal.keep * self.schedule.total + excess) / self.schedule.total
            raise ToastcError(f"target: {goal} can not be met by compactors; the smallest is {what}={least:.3f}")
        return widths

    def steps_down(self, gate: Gate, what: str) -> list[tuple[float, str, int, float]]:
        """(norm for what it saves, gate, the next narrower width, what that saves), the cheapest first."""
        step, name = min(self.schedule.round_to, gate.coupling.width), gate.coupling.name
        grid = [*range(max(step, NARROWEST), gate.coupling.width, step), gate.coupling.width]
        ranked = gate.worth().sort(dim=1).values.mean(dim=0)
        found, price = [], 0.0
        for wide, narrow in zip(grid[:0:-1], grid[-2::-1], strict=True):
            saved = counted(gate.site, {name: wide}, what) - counted(gate.site, {name: narrow}, what)
            low = gate.coupling.width - wide
            norm = float(ranked[low : low + wide - narrow].sum()) * gate.coupling.groups
            price = max(price, norm / max(saved, 1))  # rounding must not turn the order
            found.append((price, gate.name, narrow, float(saved)))
        return found

    @property
    def residue(self) -> float:
        """The largest norm of a masked row, the average living one being 1: what `finish` takes away at once."""
        masked = [float(g.norms()[~g.alive].max()) for g in self.gates if not g.alive.all()]
        living = [float(g.norms()[g.alive].mean()) for g in self.gates]
        return max(masked, default=0.0) / (sum(living) / len(living))

    def finish(self) -> Plan:
        """Zero the rows that are masked, fold all compactors into their weights, and say what the model keeps."""
        if self.finished:
            raise ToastcError("compact: is finished already")
        if self.drawn < self.schedule.ramp:
            self.drawn = self.schedule.ramp
            self.draw()
        self.finished = True
        choices = {}
        with torch.no_grad():
            for gate in self.gates:
                for matrix in gate.matrices:
                    matrix.mul_(gate.alive.to(matrix.device)[:, :, None])
                if not gate.alive.all():
                    kept = gate.alive.nonzero()[:, 1].view(len(gate.alive), -1)
                    choices[gate.name] = Keep(kept.numpy().astype(np.int32))
        for module in list(self.model.modules()):
            for leaf in list(getattr(module, "parametrizations", ())):
                parametrize.remove_parametrizations(module, leaf)
        return Plan(choices)

    def state_dict(self) -> Json:
        """Steps and masks; the compactors themselves are in the model's state."""
        masks = {f"alive.{gate.name}": gate.alive.clone() for gate in self.gates}
        return {"step": torch.tensor(self.step), "drawn": torch.tensor(self.drawn), **masks}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        names = {f"alive.{gate.name}": gate for gate in self.gates}
        wrong = names.keys() ^ (state.keys() - {"step", "drawn"})
        if wrong:
            raise ToastcError(f"compact: the saved masks are of another model: {sorted(wrong)[0]}")
        for name, gate in names.items():
            if state[name].shape != gate.alive.shape:
                raise ToastcError(f"compact: the saved masks are of another model: {name}")
            gate.alive = state[name].cpu().bool()
        self.step, self.drawn = int(state["step"]), int(state["drawn"])
