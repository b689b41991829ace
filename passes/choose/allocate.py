"""allocate-widths: the widths that meet a budget at the least loss.

Every coupling's loss at every width is known, whole heads included, and how far it reaches; what is left is a
knapsack. It is solved by a price on the budget (each site alone takes the widths that cost it least in all), and what
the price leaves over is spent on the steps that gain most.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toastc.plans.cost import Target, Widths, counted, saved_twice, uniform_ratios
from toastc.plans.ratios import NARROWEST, narrowed
from toastc.plans.sites import Site
from toastc.system.errors import OutOfReach, ToastcError

from ..state import Pass, State, taken

AGAIN = 12  # times that a budget is made smaller, at most


@dataclass(frozen=True, eq=False)
class Item:
    """What can be done with some couplings of one site: widths, what they lose and what they cost, the cheapest first."""

    site: Site
    widths: list[Widths]
    loss: np.ndarray
    cost: np.ndarray

    @staticmethod
    def of(site: Site, widths: list[Widths], loss: list[float], cost: list[float]) -> Item:
        """Without what costs more and loses no less."""
        losses, costs = np.array(loss), np.array(cost)
        order = np.lexsort((losses, costs))
        best = np.minimum.accumulate(np.concatenate([[np.inf], losses[order][:-1]]))
        order = order[losses[order] < best]
        return Item(site, [widths[i] for i in order], losses[order], costs[order])


@dataclass(frozen=True, eq=False)
class Offer:
    """All that can be done, whatever the budget; `total` is what everything costs now."""

    items: list[Item]
    total: float

    def within(self, target: Target) -> list[tuple[Item, int]]:
        """The positions that lose least, one in each item's `widths`."""
        budget, least = (target.keep - 1) * self.total, sum(float(item.cost[0]) for item in self.items)
        if least > budget:
            raise OutOfReach(target, (self.total + least) / self.total)
        return list(zip(self.items, solve(self.items, budget), strict=True))

    def loss(self, target: Target) -> float:
        """What is lost in all, were errors to add up; relative to the energy of the outputs."""
        return sum(float(item.loss[at]) for item, at in self.within(target))


@dataclass(frozen=True)
class AllocateWidths:
    """Spread a budget over all couplings where it hurts least; or take the widths of the ratio file."""

    round_to: int = taken(8, "widths")
    heads: bool = True
    equal: bool = taken(False, "equal")  # d_qk = d_v, which the fastest kernels for half floats ask for
    uniform: bool = False  # one ratio for all, as recipes do that know no losses
    name = "allocate-widths"
    spends = True  # a budget, or ratios: what stands before it holds for any

    def __call__(self, state: State) -> State:
        if state.target is None:
            assert state.ratios is not None
            return replace(state, widths={name: count for name, _, count in narrowed(state.ratios, state.sites)})
        if self.uniform:
            ratios = uniform_ratios(state.sites, int(total_of(state)), state.target, self.round_to)
            return replace(state, widths={name: count for name, _, count in narrowed(ratios, state.sites)})
        return replace(state, widths=self.within(state, self.offer(state), state.target), allocate=self)

    @staticmethod
    def within(state: State, offer: Offer, target: Target) -> dict[str, int]:
        """The widths to a budget; a smaller one, where couplings that share a weight are said to save some of it twice."""
        asked = target
        for _ in range(AGAIN):
            chosen = offer.within(asked)
            every = {f"{item.site.name}.{name}": width for item, at in chosen for name, width in item.widths[at].items()}
            widths = {name: width for name, width in every.items() if width < state.coupling(name).width}
            twice = 0 if target.what == "latency" else saved_twice(state.sites, widths, target.what)
            over = 1 + (sum(float(item.cost[at]) for item, at in chosen) + twice) / offer.total - target.keep
            if not twice or over <= 0:
                break
            asked = replace(asked, keep=asked.keep - over)
        return widths

    def offer(self, state: State) -> Offer:
        total = total_of(state)  # which says so where it needs what was not measured
        return Offer([item for site in state.sites for item in self.items(state, site)], total)

    def items(self, state: State, site: Site) -> Iterator[Item]:
        """One for each coupling; one for both of an attention where whole heads may go as well, or time is what counts."""
        known = [c for c in site.couplings if f"{site.name}.{c.name}" in state.losses]
        heads = self.heads and site.heads is not None and site.heads.prunable and len(known) == 2
        heads = heads and all(c.groups == site.heads.width for c in known)  # type: ignore[union-attr]
        equal = self.equal and len(known) == 2 and site.head_dim == site.v_head_dim and known[0].width == known[1].width
        if heads or equal or (site.name in state.times and len(known) > 1):
            grid: list[list[tuple[str, int]]] = [[(c.name, w) for w in self.steps(c.width)] for c in known]
            if heads:
                grid.append([("heads", h) for h in range(1, site.heads.width + 1)])  # type: ignore[union-attr]
            options: list[Widths] = [dict(each) for each in itertools.product(*grid)]
            if equal:
                options = [o for o in options if o[known[0].name] == o[known[1].name]]
            yield Item.of(site, options, [loss_of(state, site, o) for o in options], [cost_of(state, site, o) for o in options])
            return
        for coupling in known:
            options = [{coupling.name: w} for w in self.steps(coupling.width)]
            yield Item.of(site, options, [loss_of(state, site, o) for o in options], [cost_of(state, site, o) for o in options])

    def steps(self, width: int) -> list[int]:
        step = min(self.round_to, width)
        return sorted({*range(max(step, NARROWEST), width, step), width})


def spread(state: State, passes: Sequence[Pass], widths: int = 1) -> State:
    """With ratios that meet the target, for passes that do not spread a budget themselves."""
    if state.target is None or any(step.name == AllocateWidths.name for step in passes):
        return state
    selects = any(step.name == "plan-selections" for step in passes)
    total = 0 if state.target.what == "latency" else int(total_of(state))  # which it refuses
    return replace(state, ratios=uniform_ratios(state.sites, total, state.target, max(8, widths), chosen=selects))


def cost_of(state: State, site: Site, widths: Widths) -> float:
    """What these widths cost more than whole ones: nothing, or less."""
    assert state.target is not None
    if site.name in state.times:
        return state.times[site.name](widths) - state.times[site.name]({})
    return counted(site, widths, state.target.what) - counted(site, {}, state.target.what)


def total_of(state: State) -> float:
    assert state.target is not None
    if state.target.what == "latency":
        if not state.times:
            raise ToastcError("target: latency needs the pass time-blocks before allocate-widths")
        return state.total_time
    return state.graph.totals()[0 if state.target.what == "macs" else 1]


def loss_of(state: State, site: Site, widths: Widths) -> float:
    """The error that reaches the outputs, were nothing else cut."""
    heads, found = widths.get("heads"), 0.0
    value = state.losses.get(f"{site.name}.vo")
    gone = 0 if heads is None or value is None else len(value.order) - heads
    for name, width in widths.items():
        if name == "heads":
            continue
        loss, gain = state.losses[f"{site.name}.{name}"], state.gains.get(f"{site.name}.{name}", 1.0)
        curves = loss.curves if not gone or value is None else loss.curves[value.order[gone:]]
        found += gain * float(curves[:, width].sum())
        if name == "vo" and gone:
            found += gain * float(loss.curves[loss.order[:gone], 0].sum())
    return max(found, 0.0)


def solve(items: list[Item], budget: float) -> list[int]:
    """Positions in `widths`, one for each item; never above the budget."""

    def at_price(price: float) -> list[int]:
        return [int(np.argmin(i.loss + price * i.cost)) for i in items]

    def spent(chosen: list[int]) -> float:
        return sum(float(i.cost[at]) for i, at in zip(items, chosen, strict=True))

    low, high = 1e-40, 1e40
    while high > low * (1 + 1e-12):
        middle = float(np.sqrt(low) * np.sqrt(high))
        if spent(at_price(middle)) > budget:
            low = middle
        else:
            high = middle
    chosen = at_price(high)
    while True:
        room, best, step = budget - spent(chosen), 0.0, None
        for n, item in enumerate(items):
            now = chosen[n]
            extra = item.cost[now + 1 :] - item.cost[now]
            fits = extra <= room
            gains = np.where(fits, (item.loss[now] - item.loss[now + 1 :]) / np.maximum(extra, 1e-12), 0.0)
            if len(gains) and gains.max() > best:
                best, step = float(gains.max()), (n, now + 1 + int(gains.argmax()))
        if step is None:
            return chosen
        chosen[step[0]] = step[1]
