"""Rearrangements read off by their effect, and grids that lose elements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toastc.graphs.rearrange import compact, radix, view_of


def test_radix_reads_nested_strides() -> None:
    assert radix(np.array([0, 1, 2, 10, 11, 12])) == [(2, 10), (3, 1)]
    assert radix(np.array([0])) == []


@pytest.mark.parametrize("steps", [[0, 1, 3, 2], [0, 0, 1, 1], [0, 2, 3, 5, 6]])
def test_radix_refuses_the_irregular(steps: list[int]) -> None:
    assert radix(np.array(steps)) is None


@given(st.permutations(range(4)), st.lists(st.integers(2, 4), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_split_permuted_and_merged_tensor_is_a_view(perm: list[int], sizes: list[int]) -> None:
    a, b, c, d = sizes
    ids = np.arange(a * b * c * d).reshape(a * b, c * d)
    moved = ids.reshape(a, b, c, d).transpose(perm)
    view = view_of(moved.reshape(moved.shape[0], -1, moved.shape[3]), ids.shape)
    assert view is not None
    assert np.prod([x.size for x in view.atoms]) == ids.size
    assert all(x.stride * x.size <= ids.shape[1] for x in view.atoms if x.axis == 1)


def test_a_gathered_tensor_is_no_view() -> None:
    assert view_of(np.arange(12).reshape(3, 4)[:, [0, 3, 1, 2]], (3, 4)) is None


def test_compact_lets_every_head_keep_other_channels() -> None:
    kept = np.array([[1, 0, 1, 0], [0, 1, 1, 0]], bool)
    shape, order = compact(kept)
    assert shape == (2, 2)
    assert order.tolist() == [[0, 2], [5, 6]]


def test_compact_drops_whole_heads() -> None:
    kept = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    shape, order = compact(kept)
    assert shape == (2, 2)
    assert order.tolist() == [[0, 2], [6, 7]]


def test_compact_refuses_ragged_heads() -> None:
    assert compact(np.array([[1, 1, 0], [1, 0, 0]], bool)) is None


@pytest.mark.parametrize("picked", [[5, 100], [0, 127], [0, 64, 128], [5, 100, 195]])
def test_far_apart_on_one_axis_is_no_view(picked: list[int]) -> None:
    """Steps that end in the middle of the next row."""
    assert view_of(np.arange(1280).reshape(10, 128)[:, picked] if max(picked) < 128 else np.array(picked), (10, 128)) is None
