"""Models that contradict themselves in ways that fuzzing found: one line each, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from conftest import PLAIN, Command
from handwritten import saved, written
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from toastc import api
from toastc.system.errors import ToastcError

Change = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def taken_from_nowhere(model: onnx.ModelProto) -> None:
    node(model, "Erf").input[0] = "nothing makes this"


def given_from_nowhere(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "nothing makes this"


def calls_itself(model: onnx.ModelProto) -> None:
    body = [helper.make_node("F", ["x"], ["y"], domain="own")]
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], body, list(model.opset_import)))
    model.opset_import.append(helper.make_opsetid("own", 1))
    erf = node(model, "Erf")
    erf.op_type, erf.domain = "F", "own"


def axis_of_no_function(model: onnx.ModelProto) -> None:
    attribute = node(model, "Softmax").attribute[0]
    attribute.CopyFrom(AttributeProto(name="axis", type=AttributeProto.INT, ref_attr_name="axis"))


def branches_of_two(model: onnx.ModelProto) -> None:
    """An If that gives one value, whose branches give two."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")]
    inner = [helper.make_node("Identity", ["pos_embed"], [end.name]) for end in ends]
    branch = helper.make_graph(inner, "g", [], ends)
    model.graph.node.insert(0, helper.make_node("If", ["flag"], ["one"], then_branch=branch, else_branch=branch))


def negative_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -3


def no_type_of_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"]))
    model.graph.node[0].attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR))


def reshape_that_does_not_fit(model: onnx.ModelProto) -> None:
    """Of the values, so that labels can not follow them."""
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.attn.join")
    tensor.CopyFrom(numpy_helper.from_array(np.array([1, 1, 1]), tensor.name))


def transpose_that_does_not_fit(model: onnx.ModelProto) -> None:
    four = next(n for n in model.graph.node if n.op_type == "Transpose" and list(n.attribute[0].ints) == [0, 1, 3, 2])
    four.attribute[0].ints[:] = [2, 3]


def version_out_of_range(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("nowhere", 2**40))


def no_numbers(model: onnx.ModelProto) -> None:
    """A weight of terabytes, in a file of some kilobytes."""
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.attn.qkv.weight")
    tensor.ClearField("raw_data")
    tensor.dims[:] = [2**40]


def numbers_of_another_type(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.attn.qkv.weight")
    tensor.ClearField("raw_data")
    tensor.uint64_data.extend([1] * 3072)


def function_of_another_version(model: onnx.ModelProto) -> None:
    calls_itself(model)
    del model.functions[0].node[:], model.functions[0].opset_import[:]
    model.functions[0].node.append(helper.make_node("Erf", ["x"], ["y"]))
    model.functions[0].opset_import.append(helper.make_opsetid("", 13))


def constant_of_a_transpose(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], perm=[1, 0]))


def name_no_file_can_have(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.attn.qkv.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="n" * 5000)


def text_of_numbers(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "blocks.0.attn.qkv.weight").data_type = TensorProto.STRING


def batch_of_nothing(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0


CHANGES: dict[Change, str] = {
    batch_of_nothing: "input image has a size below one",
    text_of_numbers: "it is text, and that is not all there",
    no_numbers: "0 of 1099511627776 numbers",
    numbers_of_another_type: "0 of 3072 numbers",
    function_of_another_version: "its functions can not be written out",
    constant_of_a_transpose: "a damaged ONNX model (Unsupported constant node",
    name_no_file_can_have: "is missing; it belongs beside the model",
    version_out_of_range: "out of range",
    taken_from_nowhere: "takes 'nothing makes this', which nothing makes",
    given_from_nowhere: "the output takes 'nothing makes this', which nothing makes",
    calls_itself: "a function in it calls itself",
    axis_of_no_function: "attribute axis is that of a function",
    branches_of_two: "its branches do not give what it gives",
    negative_input: "input image has a size below one",
    no_type_of_a_constant: "its type is not known",
    reshape_that_does_not_fit: "(Reshape) can not be carried out",
    transpose_that_does_not_fit: "(Transpose) can not be carried out",
}
UNRUN = (reshape_that_does_not_fit, transpose_that_does_not_fit)  # seen by who runs the nodes; `verify` wants a plan before


@pytest.mark.parametrize("command", ["prune", "inspect", "verify", "calibrate"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_model_that_contradicts_itself_is_one_line(
    here: Command, tmp_path: Path, ratio_file: Path, change: Change, command: str
) -> None:
    model = models.vit()
    change(model)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(model.SerializeToString())
    np.save(tmp_path / "data.npy", np.zeros((4, 3, 16, 16), np.float32))
    args = {
        "prune": [path, "-o", out, "--ratios", ratio_file, *PLAIN],
        "calibrate": ["calibrate", path, tmp_path / "data.npy", "-o", out],
    }
    made = here(*args.get(command, [command, path, path][: 2 if command == "inspect" else 3]), "--quiet")
    assert made.returncode == 2
    assert len(made.stderr.splitlines()) == 1, made.stderr
    assert "bug" not in made.stderr and "PassFailed" not in made.stderr
    assert ("carries no toastc plan" if command == "verify" and change in UNRUN else CHANGES[change]) in made.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npy", "model.onnx"]


@pytest.mark.parametrize("heads", [0, -1, 3, 2**40])
def test_heads_that_do_not_divide_the_width(here: Command, tiny: Path, ratio_file: Path, tmp_path: Path, heads: int) -> None:
    fused = tmp_path / "fused.onnx"
    assert here(tiny, "-o", fused, "--for", "ort-cpu", "--quiet").returncode == 0
    model = onnx.load(fused)
    attribute = next(a for a in node(model, "MultiHeadAttention").attribute if a.name == "num_heads")
    attribute.i = heads
    fused.write_bytes(model.SerializeToString())
    made = here(fused, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--quiet")
    assert made.returncode in (1, 2)
    assert len(made.stderr.splitlines()) == 1 and "bug" not in made.stderr, made.stderr
    attribute.CopyFrom(helper.make_attribute("num_heads", 2.5))
    fused.write_bytes(model.SerializeToString())
    assert "num_heads is of type FLOAT, not INT" in here("inspect", fused).stderr


def test_queries_and_keys_of_other_widths_are_no_attention(here: Command, ratio_file: Path, tmp_path: Path) -> None:
    model = models.vit()
    scores = next(n for n in model.graph.node if n.op_type == "MatMul" and "Transpose" in n.input[1])
    scores.input[1] = next(n.output[0] for n in model.graph.node if n.op_type == "Split")
    made = here(
        models.save(model, tmp_path / "model.onnx"), "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--quiet"
    )
    assert made.returncode in (1, 2)
    assert "PassFailed" not in made.stderr and len(made.stderr.splitlines()) == 1


def test_outputs_that_overflow_are_one_line(here: Command, tmp_path: Path) -> None:
    """Inner tensors are numbers; what an error makes of the outputs is none."""
    model = models.vit()
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.full((models.DIM, models.CLASSES), np.nan, np.float32), tensor.name))
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32))
    path = models.save(model, tmp_path / "m.onnx")
    made = here(path, "-o", tmp_path / "o.onnx", "--target", "macs=0.7", "--calibrate", tmp_path / "data.npy", "--quiet")
    assert made.returncode == 2
    assert "loses makes the outputs NaN or infinite" in made.stderr and len(made.stderr.splitlines()) == 1


def test_nodes_in_another_order_are_the_same_model(here: Command, ratio_file: Path, tmp_path: Path) -> None:
    outputs = []
    for turned in (False, True):
        model = models.vit()
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes[::-1] if turned else nodes)
        path = models.save(model, tmp_path / "model.onnx")
        made = here(path, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--quiet")
        assert made.returncode == 0, made.stderr
        outputs.append(models.run(tmp_path / "out.onnx")[0])
    assert np.allclose(*outputs, atol=1e-6)
    model.graph.node[-1].input[0] = model.graph.node[0].output[0]
    next(n for n in model.graph.node if n.op_type == "Erf").input[0] = "logits"
    made = here("inspect", models.save(model, tmp_path / "model.onnx"))
    assert made.returncode == 2 and "go in circles" in made.stderr


def test_a_pruned_file_with_other_outputs_is_not_equal(here: Command, tiny: Path, ratio_file: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    assert here(tiny, "-o", small, "--ratios", ratio_file, *PLAIN, "--quiet").returncode == 0
    model = onnx.load(small)
    del model.graph.output[1]
    small.write_bytes(model.SerializeToString())
    made = here("verify", tiny, small, "--quiet")
    assert made.returncode == 1 and "other outputs than the dense model" in made.stderr


def test_libraries_are_not_heard(toastc: Command, ratio_file: Path, tmp_path: Path) -> None:
    """A weight that is an input as well: onnx_ir has something to say about it, which is none of the user's business."""
    model = models.vit()
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc2.bias")
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    path = models.save(model, tmp_path / "model.onnx")
    made = toastc(path, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--for", "ort-cuda", "--quiet")
    assert (made.returncode, made.stderr) == (0, "")


def test_a_model_in_which_nothing_is_found_is_not_measured(here: Command, tmp_path: Path) -> None:
    path = models.save(models.convnet(), tmp_path / "model.onnx")
    np.save(tmp_path / "data.npy", np.zeros((4, 3, 16, 16), np.float32))
    made = here("calibrate", path, tmp_path / "data.npy", "-o", tmp_path / "m.safetensors", "--quiet")
    assert made.returncode == 1
    assert made.stderr.splitlines() == ["toastc: no attention and no FFN was found that could be measured"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npy", "model.onnx"]


def test_a_budget_of_nothing(here: Command, tmp_path: Path) -> None:
    """An input without sizes: no multiplication can be counted, so that a share of them means nothing."""
    model = models.vit()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = models.save(model, tmp_path / "model.onnx")
    made = here(path, "-o", tmp_path / "out.onnx", "--target", "macs=0.6", "--quiet")
    assert made.returncode == 1
    assert "no attention and no FFN was found" in made.stderr and len(made.stderr.splitlines()) == 1


def doubling(depth: int) -> onnx.ModelProto:
    """Functions that each call the one before twice: a file of a few kilobytes, and 2 ** depth nodes."""
    model = models.vit()
    opset = list(model.opset_import)
    for n in range(depth):
        kind, domain = ("Identity", "") if n == 0 else (f"F{n - 1}", "own")
        body = [helper.make_node(kind, [a], [b], domain=domain) for a, b in (("x", "y"), ("y", "z"))]
        own = [] if n == 0 else [helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", f"F{n}", ["x"], ["z"], body, [*opset, *own]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node(f"F{depth - 1}", ["logits"], ["more"], domain="own"))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    return model


def test_functions_that_unroll_for_ever_are_refused(here: Command, tmp_path: Path) -> None:
    assert here("inspect", models.save(doubling(5), tmp_path / "model.onnx")).returncode == 0
    made = here("inspect", models.save(doubling(60), tmp_path / "model.onnx"))
    assert made.returncode == 2
    assert "is of more than 1,000,000 nodes when written out; refused" in made.stderr


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("ConstantOfShape", [np.array([2**40])]),
        ("Expand", [np.array([1.0], np.float32), np.array([2**20, 2**20])]),
        ("Tile", [np.array([1.0], np.float32), np.array([2**40])]),
        ("Range", [np.array(0), np.array(2**40), np.array(1)]),
        ("Add", [np.zeros((4096, 1, 1), np.float32), np.zeros((4096, 1), np.float32), np.zeros(4096, np.float32)]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_small_files_that_ask_for_terabytes(toastc: Command, tmp_path: Path, kind: str, given: list[np.ndarray]) -> None:
    """Nothing reads what they make; so nothing need be made. With two gigabytes of memory: the machine may have more."""
    model = models.vit()
    names = [f"given{i}" for i in range(len(given))]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(given, names, strict=True))
    model.graph.node.extend(
        [helper.make_node("Sum" if kind == "Add" else kind, names, ["vast"]), helper.make_node("Shape", ["vast"], ["s"])]
    )
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.INT64, None))
    path = models.save(model, tmp_path / "model.onnx")
    import resource

    made = toastc("inspect", path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)))
    assert (made.returncode, made.stderr) == (0, "")


def test_an_array_that_becomes_shorter_while_it_is_read(tmp_path: Path) -> None:
    import toastc.system.errors
    from toastc.calibration import open_data

    np.save(tmp_path / "x.npy", np.zeros((64, 3, 16, 16), np.float32))
    batches = iter(open_data(tmp_path / "x.npy", {"image": (None, 3, 16, 16)}))
    next(batches)
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(toastc.system.errors.ToastcError, match="became shorter while it was read"):
        next(batches)


def test_activations_that_overflow_are_one_line(here: Command, tmp_path: Path) -> None:
    model = models.vit()
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e25), tensor.name))
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    made = here("calibrate", models.save(model, tmp_path / "m.onnx"), tmp_path / "data.npy", "-o", tmp_path / "m", "--quiet")
    assert made.returncode == 2
    assert len(made.stderr.splitlines()) == 1 and "takes NaN or infinite values on this data" in made.stderr, made.stderr


@pytest.mark.parametrize("heads", ["with heads", "without heads"])
def test_fused_nodes_that_are_incomplete(here: Command, tmp_path: Path, heads: str) -> None:
    """An attention of flat queries, a product that does not fit: opaque, or refused."""
    model = models.vit()
    more = {"num_heads": 2} if heads == "with heads" else {}
    for kind, given in (("MultiHeadAttention", ["norm.bias"] * 3), ("FusedMatMul", ["image", "norm.bias"])):
        model.graph.node.append(helper.make_node(kind, given, [kind], domain="com.microsoft", **more))
        model.graph.output.append(helper.make_tensor_value_info(kind, TensorProto.FLOAT, None))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made = here("inspect", models.save(model, tmp_path / "model.onnx"))
    assert made.returncode == 0, made.stderr
    del model.graph.node[-1].input[1:]
    made = here("inspect", models.save(model, tmp_path / "model.onnx"))
    assert made.returncode == 2 and "has too few inputs" in made.stderr


def test_inner_tensors_that_are_outputs_as_well(here: Command, ratio_file: Path, tmp_path: Path) -> None:
    """Every one of them in turn, queries and keys apart included: it keeps its name, and says what it said."""
    names = [node.output[0] for node in models.vit().graph.node if node.op_type in ("Split", "Squeeze", "Transpose", "Softmax")]
    for name in names:
        model = models.vit()
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        dense, out = models.save(model, tmp_path / "model.onnx"), tmp_path / "out.onnx"
        made = here(dense, "-o", out, "--ratios", ratio_file, *PLAIN, "--quiet")
        assert made.returncode == 0, made.stderr
        assert [o.name for o in onnx.load(out).graph.output] == ["logits", "sizes", name]
        assert models.run(out)[2].shape == models.run(dense)[2].shape


def test_rounding_to_more_than_there_is(here: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"ffn": 0.5, "round_to": 1' + "0" * 400 + "}")
    made = here(tiny, "-o", tmp_path / "out.onnx", "--ratios", tmp_path / "r.json", "--quiet")
    assert made.returncode == 1 and "remove nothing" in made.stderr


WORD, BROKEN = "QQQQ", b"QQ\xd4Q"
PLACES: dict[str, Callable[[onnx.ModelProto], object]] = {
    "domain": lambda m: setattr(m.graph.node[0], "domain", WORD),
    "free size": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", WORD),
    "meaning of a size": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "denotation", WORD),
    "node": lambda m: setattr(m.graph.node[0], "name", WORD),
    "operators": lambda m: m.opset_import.append(helper.make_opsetid(WORD, 1)),
}


def encoded_otherwise(model: onnx.ModelProto, path: Path) -> Path:
    data = model.SerializeToString()
    assert WORD.encode() in data
    path.write_bytes(data.replace(WORD.encode(), BROKEN))
    return path


@pytest.mark.parametrize("place", PLACES)
def test_names_that_are_no_text(here: Command, ratio_file: Path, tmp_path: Path, place: str) -> None:
    model = models.vit()
    PLACES[place](model)
    path = encoded_otherwise(model, tmp_path / "m.onnx")
    done = here(path, "-o", tmp_path / "o.onnx", "--ratios", ratio_file, *PLAIN, "--quiet")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "a damaged ONNX model (a name in it is not text: b'QQ\\xd4Q')" in done.stderr
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("runtime", ["portable", "ort-cuda"])
def test_comments_that_are_no_text_are_left_out(here: Command, ratio_file: Path, tmp_path: Path, runtime: str) -> None:
    """An exporter in C++ may write what it likes; runtimes take it."""
    model = models.vit()
    for commented in (model, model.graph, model.graph.node[0], model.graph.initializer[0]):
        commented.doc_string = WORD
        commented.metadata_props.add(key="x", value=WORD)
        commented.metadata_props.add(key=WORD, value="x")
    model.producer_name = model.producer_version = model.graph.name = WORD
    path = encoded_otherwise(model, tmp_path / "m.onnx")
    done = here(path, "-o", tmp_path / "o.onnx", "--ratios", ratio_file, *PLAIN, "--for", runtime, "--quiet")
    assert done.returncode == 0, done.stderr
    assert BROKEN not in (tmp_path / "o.onnx").read_bytes()


@pytest.mark.parametrize("shape", [(15,), (5, 16), (1, 4, 16)])
def test_biases_that_do_not_fit(here: Command, ratio_file: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    text, sizes = "h = Gemm(x, w1, c)  g = Relu(h)  y = MatMul(g, w2)", {"w1": (8, 16), "w2": (16, 8), "c": shape}
    path = saved(written(text, sizes, "float[4, 8] x", "float[4, 8] y"), tmp_path)
    done = here(path, "-o", tmp_path / "o.onnx", "--ratios", ratio_file, *PLAIN, "--quiet")
    assert done.returncode == 1 and "no FFN was found that can be shrunk" in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_norms_whose_bias_has_no_name(here: Command, tmp_path: Path) -> None:
    """As torch once exported them; ONNX Runtime ended the process when it joined one with the sum in front of it."""
    model = models.vit()
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.input[2] = ""
    path = models.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32))
    asked = ("--target", "macs=0.7", "--calibrate", tmp_path / "data.npy", "--quiet")
    done = here(path, "-o", tmp_path / "o.onnx", *asked)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_fails_on_a_file_that_is_no_model_is_its_fault(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stumbles over it first, and only then."""

    def stumble(*given: object) -> None:
        raise IndexError("unforeseen")

    model = onnx.load(tiny)
    node(model, "LayerNormalization").op_type = "NoSuchNode"
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setattr("toastc.report.reading.match", stumble)
    monkeypatch.setattr("toastc.api.match", stumble)
    for asked in (api.inspect, api.kernels):
        with pytest.raises(ToastcError, match=r"m\.onnx: ONNX Runtime can not load it \(.*NoSuchNode"):
            asked(tmp_path / "m.onnx")
        with pytest.raises(IndexError, match="unforeseen"):
            asked(tiny)
