"""The errors a user can cause. The command prints them as one line and exits with `status`."""

from __future__ import annotations


class ToastcError(Exception):
    """Bad usage or bad input: says what, where and what to do next."""

    status = 2


class NothingToPrune(ToastcError):
    """The model has no site, or the ratios remove nothing."""

    status = 1


class VerificationFailed(ToastcError):
    """The shrunken graph does not equal the padded original."""

    status = 1


class CannotShrink(ToastcError):
    """A coupling was planned to shrink, and the graph around it resists. A reject found late."""
