"""`If` nodes whose condition is known are replaced by the branch that is taken."""

from __future__ import annotations

import onnx_ir as ir

from .facts import Facts


def inline_known_branches(graph: ir.Graph, facts: Facts, other: Facts) -> bool:
    """True if anything changed. The condition must be the same for all run-time sizes."""
    changed = False
    for node in list(graph):
        if node.op_type != "If" or node.domain != "" or node.inputs[0] is None:
            continue
        known = [f.data.get(node.inputs[0]) for f in (facts, other)]
        if any(k is None for k in known) or bool(known[0]) != bool(known[1]):
            continue
        inline(graph, node, node.attributes["then_branch" if bool(known[0]) else "else_branch"].as_graph())
        changed = True
    return changed


def inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        value.name = f"{node.name or 'if'}/{value.name}"
        graph.register_initializer(value)
    moved, outputs = list(branch), list(branch.outputs)
    branch.outputs.clear()
    branch.remove(moved)
    for inner in moved:
        graph.insert_before(node, inner)
    ir.convenience.replace_all_uses_with(list(node.outputs), outputs, replace_graph_outputs=True)
    graph.remove(node, safe=True)
