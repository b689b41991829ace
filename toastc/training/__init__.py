"""Modules that learn: masked, compacted, or pruned and trained again."""
