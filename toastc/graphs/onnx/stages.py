"""An ONNX graph in stretches: each runs from the tensors alive at one value to those alive at the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from ...system.vocabulary import Operand
from .. import Live, Stage, Value
from .bound import running
from .probe import runnable, runnable_type
from .session import session_of
from .weights import folder_of, without_weights

END = 1 << 60


def stages(
    model: ir.Model, dtypes: Mapping[Value, int], cuts: Sequence[Operand], provider: str, lanes: int = 1
) -> Iterator[Stage]:
    """One stage up to each cut in turn, and one to the outputs. Each is built when it is asked for."""
    proto, handed = without_weights(computed := runnable(model))
    by_name = {v.name: v for node in model.graph for v in node.outputs} | {v.name: v for v in model.graph.inputs}
    weights = {t.name: t for t in proto.graph.initializer}
    nodes = list(proto.graph.node)
    reads = [names_read(node) for node in nodes]
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    moving = {v.name for v in proto.graph.input if v.name not in weights}
    for node, read in zip(nodes, reads, strict=True):
        if read & moving:
            moving.update(name for name in node.output if name)
    last = {name: i for i, read in enumerate(reads) for name in read} | {o.name: END for o in proto.graph.output}
    folder = folder_of(computed)

    def stage(start: int, end: int, extra: str) -> Stage:
        own = [i for i in range(start + 1, end + 1) if reads[i] & moving]
        made = [n for i in own for n in nodes[i].output if n in moving and (last.get(n, -1) > end or n == extra)]
        given = sorted({n for i in own for n in reads[i] if n in moving and maker.get(n, -1) <= start})
        still, todo = set(own), [n for i in own for n in reads[i]]
        while todo:  # what computes constants comes along wherever it stands
            name = todo.pop()
            at = maker.get(name)
            if at is not None and name not in moving and at not in still:
                still.add(at)
                todo += reads[at]
        read = {n for i in still for n in reads[i]}
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [nodes[i] for i in sorted(still)], "stage",
            [info(n, runnable_type(dtypes[by_name[n]]), None) for n in given], [onnx.ValueInfoProto(name=n) for n in made],
            [weights[n] for n in weights if n in read],
        )  # fmt: skip
        part = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
        part.graph.CopyFrom(graph)
        own_weights = {name: array for name, array in handed.items() if name in read}
        session = None
        if made:
            session = running(session_of(part.SerializeToString(), folder, provider, own_weights, True, lanes), provider)

        def run(live: Live) -> Live:
            kept = {v: t for v, t in live.items() if last.get(v.name, -1) > end}
            if session is None:
                return kept
            out = session({n: live[by_name[n]] for n in given}, made)
            return kept | {by_name[n]: t for n, t in zip(made, out, strict=True)}

        return run

    start = -1
    for cut in cuts:
        end = maker[cut.name]
        yield stage(start, end, cut.name)
        start = end
    yield stage(start, len(nodes) - 1, "")


def names_read(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its branches included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {v.name for v in (*graph.input, *graph.initializer)} | {n for inner in graph.node for n in inner.output}
            names |= set().union(*map(names_read, graph.node), {o.name for o in graph.output}) - own
    return names
