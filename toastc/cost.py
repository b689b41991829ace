"""MACs and parameters of a plan, and the uniform ratio that meets a target.

Counted as ToaSt, ToMe and DiffRate do: linears, convolutions and the two attention products of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ToastcError
from .plan import Plan
from .ratios import Ratios, narrowed
from .sites import Coupling, Site


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


def saved_by_ratios(sites: Sequence[Site], ratios: Ratios) -> int:
    widths = {name: (coupling, count) for name, coupling, count in narrowed(ratios, sites)}
    return sum((c.width - count) * c.groups * c.channel_macs for c, count in widths.values())


def uniform_ratios(sites: Sequence[Site], total: int, keep: float, round_to: int = 8) -> Ratios:
    """The smallest uniform ratio over qk, vo and hidden that leaves at most `keep` of the MACs."""
    if not 0 < keep < 1:
        raise ToastcError(f"target: macs={keep} is the fraction kept and must be in (0, 1)")
    steps = 1000
    low, high = 0, steps - 1
    if total - saved_by_ratios(sites, uniform(high / steps, round_to)) > keep * total:
        least = 1 - saved_by_ratios(sites, uniform(high / steps, round_to)) / total
        raise ToastcError(f"target: macs={keep} can not be met; the smallest is macs={least:.3f}")
    while high - low > 1:
        middle = (low + high) // 2
        enough = total - saved_by_ratios(sites, uniform(middle / steps, round_to)) <= keep * total
        low, high = (low, middle) if enough else (middle, high)
    return uniform(high / steps, round_to)


def uniform(ratio: float, round_to: int) -> Ratios:
    return Ratios({"qk": ratio, "vo": ratio}, {"hidden": ratio}, round_to=round_to)
