"""Whole heads: a group of `qk` and a group of `vo` that go together."""

from __future__ import annotations

import numpy as np

from toastc.graphs import Op
from toastc.plans.sites import Coupling, Member

from .couplings import Block, Ledger, cost_of
from .records import Contraction, Mix


def heads_coupling(
    ledger: Ledger, mix: Mix, contraction: Contraction | None, qk_block: Block | None, vo_block: Block, reason: str
) -> Coupling:
    """What else carries a head axis, and whether the scores keep them apart. `reason`: why they can not go, if there is one."""
    count = vo_block.classes.shape[0]
    members, classes = tuple[Member, ...](), None
    if not reason and (mix.heads is None or contraction is None or contraction.heads is None):
        reason = "the scores do not keep its heads apart" if len(mix.value) > 1 else "it has a single head"
    elif not reason:
        assert contraction is not None and contraction.heads is not None and mix.heads is not None and qk_block is not None
        roots = ledger.root[mix.heads]
        own = [np.unique(roots[vo_block.group_of_head == group]) for group in range(count)]
        if not np.array_equal(roots, ledger.root[contraction.heads]) or sum(map(len, own)) != len(np.unique(roots)):
            reason = "the scores do not keep its heads apart"
        elif not np.array_equal(qk_block.group_of_head, vo_block.group_of_head) or len({len(o) for o in own}) > 1:
            reason = "its heads share channels of the query and the key"
        else:
            reason, classes = ledger.pin_reason(roots), np.stack(own, axis=1)
            if not reason and len(classes) == 1:
                members, reason = ledger.members(classes, {})
            elif not reason and ledger.sources_of(roots):
                reason = "several of its heads share a key, and a bias tells them apart"
    classes = None if reason else classes
    params = sum((cost_of(ledger.flow.graph, m)[1] for m in members), 0)
    return Coupling("heads", 1, count, members, reason, channel_params=params, classes=classes)


def beyond(ledger: Ledger, contraction: Contraction | None, others: list[Contraction], candidates: list[Op]) -> str:
    """Why its heads can not go: other products, above the same softmax or another, have heads of these or of their own."""
    if any(c.op not in candidates for c in others):
        return "another attention has its queries or keys"
    if any(c.op in candidates for c in ledger.flow.contractions if c is not contraction and c not in others):
        return "its scores are a sum of several products"
    return ""
