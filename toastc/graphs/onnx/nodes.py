"""New nodes and new numbers in an ONNX graph, under names that nobody has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...system.vocabulary import Inputs, Operand
from .. import Op


class Nodes:
    """Puts them right before the op they are made for."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.counter = 0
        self.taken: set[str | None] | None = None

    def fresh(self, stem: str) -> str:
        """A name that the file does not use."""
        if self.taken is None:
            self.taken = {v.name for n in self.graph for v in n.outputs} | {n.name for n in self.graph}
            self.taken |= {v.name for v in self.graph.inputs} | set(self.graph.initializers)
        while True:
            self.counter += 1
            name = f"{stem}_toastc_{self.counter}"
            if name not in self.taken:
                self.taken.add(name)
                return name

    def hold(self, array: np.ndarray | np.generic, stem: str, dtype: ir.DataType | None = None) -> ir.Value:
        """Numbers that the file carries."""
        tensor = ir.tensor(
            array if dtype is None else np.ascontiguousarray(array, dtype.numpy()), dtype=dtype, name=self.fresh(stem)
        )
        shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def positions(self, numbers: Sequence[int] | np.ndarray, stem: str) -> ir.Value:
        """Sizes, axes or places."""
        return self.hold(np.array(numbers, np.int64), stem)

    def insert(
        self, kind: str, inputs: Inputs, before: Op, outputs: int = 1, of: ir.DataType | None = None, domain: str = "",
        **attributes: Operand,
    ) -> list[ir.Value]:  # fmt: skip
        """A node; `of` is the type of what it makes, that of its first input if it is left out."""
        stem = self.fresh(f"{before.path or before.name or 'graph'}/{kind}")
        made = [ir.Value(name=f"{stem}_{i}", type=ir.TensorType(of) if of else inputs[0].type) for i in range(outputs)]
        node = ir.Node(
            domain, kind, inputs, ir.convenience.convert_attributes(attributes), outputs=made, name=stem,
            metadata_props=dict(before.node.metadata_props),
        )  # fmt: skip
        self.graph.insert_before(before.node, node)
        return made
