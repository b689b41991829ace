"""MACs and parameters of a plan, and the uniform ratio that meets a target.

Counted as ToaSt, ToMe and DiffRate do: linears, convolutions and the two attention products of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ToastcError
from .plan import Plan
from .ratios import Ratios, narrowed
from .sites import Coupling, Site

TARGETS = ("macs", "params")


@dataclass(frozen=True)
class Target:
    """Keep at most this share of the MACs or the parameters."""

    what: str  # "macs" | "params"
    keep: float

    def __str__(self) -> str:
        return f"{self.what}={self.keep}"

    @staticmethod
    def parse(given: str | float | Target) -> Target:
        """`macs=0.6`, or 0.6, which means the same."""
        if isinstance(given, Target):
            return given
        what, _, number = given.partition("=") if isinstance(given, str) else ("macs", "", str(given))
        try:
            target = Target(what.strip(), float(number))
        except ValueError:
            raise ToastcError(f"target: {given} is not of the form macs=0.6") from None
        if target.what not in TARGETS:
            raise ToastcError(f"target: {target.what} is not known; there are {' and '.join(TARGETS)}")
        if not 0 < target.keep < 1:
            raise ToastcError(f"target: {target} is the fraction kept and must be in (0, 1)")
        return target


def kept_channels(site: Site, coupling: Coupling, plan: Plan) -> int:
    choice, heads = plan.get(site.name, coupling.name), plan.get(site.name, "heads")
    width = coupling.width if choice is None else choice.width
    groups = heads.width if heads is not None and coupling.name in ("qk", "vo") else coupling.groups
    return groups * width


def gone(site: Site, coupling: Coupling, plan: Plan) -> int:
    return coupling.groups * coupling.width - kept_channels(site, coupling, plan)


def saved_macs(sites: Sequence[Site], plan: Plan) -> int:
    return sum(gone(s, c, plan) * c.channel_macs for s in sites for c in s.couplings if c.members)


def saved_params(sites: Sequence[Site], plan: Plan) -> int:
    inner = sum(gone(s, c, plan) * c.channel_params for s in sites for c in s.couplings if c.members)
    heads = sum((s.heads.width - h.width) * s.heads.channel_params for s in sites if s.heads and (h := plan.get(s.name, "heads")))
    return inner + heads


def saved_by_ratios(sites: Sequence[Site], ratios: Ratios, what: str) -> int:
    widths = {name: (coupling, count) for name, coupling, count in narrowed(ratios, sites)}
    return sum((c.width - count) * c.groups * getattr(c, f"channel_{what}") for c, count in widths.values())


def uniform_ratios(sites: Sequence[Site], total: int, target: Target, round_to: int = 8) -> Ratios:
    """The smallest uniform ratio over qk, vo and hidden that leaves at most the target's share of `total`."""
    steps, budget = 1000, target.keep * total
    low, high = 0, steps - 1
    least = total - saved_by_ratios(sites, uniform(high / steps, round_to), target.what)
    if least > budget:
        raise ToastcError(f"target: {target} can not be met; the smallest is {target.what}={least / total:.3f}")
    while high - low > 1:
        middle = (low + high) // 2
        enough = total - saved_by_ratios(sites, uniform(middle / steps, round_to), target.what) <= budget
        low, high = (low, middle) if enough else (middle, high)
    return uniform(high / steps, round_to)


def uniform(ratio: float, round_to: int) -> Ratios:
    return Ratios({"qk": ratio, "vo": ratio}, {"hidden": ratio}, round_to=round_to)
