"""The user's own torch modules: a smaller graph, put back where it came from."""

from .regions import NotTransplanted
from .transplant import transplanted

__all__ = ["NotTransplanted", "transplanted"]
