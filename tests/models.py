"""Tiny Vision Transformers as ONNX files, written by hand, so that every weight and every channel is known.

`weights()` makes the numbers in one canonical layout, `vit(...)` writes the graph in one of many forms, and
`masked()` sets to zero what a plan removes. So a pruned file can be compared with a dense one that toastc never touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

BLOCKS, DIM, HEADS, WIDTH, HIDDEN, CLASSES = 2, 32, 2, 16, 64, 10
IMAGE, PATCH = 16, 4
TOKENS = (IMAGE // PATCH) ** 2
Weights = dict[str, np.ndarray]

# Forms that must be pruned, and the plain one is the first.
GOOD = ("plain", "float16", "qdq", "tied", "shared_bias", "transposed", "gemm", "dropout", "dropout_constant")
# Forms that must be refused.
REFUSED = ("training", "opset11")


def weights(seed: int = 0) -> Weights:
    """Linears are [in, out]; the columns of qkv run over (3, heads, width)."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    made = {
        "patch.weight": normal(DIM, 3, PATCH, PATCH) * 8,
        "patch.bias": normal(DIM),
        "pos_embed": normal(1, TOKENS, DIM),
        "norm.weight": 1 + normal(DIM) / 8,
        "norm.bias": normal(DIM),
        "head.weight": normal(DIM, CLASSES),
        "head.bias": normal(CLASSES),
    }
    for block in (f"blocks.{i}" for i in range(BLOCKS)):
        for norm in ("norm1", "norm2"):
            made |= {f"{block}.{norm}.weight": 1 + normal(DIM) / 8, f"{block}.{norm}.bias": normal(DIM)}
        sizes = {"attn.qkv": (DIM, 3 * DIM), "attn.proj": (DIM, DIM), "mlp.fc1": (DIM, HIDDEN), "mlp.fc2": (HIDDEN, DIM)}
        for linear, shape in sizes.items():
            made |= {f"{block}.{linear}.weight": normal(*shape), f"{block}.{linear}.bias": normal(shape[1])}
    return made


def masked(dense: Weights, plan: Mapping[str, Any]) -> Weights:
    """The dense weights with zeros where the plan (its JSON form) removes a channel or a head."""
    made = {k: v.copy() for k, v in dense.items()}
    for name, choice in plan["choices"].items():
        site, _, coupling = name.rpartition(".")
        index = choice["index"]
        if coupling == "hidden":
            gone = np.setdiff1d(np.arange(HIDDEN), index)
            for part in ("weight", "bias"):
                made[f"{site}.fc1.{part}"][..., gone] = 0
            continue
        if coupling == "heads":
            gone = np.array([[h in index[0]] * WIDTH for h in range(HEADS)])
        else:
            gone = np.array([[c in row for c in range(WIDTH)] for row in index])
        for part in ("weight", "bias"):
            split = made[f"{site}.qkv.{part}"].reshape(-1, 3, HEADS, WIDTH)
            split[:, {"qk": [0, 1], "vo": [2], "heads": [0, 1, 2]}[coupling]] *= gone
    return made


class Writer:
    def __init__(self, form: str, dense: Weights) -> None:
        self.form, self.dense = form, dense
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def const(self, name: str, array: Any) -> str:
        array = np.asarray(array, np.int64) if isinstance(array, list | int) else array
        if self.form == "float16" and array.dtype == np.float32:
            array = array.astype(np.float16)
        self.constants[name] = array
        return name

    def weight(self, name: str) -> str:
        return self.const(name, self.dense[name])

    def op(self, kind: str, path: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        name = f"/{path.replace('.', '/').replace('blocks/', 'blocks.')}/{kind}"
        made = [f"{name}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=f"{name}_{len(self.nodes)}", **attributes))
        return made[0] if outputs == 1 else made

    def linear(self, path: str, x: str) -> str:
        name, bias = f"{path}.weight", f"{path}.bias"
        array = self.dense[name]
        if self.form == "tied" and path.endswith("fc1"):
            name = "tied.weight"
            array = self.dense["blocks.0.mlp.fc1.weight"]
        if self.form == "shared_bias":
            bias = self.const(f"zeros.{array.shape[1]}", np.zeros(array.shape[1], np.float32))
        else:
            self.weight(bias)
        if self.form == "gemm" and path != "head":
            flat = self.op("Reshape", path, x, self.const(f"{path}.rows", [-1, array.shape[0]]))
            y = self.op("Gemm", path, flat, self.const(name, np.ascontiguousarray(array.T)), bias, transB=1)
            return str(self.op("Reshape", path, y, self.const(f"{path}.back", [-1, TOKENS, array.shape[1]])))
        if self.form == "transposed":
            w = self.op("Transpose", path, self.const(name, np.ascontiguousarray(array.T)), perm=[1, 0])
        elif self.form == "qdq" and path.endswith("fc1"):
            scale, zero = self.const("scale", np.float32(0.05)), self.const("zero", np.int8(0))
            w = self.op("DequantizeLinear", path, self.const(name, (array / 0.05).astype(np.int8)), scale, zero)
        else:
            w = self.const(name, array)
        return str(self.op("Add", path, self.op("MatMul", path, x, w), bias))

    def norm(self, path: str, x: str) -> str:
        return str(self.op("LayerNormalization", path, x, self.weight(f"{path}.weight"), self.weight(f"{path}.bias"), axis=-1))

    def drop(self, path: str, x: str) -> str:
        """A dropout that does nothing (`dropout*`) or something (`training`)."""
        if self.form not in ("training", "dropout", "dropout_constant"):
            return x
        flag = np.array(self.form == "training")
        if self.form == "dropout_constant":
            mode = str(self.op("Constant", path, value=numpy_helper.from_array(flag)))
        else:
            mode = self.const(f"{path}.training", flag)
        return str(self.op("Dropout", path, x, self.const(f"{path}.ratio", np.array(0.1, np.float32)), mode))

    def attention(self, path: str, x: str) -> str:
        qkv = self.linear(f"{path}.qkv", x)
        wide = self.op("Reshape", path, qkv, self.const(f"{path}.apart", [-1, TOKENS, 3, HEADS, WIDTH]))
        front = self.op("Transpose", path, wide, perm=[2, 0, 3, 1, 4])
        parts = self.op("Split", path, front, self.const(f"{path}.ones", [1, 1, 1]), outputs=3, axis=0)
        q, k, v = (self.op("Squeeze", path, p, self.const(f"{path}.zero", [0])) for p in parts)
        q = self.op("Mul", path, q, self.const(f"{path}.scale", np.float32(WIDTH**-0.5)))
        scores = self.op("MatMul", path, q, self.op("Transpose", path, k, perm=[0, 1, 3, 2]))
        mixed = self.op("MatMul", path, self.op("Softmax", path, scores, axis=-1), v)
        joined = self.op("Transpose", path, mixed, perm=[0, 2, 1, 3])
        flat = self.op("Reshape", path, joined, self.const(f"{path}.join", [-1, TOKENS, DIM]))
        return self.drop(path, self.linear(f"{path}.proj", flat))

    def mlp(self, path: str, x: str) -> str:
        h = self.linear(f"{path}.fc1", x)
        erf = self.op("Erf", path, self.op("Div", path, h, self.const(f"{path}.root2", np.float32(2**0.5))))
        gate = self.op("Add", path, erf, self.const(f"{path}.one", np.float32(1)))
        gelu = self.op("Mul", path, self.op("Mul", path, h, gate), self.const(f"{path}.half", np.float32(0.5)))
        return self.linear(f"{path}.fc2", gelu)


def vit(form: str = "plain", dense: Weights | None = None) -> onnx.ModelProto:
    """image [batch, 3, 16, 16] -> logits [batch, 10] and the arg max, with metadata wherever a file may have some."""
    w = Writer(form, weights() if dense is None else dense)
    x = w.op("Conv", "patch", "image", w.weight("patch.weight"), w.weight("patch.bias"), strides=[PATCH, PATCH])
    x = w.op("Transpose", "patch", w.op("Reshape", "patch", x, w.const("patch.flat", [-1, DIM, TOKENS])), perm=[0, 2, 1])
    x = w.op("Add", "patch", x, w.weight("pos_embed"))
    for block in (f"blocks.{i}" for i in range(BLOCKS)):
        x = w.op("Add", block, x, w.attention(f"{block}.attn", w.norm(f"{block}.norm1", x)))
        x = w.op("Add", block, x, w.mlp(f"{block}.mlp", w.norm(f"{block}.norm2", x)))
    x = w.op("ReduceMean", "pool", w.norm("norm", x), w.const("pool.axes", [1]), keepdims=0)
    w.nodes.append(helper.make_node("Identity", [w.linear("head", x)], ["logits"], name="/Identity"))
    w.nodes.append(helper.make_node("Shape", ["image"], ["sizes"], name="/Shape"))
    return finish(w, [("logits", None, ["batch", CLASSES]), ("sizes", TensorProto.INT64, [4])])


def convnet() -> onnx.ModelProto:
    """A model in which there is nothing to find."""
    w = Writer("plain", weights())
    x = w.op("Relu", "patch", w.op("Conv", "patch", "image", w.weight("patch.weight"), w.weight("patch.bias"), strides=[4, 4]))
    w.nodes.append(helper.make_node("ReduceMean", [x, w.const("axes", [2, 3])], ["logits"], keepdims=0))
    return finish(w, [("logits", None, ["batch", DIM])])


def finish(w: Writer, outputs: list[tuple[str, int | None, list[Any]]]) -> onnx.ModelProto:
    kind = TensorProto.FLOAT16 if w.form == "float16" else TensorProto.FLOAT
    image = helper.make_tensor_value_info("image", kind, ["batch", 3, IMAGE, IMAGE], "normalised pixels")
    image.metadata_props.add(key="layout", value="NCHW")
    made = [helper.make_tensor_value_info(name, t or kind, shape, f"the {name}") for name, t, shape in outputs]
    made[0].metadata_props.add(key="classes", value="digits")
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in w.constants.items()]
    graph = helper.make_graph(w.nodes, "vit", [image], made, constants)
    opsets = [helper.make_opsetid("", 11 if w.form == "opset11" else 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tests", doc_string="a tiny ViT")
    model.metadata_props.add(key="author", value="the tests")
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def save_external(model: onnx.ModelProto, path: Path, location: str | None = None, threshold: int = 1024) -> Path:
    """Weights of `threshold` bytes or more in one file beside the model."""
    onnx.save(model, path, save_as_external_data=True, location=location or f"{path.name}.data", size_threshold=threshold)
    return path


def points_at(path: Path, weight: str, **entries: str) -> None:
    """Rewrite where one weight of a file with external data says that it lives."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def opened(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_file(model: onnx.ModelProto | Path, images: Any) -> np.ndarray:
    """The first output of any model of one input, for an array or a tensor."""
    session = opened(model)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: np.asarray(images)})[0])


def run(model: onnx.ModelProto | Path, batch: int = 3, seed: int = 0) -> list[np.ndarray]:
    session = opened(model)
    kind = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    image = np.random.default_rng(seed).standard_normal((batch, 3, IMAGE, IMAGE)).astype(kind)
    return [np.asarray(out) for out in session.run(None, {"image": image})]


def plan_of(path: Path) -> str:
    """The text of the plan that a pruned file carries."""
    found = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    return str(found["toastc.plan"])


def photos(folder: Path, count: int, size: tuple[int, int] = (40, 24), ending: str = "png", seed: int = 0) -> Path:
    """Noise of (width, height), as `0.png`, `1.png` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / f"{number}.{ending}")
    return folder


def kinds(path: Path) -> Counter[str]:
    """How many nodes of each operator a file has."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)
