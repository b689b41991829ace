"""What a plan costs: MACs and parameters by counting, milliseconds by timing blocks of its sizes on this machine.

MACs are counted as ToaSt, ToMe and DiffRate do: linears, convolutions and the two attention products of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..system.errors import OutOfReach, ToastcError
from .plan import Plan, Select
from .ratios import Ratios, narrowed
from .sites import Coupling, Site

TARGETS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Target:
    """Keep at most this share of the MACs, the parameters or the time of one batch."""

    what: str  # "macs" | "params" | "latency"
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
            raise ToastcError(f"target: {target.what} is not known; there are {', '.join(TARGETS)}")
        if not 0 < target.keep < 1:
            raise ToastcError(f"target: {target} is the fraction kept and must be in (0, 1)")
        return target


Widths = Mapping[str, int]  # what is kept of a site's couplings, `heads` among them; those not named stay whole


def counted(site: Site, widths: Widths, what: str) -> int:
    """MACs or parameters of a site's couplings at these widths."""
    heads = widths.get("heads")
    total = 0
    for coupling in site.couplings:
        if coupling.members:
            groups = heads if heads is not None and coupling.name in ("qk", "vo") else coupling.groups
            total += groups * widths.get(coupling.name, coupling.width) * getattr(coupling, f"channel_{what}")
    if site.inputs is not None:
        lost = site.inputs.width - widths.get("inputs", site.inputs.width)
        total -= lost * getattr(site.inputs, f"channel_{what}") * widths.get("hidden", site.hidden) // site.hidden
    if site.heads is not None:
        total += (site.heads.width if heads is None else heads) * getattr(site.heads, f"channel_{what}")
    return int(total)


def saved(sites: Sequence[Site], plan: Plan, what: str) -> int:
    """MACs or parameters that a plan saves."""
    total, every = 0, dict[str, int]()
    for site in sites:
        chosen = [(c, choice) for c in site.every if (choice := plan.get(site.name, c.name)) is not None]
        widths = {c.name: choice.width for c, choice in chosen if not isinstance(choice, Select)}
        every |= {f"{site.name}.{name}": width for name, width in widths.items()}
        total += counted(site, {}, what) - counted(site, widths, what)
        for coupling, choice in chosen:
            if what == "macs" and isinstance(choice, Select):
                left = widths.get("hidden", site.hidden) if coupling.name == "inputs" else site.hidden
                total += (coupling.width - choice.width) * coupling.read_macs * left // site.hidden
    return total - saved_twice(sites, every, what)


def saved_twice(sites: Sequence[Site], widths: Widths, what: str) -> int:
    """What is counted for two couplings where one has the rows of a weight and the other its columns. `widths`: of all sites."""
    lost = {
        f"{site.name}.{c.name}": c.groups * c.width - kept_of(site, c.name, widths) * widths.get(f"{site.name}.{c.name}", c.width)
        for site in sites
        for c in site.couplings
    }
    return sum(
        lost[f"{site.name}.{shared.own}"] * lost.get(shared.other, 0) * int(getattr(shared, what))
        for site in sites
        for shared in site.shared
    )


def kept_of(site: Site, name: str, widths: Widths) -> int:
    """Groups of a coupling that stay."""
    coupling = site.coupling(name)
    assert coupling is not None
    return widths.get(f"{site.name}.heads", coupling.groups) if name in ("qk", "vo") else coupling.groups


def saved_macs(sites: Sequence[Site], plan: Plan) -> int:
    return saved(sites, plan, "macs")


def saved_params(sites: Sequence[Site], plan: Plan) -> int:
    return saved(sites, plan, "params")


def saved_by_ratios(sites: Sequence[Site], ratios: Ratios, what: str, chosen: bool = False) -> int:
    """`chosen`: FFN channels are chosen at run time, which saves what reads them and no weights."""
    widths = {name: (coupling, count) for name, coupling, count in narrowed(ratios, sites)}

    def each(coupling: Coupling) -> int:
        if chosen and coupling.name in ("hidden", "inputs"):
            return coupling.read_macs if what == "macs" else 0
        return int(getattr(coupling, f"channel_{what}"))

    total = sum((c.width - count) * c.groups * each(c) for c, count in widths.values())
    return total - (0 if chosen else saved_twice(sites, {name: count for name, (_, count) in widths.items()}, what))


def uniform_ratios(sites: Sequence[Site], total: int, target: Target, round_to: int = 8, *, chosen: bool = False) -> Ratios:
    """The smallest uniform ratio over qk, vo and hidden that leaves at most the target's share of `total`."""
    if target.what == "latency":
        raise ToastcError("target: latency is spread by recipes that allocate widths (default with data, calibrated, synthetic)")
    steps, budget = 1000, target.keep * total
    low, high = 0, steps - 1
    least = total - saved_by_ratios(sites, uniform(high / steps, round_to), target.what, chosen)
    if least > budget:
        raise OutOfReach(target, least / total)
    while high - low > 1:
        middle = (low + high) // 2
        enough = total - saved_by_ratios(sites, uniform(middle / steps, round_to), target.what, chosen) <= budget
        low, high = (low, middle) if enough else (middle, high)
    return uniform(high / steps, round_to)


def uniform(ratio: float, round_to: int) -> Ratios:
    return Ratios({"qk": ratio, "vo": ratio}, {"hidden": ratio}, round_to=round_to)
