"""`com.microsoft.Attention` holds its own qkv weight; written out, it is a linear and a MultiHeadAttention.

Attention(x, W, b, mask, -, bias)  ->  q, k, v = Split(MatMul(x, W));  MultiHeadAttention(q, k, v, b, mask, bias)
"""

from __future__ import annotations

import onnx_ir as ir

CARRIED = ("num_heads", "scale", "unidirectional", "mask_filter_value")
DOMAIN = "com.microsoft"


def unpack_attention(model: ir.Model) -> None:
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Attention" and node.domain == DOMAIN and can_unpack(node):
            unpack(graph, node)


def can_unpack(node: ir.Node) -> bool:
    """No KV cache, no rotary inside, and a weight whose sizes are known."""
    past = len(node.inputs) > 4 and node.inputs[4] is not None
    known = set(node.attributes) <= {*CARRIED, "qkv_hidden_sizes"} or not extra(node)
    weight = node.inputs[1]
    return not past and known and len(node.outputs) == 1 and weight is not None and weight.shape is not None


def extra(node: ir.Node) -> bool:
    """Does an attribute ask for something MultiHeadAttention does not do?"""
    rest = {k: v.value for k, v in node.attributes.items() if k not in (*CARRIED, "qkv_hidden_sizes")}
    return any(bool(v) for v in rest.values())


def unpack(graph: ir.Graph, node: ir.Node) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None and weight.shape is not None
    sizes = node.attributes.get("qkv_hidden_sizes")
    widths = list(sizes.as_ints()) if sizes is not None else [weight.shape.numpy()[1] // 3] * 3
    stem = node.name or node.outputs[0].name or "attention"
    tensor = ir.tensor(widths, dtype=ir.DataType.INT64, name=f"{stem}.widths")
    numbers = ir.Value(name=tensor.name, shape=ir.Shape([len(widths)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(numbers)
    made = [ir.Value(name=f"{stem}.{part}", type=x.type) for part in ("qkv", "q", "k", "v")]
    product = ir.Node("", "MatMul", [x, weight], outputs=made[:1], name=f"{stem}.qkv")
    split = ir.Node(
        "", "Split", [made[0], numbers], ir.convenience.convert_attributes({"axis": -1}), outputs=made[1:], name=f"{stem}.split"
    )
    optional = [node.inputs[i] if len(node.inputs) > i else None for i in (2, 3, 5)]
    while optional and optional[-1] is None:
        optional.pop()
    out = ir.Value(name=f"{stem}.out", type=node.outputs[0].type, shape=node.outputs[0].shape)
    attention = ir.Node(
        DOMAIN, "MultiHeadAttention", [*made[1:], *optional], [node.attributes[k] for k in CARRIED if k in node.attributes],
        outputs=[out], name=node.name,
    )  # fmt: skip
    for new in (product, split, attention):
        new.metadata_props.update(node.metadata_props)
        graph.insert_before(node, new)
    name = node.outputs[0].name
    ir.convenience.replace_all_uses_with(node.outputs[0], out, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    out.name = name
