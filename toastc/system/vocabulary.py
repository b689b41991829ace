"""Words for what has no one type: it comes from users, from files, or from one of several libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Model = Any  # what a user hands over or gets: a path, a model of ONNX's, of graphsurgeon's or of torch's
Inputs = Sequence[Any]  # what a module is called with
Array = Any  # of numpy or of torch
Json = dict[str, Any]
Read = Mapping[str, Any]  # JSON that somebody else wrote, or keywords
Operand = Any  # of a node: a value, a number, a list of those, as its framework has it
