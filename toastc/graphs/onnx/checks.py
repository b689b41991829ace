"""Is a model one at all? Every way in which a file contradicts itself is one clear error, before anything is computed from it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from ...system.errors import ToastcError

INT, INTS, FLOAT = ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT
# com.microsoft nodes have no schema in onnx: the types of those attributes that are read here.
CONTRIB = {
    "num_heads": INT, "transA": INT, "transB": INT, "axis": INT, "unidirectional": INT, "qkv_hidden_sizes": INTS, "scale": FLOAT,
    "alpha": FLOAT,
}  # fmt: skip
KEPT_IN = {  # where numbers are that are no raw bytes, if not in int32_data
    ir.DataType.FLOAT: "float_data", ir.DataType.COMPLEX64: "float_data", ir.DataType.INT64: "int64_data",
    ir.DataType.DOUBLE: "double_data", ir.DataType.COMPLEX128: "double_data", ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
}  # fmt: skip
KEPT_AS = {ir.DataType.COMPLEX64: 2, ir.DataType.COMPLEX128: 2}
FEWEST = {"FusedMatMul": 2, "Attention": 2}  # inputs
COMMENTS = {"doc_string", "producer_name", "producer_version"}
MOST_NODES = 1_000_000  # of a function; real models have thousands


def check_text(proto: Message, path: Path) -> None:
    """Text that is damaged, or of another encoding, comes as bytes: what is only read by people is left out, names are wrong."""
    for field in proto.DESCRIPTOR.fields:
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        value = getattr(proto, field.name)
        if field.name == "metadata_props":
            for entry in [e for e in value if isinstance(e.key, bytes) or isinstance(e.value, bytes)]:
                value.remove(entry)
        for one in (value,) if isinstance(value, str | bytes | Message) else value:
            if isinstance(one, bytes) and (proto.DESCRIPTOR.name, field.name) == ("GraphProto", "name"):
                setattr(proto, field.name, "graph")
            elif isinstance(one, bytes) and field.name in COMMENTS:
                proto.ClearField(field.name)
            elif isinstance(one, bytes):
                raise ToastcError(f"{path}: a damaged ONNX model (a name in it is not text: {one!r})")
            elif isinstance(one, Message) and (one is not value or proto.HasField(field.name)):
                check_text(one, path)


def check_wires(model: ir.Model, path: Path) -> None:
    """Whatever a node takes or the model gives is an input, a weight, or made by a node."""
    every: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in every:
        taken = [(v, node.name or node.op_type) for node in graph for v in node.inputs if v is not None]
        for value, who in [*taken, *((v, "the output") for v in graph.outputs)]:
            if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                raise ToastcError(f"{path}: a damaged ONNX model ({who} takes {value.name!r}, which nothing makes)")


def put_in_order(model: ir.Model, path: Path) -> None:
    """As ONNX wants it: what is taken is made before. ONNX Runtime takes other files as well; those in circles are none."""
    seen: set[ir.Node] = set()
    for node in model.graph:
        if any(
            (made := v.producer()) is not None and made.graph is model.graph and made not in seen
            for v in node.inputs
            if v is not None
        ):
            break
        seen.add(node)
    else:
        return
    try:
        model.graph.sort()
    except ValueError:
        raise ToastcError(f"{path}: a damaged ONNX model (its nodes go in circles)") from None


def check_functions(model: ir.Model, what: str) -> None:
    """None calls itself, and written out they are not too many nodes to ever be written out."""
    sizes: dict[ir.OperatorIdentifier, int] = {}
    while len(sizes) < len(model.functions):
        ready = [
            key for key, body in model.functions.items()
            if key not in sizes and all(n.op_identifier() in sizes or n.op_identifier() not in model.functions for n in body)
        ]  # fmt: skip
        if not ready:
            raise ToastcError(f"{what}: a damaged ONNX model (a function in it calls itself)")
        for key in ready:
            sizes[key] = sum(sizes.get(node.op_identifier(), 1) for node in model.functions[key])
            if sizes[key] > MOST_NODES:
                raise ToastcError(f"{what}: function {key[1]} is of more than {MOST_NODES:,} nodes when written out; refused")


def check_nodes(model: ir.Model, what: str) -> None:
    """As the operators' own descriptions say: how many inputs and outputs there are, which attributes, and of which types."""
    if not all(0 < version < 2**31 for version in (model.ir_version or 0, *model.graph.opset_imports.values())):
        raise ToastcError(f"{what}: a damaged ONNX model (its version or that of an operator set is out of range)")
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = model.ir_version, dict(model.graph.opset_imports)
    for node in model.graph:
        try:
            check_attributes(node)
            version = model.graph.opset_imports.get(node.domain, 1)
            if not has_branches(node) and onnx.defs.has(node.op_type, version, node.domain):
                onnx.checker.check_node(ir.serde.serialize_node(node), context)
        except (onnx.checker.ValidationError, ir.serde.SerdeError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())[:160]
            raise ToastcError(f"{what}: a damaged ONNX model (node {node.name or node.op_type}: {text})") from None
    for value in model.graph.inputs:
        if any(isinstance(d, int) and d < 1 for d in value.shape or ()):
            raise ToastcError(f"{what}: a damaged ONNX model (input {value.name} has a size below one)")


def has_branches(node: ir.Node) -> bool:
    """If, Loop and Scan have graphs of their own."""
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def check_attributes(node: ir.Node) -> None:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise TypeError(f"attribute {attribute.name} is that of a function, and this is none")
    if node.op_type == "If" and node.domain == "":
        branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch") if name in node.attributes]
        if len(node.inputs) != 1 or [len(b.outputs) for b in branches] != [len(node.outputs)] * 2:
            raise TypeError("its branches do not give what it gives")
    for name, kind in CONTRIB.items():
        found = node.attributes.get(name)
        if found is not None and node.domain == "com.microsoft" and found.type != kind:
            raise TypeError(f"attribute {name} is of type {found.type.name}, not {kind.name}")
    if node.domain == "com.microsoft" and (len(node.inputs) < FEWEST.get(node.op_type, 1) or not node.outputs):
        raise TypeError("has too few inputs, or no outputs")


def check_tensor(tensor: ir.TensorProtocol, path: Path) -> None:
    """Its numbers are of a known type and all there; and where they are in a file of their own, that is beside the model.

    Hubs keep files under names of their own and link to them: beside the file that the link leads to is as good.
    """
    if tensor.dtype == ir.DataType.UNDEFINED:
        raise ToastcError(f"{path}: weight {tensor.name} is damaged: its type is not known")
    if tensor.dtype == ir.DataType.STRING:
        if not isinstance(tensor, ir.StringTensor) or len(tensor.string_data()) != tensor.size:
            raise ToastcError(f"{path}: weight {tensor.name} is damaged: it is text, and that is not all there")
        return
    if isinstance(tensor, ir.TensorProtoTensor):
        if tensor.raw.HasField("raw_data") and len(tensor.raw.raw_data) != tensor.nbytes:
            raise ToastcError(f"{path}: weight {tensor.name} is damaged: {len(tensor.raw.raw_data)} of {tensor.nbytes} bytes")
        own = getattr(tensor.raw, KEPT_IN.get(tensor.dtype, "int32_data"))
        wanted = tensor.size * KEPT_AS.get(tensor.dtype, 1)
        if not tensor.raw.HasField("raw_data") and tensor.dtype.bitwidth >= 8 and len(own) != wanted:
            raise ToastcError(f"{path}: weight {tensor.name} is damaged: {len(own)} of {wanted} numbers")
        return
    if not isinstance(tensor, ir.ExternalTensor):
        return
    location = str(tensor.location)
    outside = f"{path}: weight {tensor.name} points outside the model's folder ({location}); refused"
    if os.path.isabs(location) or ".." in Path(location).parts or "\\" in location:
        raise ToastcError(outside)
    file = path.parent / location
    try:
        there = file.exists()
    except (OSError, ValueError):  # a name no file can have
        there = False
    if not there:
        raise ToastcError(f"{path}: the external data file {location} is missing; it belongs beside the model")
    folders = {path.parent.resolve(), path.resolve().parent}
    if not folders & set(file.resolve().parents):
        raise ToastcError(outside)
    if not file.is_file():
        raise ToastcError(f"{path}: the external data {location} is not a file")
    offset, length, size = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length, file.stat().st_size
    if offset < 0 or length != tensor.nbytes:
        raise ToastcError(f"{path}: weight {tensor.name} has a senseless place in {location} ({offset}, {length})")
    if offset + length > size:
        raise ToastcError(f"{path}: the external data file {location} is too short for weight {tensor.name}")
