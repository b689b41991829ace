"""Where the channels of a site can be watched: queries and keys at their product, values and hidden channels at the
linear that consumes them."""

from __future__ import annotations

import numpy as np

from toastc.calibration.taps import Tap
from toastc.graphs import Op, Value
from toastc.labels import varying
from toastc.sites import Coupling, Site

from .couplings import Ledger


def taps_of(ledger: Ledger, site: Site) -> dict[str, Tap]:
    """`{"qk/q": .., "qk/k": .., "vo/out": ..}` or `{"hidden/out": ..}`, as far as there is one position a channel."""
    found: dict[str, Tap | None] = {}
    for coupling in site.couplings:
        if not coupling.members or coupling.reason:
            continue
        if coupling.name == "qk":
            product: Op = site.wiring.scores  # type: ignore[attr-defined]
            if product.attention is not None and product.attention.bias >= 0:
                continue  # the node adds a bias of its own to what could be watched
            found["qk/q"] = tap(ledger, coupling, product.inputs[0])
            found["qk/k"] = tap(ledger, coupling, product.inputs[1], key_axis(product))
        else:
            consumers = {m.operand[0] for m in coupling.members if m.role == "out"}  # type: ignore[index]
            if len(consumers) == 1:
                found[f"{coupling.name}/out"] = tap(ledger, coupling, consumers.pop().inputs[0])
    return {name: t for name, t in found.items() if t is not None}


def tap(ledger: Ledger, coupling: Coupling, value: Value | None, tokens: int | None = None) -> Tap | None:
    labels = None if value is None else ledger.flow.labels.get(value)
    if labels is None or coupling.classes is None:
        return None
    axes = varying(labels)
    ids = labels.reshape(-1)
    roots = np.where(ids >= 0, ledger.root[ids], -1)
    order = np.argsort(roots, kind="stable")
    wanted = coupling.classes.ravel()
    first = np.searchsorted(roots[order], wanted)
    if len(np.unique(wanted)) != len(wanted) or (np.searchsorted(roots[order], wanted, "right") - first != 1).any():
        return None
    return Tap(value, axes, order[first].reshape(coupling.classes.shape), tokens)


def key_axis(product: Op) -> int:
    """The axis of K along which the softmax runs."""
    if product.attention is not None:
        return product.attention.layouts[1].replace("(hd)", "c").index("n")
    left, right, out = product.spec
    return next(i for i, letter in enumerate(right) if letter in out and letter not in left)
