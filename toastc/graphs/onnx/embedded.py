"""What toastc writes into the metadata of a file: its plan, and its MACs where they can not be counted any more."""

from __future__ import annotations

import json

import onnx_ir as ir

from ...plans.plan import Plan, from_dict
from ...system.errors import ToastcError
from .files import one_line

PLAN_KEY = "toastc.plan"
MACS_KEY = "toastc.macs"  # a file with 8-bit linears can not be counted any more


def plan_of(model: ir.Model, what: str) -> Plan:
    """The plan a pruned model carries in its metadata."""
    text = model.metadata_props.get(PLAN_KEY)
    if text is None:
        raise ToastcError(f"{what}: carries no toastc plan; was it written by toastc?")
    try:
        return from_dict(json.loads(text))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ToastcError(f"{what}: its plan can not be read ({one_line(error)})") from None


def carries_plan(model: ir.Model) -> bool:
    return PLAN_KEY in model.metadata_props


def embed_plan(model: ir.Model, plan: Plan, macs: int | None = None) -> None:
    model.metadata_props[PLAN_KEY] = json.dumps(plan.to_dict())
    if macs is not None:
        model.metadata_props[MACS_KEY] = str(macs)
