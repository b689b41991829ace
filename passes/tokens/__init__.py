"""Fewer tokens: where they stand, which are merged, and how that is written."""
