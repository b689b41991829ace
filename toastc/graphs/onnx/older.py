"""Files of opsets before 13, which say some things in another way: onnx's own converter makes newer ones of them."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnxscript.version_converter import ConvertVersionPass

from ...system.errors import ToastcError

OLDEST, WRITTEN = 13, 17  # the oldest that is taken as it is, and what older ones become


def last_words(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].rpartition("failed: ")[2]


class Heard(logging.Handler):
    """What the converter gives as its reason, which it only logs."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.said = last_words(record.exc_info[1])


def opset_of(model: ir.Model) -> int:
    found = model.graph.opset_imports
    return found.get("", found.get("ai.onnx", OLDEST))


def is_old(opset: int) -> bool:
    return opset < OLDEST


def made_newer(model: ir.Model, what: str) -> ir.Model:
    """The model, in an opset that the compiler reads."""
    opset = opset_of(model)
    if not is_old(opset):
        return model
    heard, log = Heard(), logging.getLogger("onnxscript.version_converter")
    before, told = log.level, log.propagate
    log.addHandler(heard)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        made: ir.Model = ConvertVersionPass(WRITTEN, fallback=True)(model).model
    except Exception as error:  # noqa: BLE001  converters raise anything
        heard.said = last_words(error)
        made = model
    finally:
        log.removeHandler(heard)
        log.setLevel(before)
        log.propagate = told
    if opset_of(made) != WRITTEN:
        raise ToastcError(
            f"{what}: opset {opset} is old, and can not be made into {WRITTEN} ({heard.said}); "
            f"export it with opset {OLDEST} or newer"
        )
    return made
