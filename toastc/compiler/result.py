"""What a compile returns."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration import Moments
from ..plans.plan import Plan
from ..report.data import Report
from ..report.words import change, human
from ..system.vocabulary import Model, Read


@dataclass(frozen=True)
class Result:
    """`model` is of the kind that was given: a ModelProto for a path, else ir.Model, gs.Graph or nn.Module."""

    model: Model
    plan: Plan
    report: Report
    moments: Moments | None = None  # what was measured of the channels, by recipes that do
    changed: bool = True  # else the model came back as it is: what was asked for removes nothing

    def __repr__(self) -> str:
        report = self.report
        said = [f"{report.model}, recipe {report.recipe}: {type(self.model).__name__}"]
        for name in ("macs", "params"):
            before, after = getattr(report.before, name), getattr(report.after, name)
            said.append(f"{human(before)} -> {human(after)} {name} ({change(before, after)})")
        said.append(f"{len(self.plan.choices)} couplings narrower" if self.changed else "nothing was removed")
        if report.measured is not None:
            m: Read = report.measured
            said.append(f"outputs {m['error']:.1%} off the dense model's, on {m['inputs']} {m['of']}")
        if report.promise is not None:
            p: Read = report.promise
            said.append(f"{p['what']}={p['promised']:g} is kept: {p['measured']:.4g} on {p['inputs']} inputs")
        if report.verified is not None:
            said.append(f"proven (error {report.verified['error']:.0e})")
        return f"<Result of {'; '.join(said)}>"
