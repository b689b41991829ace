"""The forms a model comes in."""
