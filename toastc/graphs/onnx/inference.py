"""How the outputs of one node are shaped, asked of onnx. Blocks are alike, and so are most of their nodes: answers are kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError, infer_node_outputs

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # onnx.TensorProto.DataType
FEW = 16  # floats that may tell a shape: the scales and regions of a Resize

Imports = tuple[tuple[str, int], ...]  # which version of each domain's operators
Input = tuple[int, tuple[int, ...], bytes | None]  # type, shape, and data where it may tell a shape
Output = tuple[int, tuple[int, ...] | None]


def as_input(dtype: int, shape: tuple[int, ...], array: np.ndarray | None) -> Input:
    tells = array is not None and (array.dtype.kind in "iub" or (array.dtype.kind == "f" and array.size <= FEW))
    return dtype, shape, array.tobytes() if array is not None and tells else None


@lru_cache(maxsize=2048)
def inferred(
    kind: tuple[str, str], attributes: tuple[bytes, ...], given: tuple[Input | None, ...], count: int, imports: Imports
) -> tuple[Output | None, ...] | None:
    """Types and shapes of the `count` outputs of a node of this name and domain; None where they can not be told."""
    node = onnx.NodeProto(op_type=kind[0], domain=kind[1])
    node.attribute.extend(onnx.AttributeProto.FromString(a) for a in attributes)
    node.input.extend("" if one is None else f"i{i}" for i, one in enumerate(given))
    node.output.extend(f"o{i}" for i in range(count))
    try:
        return asked(node, given, imports)
    except onnx.checker.ValidationError:  # a float type the operator does not list: shapes do not depend on it
        narrow = next((t for t in (BFLOAT16, FLOAT16) if any(one and one[0] == t for one in given)), None)
        if narrow is None:
            return None
    except (InferenceError, RuntimeError):
        return None
    wide = tuple((FLOAT, one[1], None) if one and one[0] == narrow else one for one in given)
    try:
        found = asked(node, wide, imports)
    except (InferenceError, onnx.checker.ValidationError, RuntimeError):
        return None
    return tuple((narrow, one[1]) if one and one[0] == FLOAT else one for one in found)


def asked(node: onnx.NodeProto, given: tuple[Input | None, ...], imports: Imports) -> tuple[Output | None, ...]:
    schema = onnx.defs.get_schema(node.op_type, dict(imports).get(node.domain, 1), node.domain)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in imports]
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for name, one in zip(node.input, given, strict=True):
        if one is not None:
            dtype, shape, raw = one
            types[name] = onnx.helper.make_tensor_type_proto(dtype, shape)
            if raw is not None:
                data[name] = onnx.helper.make_tensor(name, dtype, shape, raw, raw=True)
    found = infer_node_outputs(schema, node, types, data, opset_imports=opsets)
    return tuple(told(found[name]) if name in found else None for name in node.output)


def told(proto: onnx.TypeProto) -> Output | None:
    if not proto.HasField("tensor_type"):
        return None
    tensor = proto.tensor_type
    known = tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
    return tensor.elem_type, tuple(d.dim_value for d in tensor.shape.dim) if known else None


def fewest(node: ir.Node, versions: Mapping[str, int]) -> int:
    """How many inputs a node has at least, be they empty."""
    version = versions.get(node.domain, 1)
    known = onnx.defs.has(node.op_type, version, node.domain)
    return int(onnx.defs.get_schema(node.op_type, version, node.domain).min_input) if known else 0
