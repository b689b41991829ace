"""Run a model for real, and time it. One file for each runtime."""
