"""The errors a user can cause. The command prints them as one line and exits with `status`."""

from __future__ import annotations

from typing import Any


class ToastcError(Exception):
    """Bad usage or bad input: says what, where and what to do next."""

    status = 2


class OutOfReach(ToastcError):
    """A budget below what the narrowest widths cost, which is `least` of the whole."""

    def __init__(self, target: Any, least: float) -> None:
        super().__init__(f"target: {target} can not be met; the smallest is {target.what}={least:.3f}")
        self.least = least


class NothingToPrune(ToastcError):
    """The model has no site, or the ratios remove nothing."""

    status = 1


class NoChange(NothingToPrune):
    """The ratios remove nothing: in Python the model comes back as it is, the command says so and exits with 1."""

    def __init__(self, report: Any) -> None:
        super().__init__("the ratios remove nothing: every width stays as it is; nothing was written")
        self.report = report


class VerificationFailed(ToastcError):
    """The shrunken graph does not equal the padded original."""

    status = 1


class CannotShrink(ToastcError):
    """A coupling was planned to shrink, and the graph around it resists. A reject found late."""
