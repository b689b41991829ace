"""What a node is, and the path of its module, as far as an ONNX file tells it: exporter metadata, else node names."""

from __future__ import annotations

import ast

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"


def module_path(node: ir.Node) -> str:
    """`blocks.0.attn.qkv` from metadata `['', 'blocks', ..., 'linear']` or from `/blocks/blocks.0/attn/qkv/MatMul`."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes:
        try:
            parsed = ast.literal_eval(scopes)
        except (ValueError, SyntaxError):
            parsed = []
        if len(parsed) > 1:
            return str(parsed[-2])
    name = node.name or ""
    return join_scopes(name.strip("/").split("/")[:-1]) if name.startswith("/") else ""


def join_scopes(parts: list[str]) -> str:
    """`['blocks', 'blocks.0', 'attn']` is `blocks.0.attn`: a part that starts with the last one replaces it."""
    path: list[str] = []
    for part in parts:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


UNDERSTOOD = ("", "com.microsoft")  # domains


def operator_of(node: ir.Node) -> str:
    return named(node.op_type, node.domain)


def named(operator: str, domain: str) -> str:
    """One of another domain may have the name of ONNX's own and be something else."""
    return operator if domain in UNDERSTOOD else f"{domain}::{operator}"
