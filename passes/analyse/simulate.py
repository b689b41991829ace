"""What a choice does to the channels of a running model: the pruned model is the dense one whose consumers see this."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace, device

from toastc.calibration.taps import Tap
from toastc.plans.plan import Basis, Choice, Select
from toastc.system.vocabulary import Array


def surviving(rows: Array, choice: Choice, groups: Sequence[int]) -> Array:
    """[samples, groups, width] -> [samples, kept channels]: what the pruned model computes of them."""
    xp = array_namespace(rows)
    where = device(rows)
    if isinstance(choice, Basis):
        left = xp.asarray(choice.left, dtype=rows.dtype, device=where)
        kept = xp.permute_dims(xp.matmul(xp.permute_dims(rows, (1, 0, 2)), xp.permute_dims(left, (0, 2, 1))), (1, 0, 2))
        kept = kept[:, list(groups), :]
        return xp.reshape(kept, (rows.shape[0], -1))
    flat = choice.index[list(groups)] + rows.shape[2] * np.asarray(groups)[:, None]
    return xp.take(xp.reshape(rows, (rows.shape[0], -1)), xp.asarray(flat.ravel(), device=where), axis=1)


def remade(rows: Array, choice: Choice, groups: Sequence[int] | None = None) -> Array:
    """[samples, groups, width] as the consumer of a pruned model would see them. `groups`: those that stay."""
    xp = array_namespace(rows)
    where, count = device(rows), rows.shape[1]
    groups = range(count) if groups is None else groups
    kept = surviving(rows, choice, groups)
    assert not isinstance(choice, Select)
    back = choice.right if isinstance(choice, Basis) else choice.fold
    if back is None:
        made = xp.zeros_like(xp.reshape(rows, (rows.shape[0], -1)))
        flat = choice.index[list(groups)] + rows.shape[2] * np.asarray(groups)[:, None]
        made[:, xp.asarray(flat.ravel(), device=where)] = kept
        made = xp.reshape(made, rows.shape)
    elif back.ndim == 2:
        made = xp.reshape(xp.matmul(kept, xp.asarray(back.T, dtype=rows.dtype, device=where)), rows.shape)
    else:
        own = xp.permute_dims(xp.reshape(kept, (rows.shape[0], len(groups), -1)), (1, 0, 2))
        turned = xp.asarray(back[list(groups)].swapaxes(1, 2), dtype=rows.dtype, device=where)
        made = xp.zeros_like(rows)
        made[:, list(groups), :] = xp.permute_dims(xp.matmul(own, turned), (1, 0, 2))
    return made if choice.shift is None else made + xp.asarray(choice.shift, dtype=rows.dtype, device=where)


def residual(tap: Tap, array: Array, choice: Choice, groups: Sequence[int] | None = None) -> Array:
    """What the choice would make of these channels, less what they are, in a tensor like `array`."""
    rows = tap.rows(array)
    if tap.copies == 1:
        return tap.put(remade(rows, choice, groups) - rows, array)
    xp = array_namespace(rows)
    copies = xp.reshape(rows, (*rows.shape[:2], -1, tap.copies))
    made = [remade(copies[..., i], choice, groups) for i in range(tap.copies)]
    return tap.put(xp.reshape(xp.stack(made, axis=-1), rows.shape) - rows, array)
