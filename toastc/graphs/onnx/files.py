"""Reading and writing ONNX files: suspicious on the way in, all or nothing on the way out."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from ...system.errors import ToastcError
from ...system.files import alone, check_targets, hidden, removed
from .checks import check_functions, check_nodes, check_tensor, check_text, check_wires, put_in_order
from .inference import fewest
from .names import UNDERSTOOD, named
from .older import made_newer
from .operators import OPERATORS
from .recovered import take_back
from .unpack import unpack_attention
from .weights import by_itself, replace_tensors, tensors_of

SINGLE_FILE_LIMIT = 1_500_000_000  # bytes; protobuf ends at 2 GiB
IN_FLIGHT = 256 * 2**20  # bytes of weights computed and not yet written
TRAINING_OPS = {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", "Gradient", "Adam", "Momentum", "Adagrad"}


def load_model(path: Path) -> ir.Model:
    """The model of a file, to be compiled."""
    return prepare(read_model(path), str(path))


def read_model(path: Path) -> ir.Model:
    """The model of a file, as it is, weights untouched on disk; every way in which it is no model is one clear error."""
    path = Path(path)
    if not path.exists():
        raise ToastcError(f"{path}: no such file")
    if path.is_dir():
        raise ToastcError(f"{path}: is a folder; give the .onnx file in it")
    try:
        if path.stat().st_size == 0:
            raise ToastcError(f"{path}: the file is empty")
        with unheard():
            proto = onnx.load(path, load_external_data=False)
            check_text(proto, path)
            model = ir.serde.deserialize_model(proto)
            ir.external_data.set_base_dir(model.graph, path.parent)
    except (DecodeError, ir.serde.SerdeError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ToastcError(f"{path}: not an ONNX model, or a damaged one ({one_line(error)})") from None
    except OSError as error:
        raise ToastcError(f"{path}: can not be read ({error.strerror or one_line(error)})") from None
    if not model.graph.outputs or not len(model.graph):
        raise ToastcError(f"{path}: not an ONNX model, or an empty one (no nodes or no outputs)")
    check_wires(model, path)
    put_in_order(model, path)
    for tensor in tensors_of(model):
        check_tensor(tensor, path)
    replace_tensors(model, by_itself)
    return model


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """What libraries warn of, odd keys of external data or names that nothing makes, is checked here, or does no harm."""
    logs = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def prepare(model: ir.Model, what: str) -> ir.Model:
    """Refuse what can not be compiled; inline functions; constants become initializers."""
    if model.functions:
        check_functions(model, what)
        try:
            InlinePass(is_written_out)(model)
        except ValueError as error:
            raise ToastcError(f"{what}: its functions can not be written out ({one_line(error)})") from None
    for node in model.graph:
        training = node.attributes.get("training_mode")
        if node.op_type in TRAINING_OPS or "training" in node.domain or (training is not None and training.as_int()):
            raise ToastcError(f"{what}: is a training graph ({node.op_type}); export the model in eval mode")
    if "ai.onnx" in model.graph.opset_imports:  # the longer name of the same
        model.graph.opset_imports.setdefault("", model.graph.opset_imports.pop("ai.onnx"))
    model = made_newer(model, what)
    try:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    except (ValueError, TypeError) as error:
        raise ToastcError(f"{what}: a damaged ONNX model ({one_line(error)})") from None
    take_back(model.graph, what)
    check_nodes(model, what)
    for node in model.graph.all_nodes():  # an input without a name at the end is none, and ONNX Runtime may end over it
        least = fewest(node, model.graph.opset_imports)
        while len(node.inputs) > least and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
    for node in model.graph:
        if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
            flag = node.inputs[2].const_value
            if flag is None or flag.numpy().any():
                raise ToastcError(f"{what}: is a training graph (Dropout); export the model in eval mode")
    unpack_attention(model)
    return model


def is_written_out(function: ir.Function) -> bool:
    """A model's own function becomes its nodes, unless the table of operators has a row for it as it is."""
    return function.domain in UNDERSTOOD or named(function.name, function.domain) not in OPERATORS


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def is_external(model: ir.Model) -> bool:
    return any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())


def weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path to write the model to, in a hidden folder beside the target; moved over the target at the end.

    The output is absent or whole at any moment: weights that live in a file of their own move first, and a model
    that was there before goes before they do.
    """
    target = Path(target)
    check_targets([target])
    folder = hidden(target)
    try:
        with removed(folder):
            folder.mkdir(mode=0o700)
            yield folder / target.name
            data = folder / f"{target.name}.data"
            for file in folder.iterdir():
                sync(file)
            with alone(folder.parent):
                if data.exists():
                    target.unlink(missing_ok=True)
                    os.replace(data, target.parent / data.name)
                os.replace(folder / target.name, target)
    except OSError as error:
        raise ToastcError(f"{target}: can not be written ({error.strerror or error})") from None


def write_model(model: ir.Model, path: Path, external: bool | None = None) -> None:
    """Large models put their weights into `<name>.data` beside the file."""
    if external is None:
        external = is_external(model) or weight_bytes(model) > SINGLE_FILE_LIMIT
    wrong: BaseException | None = None
    try:
        ir.save(
            model, path, external_data=f"{path.name}.data" if external else None, size_threshold_bytes=1024,
            max_workers=min(4, os.cpu_count() or 1), max_in_flight_bytes=IN_FLIGHT,
        )  # fmt: skip
    except ir.serde.SerdeError as error:  # weights are computed as they are written: what is wrong with one is wrapped up in it
        wrong = error
        while wrong.__cause__ is not None:
            wrong = wrong.__cause__
    if wrong is not None:
        raise wrong


def sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def file_bytes(model: ir.Model, path: Path) -> int:
    """Of the file and of those its weights are in."""
    return sum(part.stat().st_size for part in (path, *external_files(model)))


def external_files(model: ir.Model) -> list[Path]:
    return sorted({Path(t.path) for t in tensors_of(model) if isinstance(t, ir.ExternalTensor)})


def read_tensor(tensor: ir.TensorProtocol) -> np.ndarray:
    """The numbers of a weight. External ones are read, not mapped: a mapped file stays in memory to the end."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    if tensor.dtype.bitwidth < 8:
        return tensor.numpy().copy()
    shape = tuple(tensor.shape.numpy())
    count = math.prod(shape)
    array = np.fromfile(tensor.path, tensor.dtype.numpy().newbyteorder("<"), count, offset=tensor.offset or 0)
    if len(array) != count:
        raise ToastcError(f"{tensor.path}: too short for weight {tensor.name}")
    return array.reshape(shape)
