"""allocate-widths: the widths that meet a budget at the least loss.

Every coupling's loss at every width is known, and how far it reaches; what is left is a knapsack. It is solved by a
price on the budget (each coupling alone takes the width that costs it least in all), and what the price leaves over
is spent on the steps that gain most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from toastc.cost import Target
from toastc.errors import ToastcError
from toastc.pipeline import State
from toastc.ratios import NARROWEST, narrowed
from toastc.sites import Coupling


@dataclass(frozen=True)
class Item:
    name: str
    widths: np.ndarray
    loss: np.ndarray
    cost: np.ndarray


@dataclass(frozen=True)
class AllocateWidths:
    """Spread a budget over all couplings where it hurts least; or take the widths of the ratio file."""

    round_to: int = 8
    name = "allocate-widths"

    def __call__(self, state: State) -> State:
        if state.target is None:
            assert state.ratios is not None
            return replace(state, widths={name: count for name, _, count in narrowed(state.ratios, state.sites)})
        items = [self.item(state, name, state.target) for name in state.losses]
        fixed = state.graph.totals()[0 if state.target.what == "macs" else 1] - sum(int(i.cost[-1]) for i in items)
        budget = state.target.keep * (fixed + sum(int(i.cost[-1]) for i in items)) - fixed
        least = sum(int(i.cost[0]) for i in items)
        if least > budget:
            smallest = (fixed + least) / (fixed + sum(int(i.cost[-1]) for i in items))
            raise ToastcError(f"target: {state.target} can not be met; the smallest is {state.target.what}={smallest:.3f}")
        chosen = solve(items, budget)
        widths = {i.name: int(i.widths[at]) for i, at in zip(items, chosen, strict=True)}
        return replace(state, widths={n: w for n, w in widths.items() if w < state.coupling(n).width})

    def item(self, state: State, name: str, target: Target) -> Item:
        coupling: Coupling = state.coupling(name)
        step = min(self.round_to, coupling.width)
        widths = np.array(sorted({*range(max(step, NARROWEST), coupling.width, step), coupling.width}))
        each = coupling.channel_macs if target.what == "macs" else coupling.channel_params
        loss = np.maximum(state.losses[name].curve[widths], 0) * state.gains.get(name, 1.0)
        return Item(name, widths, loss, widths * coupling.groups * each)


def solve(items: list[Item], budget: float) -> list[int]:
    """Positions in `widths`, one for each item; never above the budget."""

    def at_price(price: float) -> list[int]:
        return [int(np.argmin(i.loss + price * i.cost)) for i in items]

    def spent(chosen: list[int]) -> int:
        return sum(int(i.cost[at]) for i, at in zip(items, chosen, strict=True))

    low, high = 1e-40, 1e40
    for _ in range(400):
        middle = float(np.sqrt(low) * np.sqrt(high))
        if spent(at_price(middle)) > budget:
            low = middle
        else:
            high = middle
    chosen = at_price(high)
    while True:
        room, best, step = budget - spent(chosen), 0.0, None
        for n, item in enumerate(items):
            for at in range(chosen[n] + 1, len(item.widths)):
                extra = int(item.cost[at] - item.cost[chosen[n]])
                if extra > room:
                    break
                gain = float(item.loss[chosen[n]] - item.loss[at]) / max(extra, 1)
                if gain > best:
                    best, step = gain, (n, at)
        if step is None:
            return chosen
        chosen[step[0]] = step[1]
