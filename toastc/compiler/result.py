"""What a compile returns."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration import Moments
from ..plans.plan import Plan
from ..report.data import Report
from ..system.vocabulary import Model


@dataclass(frozen=True)
class Result:
    """`model` is of the kind that was given: a ModelProto for a path, else ir.Model, gs.Graph or nn.Module."""

    model: Model
    plan: Plan
    report: Report
    moments: Moments | None = None  # what was measured of the channels, by recipes that do
    changed: bool = True  # else the model came back as it is: what was asked for removes nothing
