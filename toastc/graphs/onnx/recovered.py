"""Quantised files: their float weights are taken back, and what rounds on the way is left out.

A quantised tensor stands for a float one, and everything is written in those: QuantizeLinear hands its input on, a
DequantizeLinear of numbers is numbers, QLinearMatMul is a MatMul. Of DynamicQuantizeLinear the scale is 1, so that the integers
that follow are floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ...system.errors import ToastcError
from ...system.vocabulary import Operand
from .classify import attribute

Inputs = Sequence[ir.Value | None]


FLOAT = "prune the float model and quantise the result"


def is_quantised(model: ir.Model) -> bool:
    return any(node.op_type in RULES or node.op_type in UNKNOWN for node in model.graph)


def take_back(graph: ir.Graph, what: str) -> None:
    """The graph in floats, if it is quantised."""
    for node in graph:
        if node.op_type in UNKNOWN:
            raise ToastcError(f"{what}: is quantised ({node.op_type}); prune the float model and quantise the result")
    Recovery(graph, what).run()


class Recovery:
    def __init__(self, graph: ir.Graph, what: str) -> None:
        self.graph, self.what, self.gone = graph, what, list[ir.Node]()

    def run(self) -> None:
        for node in list(self.graph):
            rule = RULES.get(node.op_type)
            if rule is not None:
                for old, new in zip(node.outputs, rule(self, node), strict=False):
                    if new is not None:
                        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
                self.gone.append(node)
            elif node.outputs and node.inputs and node.inputs[0] is not None and rounds(node.outputs[0]):
                node.outputs[0].type = node.inputs[0].type  # moves about what was integers
        self.graph.remove(self.gone, safe=True)

    def numbers(self, value: ir.Value | None) -> np.ndarray:
        tensor = None if value is None else value.const_value
        if tensor is None:
            raise ToastcError(f"{self.what}: is quantised by numbers that are only known at run time; {FLOAT}")
        return tensor.numpy()

    def hold(self, array: np.ndarray, name: str) -> ir.Value:
        """Float numbers, under the name of those that they are taken from."""
        stem = f"{name.removesuffix('_quantized').removesuffix('_Q4')}"
        while stem in self.graph.initializers:
            stem += "_float"
        tensor = ir.tensor(np.ascontiguousarray(array, np.float32), name=stem)
        value = ir.Value(name=stem, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def weight(self, given: ir.Value, scale: ir.Value | None, zero: ir.Value | None, axis: int = -1) -> ir.Value:
        """What an operand stands for: itself, where it is no number, or was no integer."""
        if given.const_value is None or given.const_value.dtype.is_floating_point():
            return given
        array = self.numbers(given).astype(np.float32)
        by = np.float32(1) if scale is None else self.numbers(scale).astype(np.float32)
        off = np.float32(0) if zero is None else self.numbers(zero).astype(np.float32)
        return self.hold((array - along(off, array.ndim, axis)) * along(by, array.ndim, axis), str(given.name))

    def draw(self, kind: str, inputs: Inputs, like: ir.Node, **attributes: Operand) -> ir.Value:
        made = ir.Value(name=f"{like.outputs[0].name}_float", type=ir.TensorType(ir.DataType.FLOAT), shape=like.outputs[0].shape)
        node = ir.Node(
            "", kind, inputs, ir.convenience.convert_attributes(attributes), outputs=[made], name=like.name,
            metadata_props=dict(like.metadata_props),
        )  # fmt: skip
        self.graph.insert_before(like, node)
        return made

    def plus(self, made: ir.Value, bias: ir.Value | None, like: ir.Node) -> ir.Value:
        return made if bias is None else self.draw("Add", [made, bias], like)


def rounds(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)


def along(numbers: np.ndarray | np.float32, rank: int, axis: int) -> np.ndarray:
    """One for all, or one for each place of an axis."""
    array = np.asarray(numbers)
    return array.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if array.size > 1 else array.reshape(())


def at(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


# ---- one rule for each operator: what stands for its outputs ------------------------------------------------------------------


def handed_on(made: Recovery, node: ir.Node) -> Inputs:
    return [node.inputs[0]]


def dequantized(made: Recovery, node: ir.Node) -> Inputs:
    given = node.inputs[0]
    assert given is not None
    if attribute(node, "block_size", 0):
        raise ToastcError(f"{made.what}: {node.name} has weights quantised in blocks; {FLOAT}")
    return [made.weight(given, at(node, 1), at(node, 2), int(attribute(node, "axis", 1)))]


def dynamic(made: Recovery, node: ir.Node) -> Inputs:
    one, none = (made.hold(np.array(n), f"{node.outputs[0].name}_{n}") for n in (1, 0))
    return [node.inputs[0], one, none]


def of_integers(kind: str) -> Callable[[Recovery, ir.Node], Inputs]:
    """(a, b, zero of a, zero of b), as floats that are whole numbers: scales follow."""

    def rule(made: Recovery, node: ir.Node) -> Inputs:
        b = node.inputs[1]
        assert b is not None
        words = {name: a.value for name, a in node.attributes.items()}
        return [made.draw(kind, [node.inputs[0], made.weight(b, None, at(node, 3))], node, **words)]

    return rule


def of_quantized(kind: str, axis: int) -> Callable[[Recovery, ir.Node], Inputs]:
    """(a, its scale, its zero, b, its scale, its zero, ...), and a bias in units of both scales."""

    def rule(made: Recovery, node: ir.Node) -> Inputs:
        a, b = node.inputs[0], node.inputs[3]
        assert a is not None and b is not None
        inputs = [made.weight(a, at(node, 1), at(node, 2)), made.weight(b, at(node, 4), at(node, 5), axis)]
        bias = at(node, 8 if kind == "Conv" else 6) if kind in ("Conv", "Gemm") else None
        if bias is not None:
            scale = made.numbers(at(node, 1)) * made.numbers(at(node, 4))
            inputs.append(made.hold(made.numbers(bias) * scale, str(bias.name)))
        return [made.draw(kind, inputs, node, **{name: a.value for name, a in node.attributes.items()})]

    return rule


def of_one(kind: str) -> Callable[[Recovery, ir.Node], Inputs]:
    """(a, its scale, its zero, scale and zero of what is made)."""

    def rule(made: Recovery, node: ir.Node) -> Inputs:
        words = {name: a.value for name, a in node.attributes.items() if name not in ("opset", "channels_last")}
        return [made.draw(kind, [node.inputs[0]], node, **words)]

    return rule


def joined(made: Recovery, node: ir.Node) -> Inputs:
    """(scale and zero of what is made, then a tensor, its scale and its zero each)."""
    parts = [(node.inputs[i], at(node, i + 1), at(node, i + 2)) for i in range(2, len(node.inputs), 3)]
    inputs = [made.weight(x, scale, zero) for x, scale, zero in parts if x is not None]
    return [made.draw("Concat", inputs, node, axis=attribute(node, "axis"))]


def to_float(made: Recovery, node: ir.Node) -> Inputs:
    a, b, _, scale, _, zero, bias = (at(node, i) for i in range(7))
    assert b is not None
    return [made.plus(made.draw("MatMul", [a, made.weight(b, scale, zero)], node), bias, node)]


def dynamic_product(made: Recovery, node: ir.Node) -> Inputs:
    a, b, scale, zero, bias = (at(node, i) for i in range(5))
    assert b is not None
    return [made.plus(made.draw("MatMul", [a, made.weight(b, scale, zero)], node), bias, node)]


def in_blocks(made: Recovery, node: ir.Node) -> Inputs:
    """Rows of N, in blocks of K, several numbers a byte, the low bits first."""
    a, packed, scales, zeros, order, bias = (at(node, i) for i in range(6))
    k, n, bits, block = (int(attribute(node, name, 4)) for name in ("K", "N", "bits", "block_size"))
    if order is not None or bits not in (4, 8):
        raise ToastcError(f"{made.what}: {node.name} has weights of {bits} bits in an order of their own; {FLOAT}")
    numbers = unpacked(made.numbers(packed).reshape(n, -1), bits).reshape(n, -1, block).astype(np.float32)
    blocks = numbers.shape[1]
    middle = np.float32(2 ** (bits - 1))
    off = middle if zeros is None else zeros_of(made.numbers(zeros), n, blocks, bits)[..., None]
    whole = (numbers - off) * made.numbers(scales).reshape(n, blocks, 1).astype(np.float32)
    weight = made.hold(whole.reshape(n, -1)[:, :k].T, str(packed.name if packed is not None else node.name))
    return [made.plus(made.draw("MatMul", [a, weight], node), bias, node)]


def zeros_of(array: np.ndarray, n: int, blocks: int, bits: int) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.reshape(n, blocks).astype(np.float32)
    return unpacked(array.reshape(n, -1), bits)[:, :blocks].astype(np.float32)


def unpacked(array: np.ndarray, bits: int) -> np.ndarray:
    return array if bits == 8 else np.stack([array & 15, array >> 4], axis=-1).reshape(len(array), -1)


RULES: dict[str, Callable[[Recovery, ir.Node], Inputs]] = {
    "QuantizeLinear": handed_on,
    "DequantizeLinear": dequantized,
    "DynamicQuantizeLinear": dynamic,
    "MatMulInteger": of_integers("MatMul"),
    "ConvInteger": of_integers("Conv"),
    "MatMulIntegerToFloat": to_float,
    "DynamicQuantizeMatMul": dynamic_product,
    "MatMulNBits": in_blocks,
    "QLinearConcat": joined,
    "QLinearMatMul": of_quantized("MatMul", -1),
    "QLinearConv": of_quantized("Conv", 0),
    "QLinearAdd": of_quantized("Add", -1),
    "QLinearMul": of_quantized("Mul", -1),
    "QGemm": of_quantized("Gemm", 0),
    "QLinearSoftmax": of_one("Softmax"),
    "QLinearSigmoid": of_one("Sigmoid"),
    "QLinearLeakyRelu": of_one("LeakyRelu"),
    "QLinearGlobalAveragePool": of_one("GlobalAveragePool"),
    "QLinearAveragePool": of_one("AveragePool"),
}
UNKNOWN = {"QAttention", "QEmbedLayerNormalization", "QOrderedMatMul", "QOrderedAttention", "QMoE", "QLSTM"}
