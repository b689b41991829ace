"""Whatever is wrong with the input or the machine: one line, a documented exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from conftest import PLAIN, RATIOS, Command, unwatched
from onnx import TensorProto, helper, numpy_helper
from reliable import found_in
from reliable.limits import obedient
from safetensors.numpy import save_file

Refused = Callable[..., str]


@pytest.fixture
def refused(here: Command, tmp_path: Path, temp: Path) -> Refused:
    """`refused(*args)`: exits with `status`, says so in one line (which it returns), and changes nothing on disk."""

    def call(*args: object, status: int = 2) -> str:
        before = found_in(tmp_path)
        made = here(*args, "--quiet")
        check_failed(made, status)
        assert found_in(tmp_path) == before
        assert found_in(temp) == {}
        return str(made.stderr)

    return call


def check_failed(made: subprocess.CompletedProcess[str], status: int = 2) -> None:
    assert made.returncode == status, made.stderr
    assert made.stdout == ""
    assert made.stderr.startswith("toastc: ") and len(made.stderr.splitlines()) == 1, made.stderr


def prune(model: Path, ratios: Path) -> list[object]:
    return [model, "-o", model.parent / "out.onnx", "--ratios", ratios, *PLAIN]


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model in this test's own folder."""
    return Path(shutil.copy(tiny, tmp_path / "model.onnx"))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The tiny model with its weights in `in/model.onnx.data`."""
    (tmp_path / "in").mkdir()
    return models.save_external(models.vit(), tmp_path / "in" / "model.onnx")


# ---- the model file --------------------------------------------------------------------------------------

WRONG_FILES = {
    "empty": b"",
    "text": b"this is not a model\n" * 50,
    "json": b'{"ir_version": 8}',
    "zeros": bytes(4096),
    "random": random.Random(0).randbytes(10_000),
    "zip": b"PK\x03\x04" + random.Random(1).randbytes(1000),
    "only a version": b"\x08\x08",
}


@pytest.mark.parametrize("command", ["prune", "inspect", "verify", "bench"])
@pytest.mark.parametrize("kind", WRONG_FILES)
def test_files_that_are_no_models(refused: Refused, tmp_path: Path, ratio_file: Path, kind: str, command: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(WRONG_FILES[kind])
    args = {"prune": prune(path, ratio_file), "inspect": ["inspect", path]}
    said = refused(*args.get(command, [command, path, path]))
    assert "model.onnx" in said


def test_a_missing_file_and_a_folder(refused: Refused, tmp_path: Path, ratio_file: Path) -> None:
    assert "no such file" in refused(*prune(tmp_path / "no.onnx", ratio_file))
    (tmp_path / "folder.onnx").mkdir()
    assert "folder" in refused(*prune(tmp_path / "folder.onnx", ratio_file))
    (tmp_path / "loop").symlink_to("loop")
    refused(*prune(tmp_path / "loop", ratio_file))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999])
def test_truncated_files(refused: Refused, model: Path, ratio_file: Path, share: float) -> None:
    model.write_bytes(model.read_bytes()[: int(share * model.stat().st_size)])
    assert "model.onnx" in refused(*prune(model, ratio_file))


def structure(path: Path) -> bytes:
    """A model file that is nearly all structure: its weights are elsewhere."""
    return models.save_external(models.vit(), path, "weights.bin").read_bytes()


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes(here: Command, tmp_path: Path, temp: Path, ratio_file: Path, seed: int) -> None:
    """Damage may go unnoticed where it does no harm; else it is one line."""
    path, rng = tmp_path / "model.onnx", random.Random(seed)
    data = bytearray(structure(path))
    for _ in range(rng.choice((1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    before = found_in(tmp_path)
    made = here(*prune(path, ratio_file), "--quiet")
    if made.returncode:
        assert made.returncode in (1, 2)
        assert len(made.stderr.splitlines()) == 1, made.stderr
        assert found_in(tmp_path) == before
    else:
        models.run(tmp_path / "out.onnx")
    assert found_in(temp) == {}


def edited(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def weight(model: onnx.ModelProto, name: str = "blocks.0.attn.qkv.weight") -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def short_raw_data(model: onnx.ModelProto) -> None:
    weight(model).raw_data = weight(model).raw_data[:-4]


def negative_size(model: onnx.ModelProto) -> None:
    weight(model).dims[0] = -32


def huge_size(model: onnx.ModelProto) -> None:
    weight(model).dims[0] = 2**60


def unknown_type(model: onnx.ModelProto) -> None:
    weight(model).data_type = 99


def missing_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(weight(model))


def unknown_op(model: onnx.ModelProto) -> None:
    model.graph.node[-2].op_type = "Frobnicate"


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[10].output[0]


def bad_reshape(model: onnx.ModelProto) -> None:
    name = "blocks.0.attn.apart"
    weight(model, name).CopyFrom(numpy_helper.from_array(np.array([-1, 7, 3, 2, 16]), name))


def bad_perm(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Transpose" and len(n.attribute[0].ints) == 5)
    node.attribute[0].ints[0] = 9


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def two_of_a_name(model: onnx.ModelProto) -> None:
    model.graph.node[5].output[0] = model.graph.node[4].output[0]


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


BROKEN = (
    short_raw_data, negative_size, huge_size, unknown_type, missing_weight, unknown_op, cycle, bad_reshape, bad_perm, no_outputs,
    two_of_a_name, future_opset,
)  # fmt: skip


@pytest.mark.parametrize("change", BROKEN)
def test_models_that_contradict_themselves(
    here: Command, temp: Path, model: Path, ratio_file: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    """ONNX Runtime refuses each of them; so must we, and be it because nothing in them can be understood."""
    with pytest.raises(Exception, match=r"(?s).+"):
        models.run(edited(model, change))
    made = here(*prune(model, ratio_file), "--quiet")
    check_failed(made, made.returncode if made.returncode == 1 else 2)
    assert sorted(found_in(model.parent)) == ["model.onnx"]
    assert found_in(temp) == {}


@pytest.mark.parametrize(
    ("form", "word"), [("training", "training"), ("opset11", "opset 11 is old, and can not be made into 17")]
)
@pytest.mark.parametrize("command", ["prune", "inspect"])
def test_graphs_of_the_wrong_kind(refused: Refused, tmp_path: Path, ratio_file: Path, form: str, word: str, command: str) -> None:
    path = models.save(models.vit(form), tmp_path / "model.onnx")
    said = refused(*(prune(path, ratio_file) if command == "prune" else ["inspect", path]))
    assert word in said


def test_a_model_without_attention_is_a_one(refused: Refused, tmp_path: Path, ratio_file: Path) -> None:
    path = models.save(models.convnet(), tmp_path / "model.onnx")
    assert "no attention" in refused(*prune(path, ratio_file), status=1)


def test_names_with_line_breaks_stay_on_one_line(refused: Refused, tmp_path: Path, ratio_file: Path) -> None:
    refused(*prune(tmp_path / "no\nsuch\nfile.onnx", ratio_file))
    (tmp_path / "r.json").write_text(json.dumps({"a\nb\x1b[31m": 1}))
    path = models.save(models.convnet(), tmp_path / "model.onnx")
    assert "\x1b" not in refused(*prune(path, tmp_path / "r.json"))


# ---- external data ---------------------------------------------------------------------------------------


def test_external_data_is_missing(refused: Refused, external: Path, ratio_file: Path) -> None:
    (external.parent / "model.onnx.data").unlink()
    assert "model.onnx.data" in refused(*prune(external, ratio_file))


@pytest.mark.parametrize("length", [0, 100, -1])
def test_external_data_is_too_short(refused: Refused, external: Path, ratio_file: Path, length: int) -> None:
    data = external.parent / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:length])
    assert "short" in refused(*prune(external, ratio_file))


def test_external_data_is_a_folder(refused: Refused, external: Path, ratio_file: Path) -> None:
    (external.parent / "model.onnx.data").unlink()
    (external.parent / "model.onnx.data").mkdir()
    assert "model.onnx.data" in refused(*prune(external, ratio_file))


@pytest.mark.parametrize("where", ["absolute", "dots", "dots inside", "backslash", "link", "linked folder"])
@pytest.mark.parametrize("command", ["prune", "inspect", "verify"])
def test_external_data_outside_the_folder(
    refused: Refused, external: Path, tmp_path: Path, ratio_file: Path, where: str, command: str
) -> None:
    secret = tmp_path / "secret.bin"
    shutil.copy(external.parent / "model.onnx.data", secret)
    (external.parent / "sub").mkdir()
    (external.parent / "link.bin").symlink_to(secret)
    (external.parent / "up").symlink_to(tmp_path)
    places = {
        "absolute": str(secret),
        "dots": "../secret.bin",
        "dots inside": "sub/../../secret.bin",
        "backslash": "..\\secret.bin",
        "link": "link.bin",
        "linked folder": "up/secret.bin",
    }
    models.points_at(external, "blocks.0.attn.qkv.weight", location=places[where])
    args = {"prune": prune(external, ratio_file), "inspect": ["inspect", external], "verify": ["verify", external, external]}
    assert "outside" in refused(*args[command])


def test_external_data_of_a_constant_node_is_checked_too(
    refused: Refused, external: Path, tmp_path: Path, ratio_file: Path
) -> None:
    shutil.copy(external.parent / "model.onnx.data", tmp_path / "secret.bin")
    models.points_at(external, "blocks.0.attn.qkv.weight", location="../secret.bin")

    def lower(model: onnx.ModelProto) -> None:
        tensor = weight(model)
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        model.graph.initializer.remove(tensor)

    assert "outside" in refused(*prune(edited(external, lower), ratio_file))


@pytest.mark.parametrize("entries", [{"offset": "-64"}, {"offset": "x"}, {"length": "-1"}, {"length": "8"}, {"offset": "9" * 30}])
def test_external_data_with_senseless_places(refused: Refused, external: Path, ratio_file: Path, entries: dict[str, str]) -> None:
    models.points_at(external, "blocks.1.attn.qkv.weight", **entries)
    assert "model.onnx" in refused(*prune(external, ratio_file))


def test_the_file_that_is_checked_is_the_file_that_is_read(
    refused: Refused, external: Path, tmp_path: Path, ratio_file: Path
) -> None:
    """A model reached through a link: what stands beside the link is not what stands beside the file."""
    shutil.copy(external.parent / "model.onnx.data", tmp_path / "secret.bin")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "model.onnx"
    link.symlink_to(external)
    (tmp_path / "links" / "model.onnx.data").symlink_to(tmp_path / "secret.bin")
    refused(*prune(link, ratio_file))


def test_the_layout_of_the_hugging_face_cache(here: Command, external: Path, tmp_path: Path, ratio_file: Path) -> None:
    """snapshots/x/model.onnx -> blobs/a, snapshots/x/model.onnx.data -> blobs/b: ONNX Runtime takes it, and so do we."""
    (tmp_path / "blobs").mkdir()
    snapshots = tmp_path / "snapshots" / "x"
    snapshots.mkdir(parents=True)
    for blob, name in (("a", "model.onnx"), ("b", "model.onnx.data")):
        (external.parent / name).rename(tmp_path / "blobs" / blob)
        (snapshots / name).symlink_to(f"../../blobs/{blob}")
    models.run(snapshots / "model.onnx")
    made = here(snapshots / "model.onnx", "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--quiet")
    assert made.returncode == 0, made.stderr
    models.run(tmp_path / "out.onnx")


# ---- the output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["same", "dots", "relative", "link", "hard link", "linked folder"])
def test_the_input_is_never_overwritten(
    refused: Refused, model: Path, ratio_file: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model.parent
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    (folder / "link.onnx").symlink_to("model.onnx")
    (folder / "hard.onnx").hardlink_to(model)
    (folder / "again").symlink_to(folder)
    spellings = {
        "same": model,
        "dots": folder / "sub" / ".." / "model.onnx",
        "relative": "model.onnx",
        "link": folder / "link.onnx",
        "hard link": folder / "hard.onnx",
        "linked folder": folder / "again" / "model.onnx",
    }
    assert "overwrite" in refused(model, "-o", spellings[spelling], "--ratios", ratio_file, *PLAIN)


def test_the_input_behind_a_link_is_never_overwritten(refused: Refused, model: Path, ratio_file: Path) -> None:
    link = model.parent / "link.onnx"
    link.symlink_to(model)
    assert "overwrite" in refused(link, "-o", model, "--ratios", ratio_file, *PLAIN)


@pytest.mark.parametrize("target", ["model.onnx.data", "other.onnx"])
def test_external_data_is_never_overwritten(refused: Refused, external: Path, ratio_file: Path, target: str) -> None:
    if target == "other.onnx":  # whose own data file would be the input's
        data = external.parent / "model.onnx.data"
        data.rename(external.parent / "other.onnx.data")
        for name in [t.name for t in onnx.load(external, load_external_data=False).graph.initializer if t.external_data]:
            models.points_at(external, name, location="other.onnx.data")
    assert "overwrite" in refused(external, "-o", external.parent / target, "--ratios", ratio_file, *PLAIN)


@pytest.mark.parametrize("taken", ["model", "ratios"])
@pytest.mark.parametrize("flag", ["-o", "--plan-out", "--report"])
def test_no_flag_overwrites_an_input(refused: Refused, model: Path, ratio_file: Path, flag: str, taken: str) -> None:
    ratios = Path(shutil.copy(ratio_file, model.parent / "r.json"))
    outputs = {"-o": model.parent / "out.onnx"} | {flag: {"model": model, "ratios": ratios}[taken]}
    assert "overwrite" in refused(model, "--ratios", ratios, *[word for pair in outputs.items() for word in pair])


def test_a_plan_is_not_overwritten_by_what_it_makes(refused: Refused, here: Command, model: Path, ratio_file: Path) -> None:
    plan = model.parent / "p.safetensors"
    assert here(model, "--dry-run", "--ratios", ratio_file, *PLAIN, "--plan-out", plan, "--quiet").returncode == 0
    assert "overwrite" in refused(model, "-o", plan, "--plan", plan)


@pytest.mark.parametrize("flags", ["-o {x} --plan-out {x}", "-o {x} --report {x}", "-o {y} --plan-out {x} --report {x}"])
def test_two_outputs_of_one_name(refused: Refused, model: Path, ratio_file: Path, flags: str) -> None:
    words = flags.format(x=model.parent / "x", y=model.parent / "y").split()
    assert "x" in refused(model, "--ratios", ratio_file, *PLAIN, *words)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("no/such/folder/out.onnx", "its folder does not exist"),
        ("folder", "is a folder"),
        ("folder/", "is a folder"),
        ("model.onnx/out.onnx", "its folder does not exist"),
        (".", "is a folder"),
        ("a" * 300, "can not be written"),
    ],
)
def test_outputs_that_can_not_be_written(refused: Refused, model: Path, ratio_file: Path, where: str, why: str) -> None:
    (model.parent / "folder").mkdir()
    target = f"{model.parent}/{where}"
    assert why in refused(model, "-o", target, "--ratios", ratio_file, *PLAIN)


@pytest.mark.parametrize("flag", ["-o", "--plan-out", "--report"])
def test_a_folder_that_may_not_be_written_to(toastc: Command, model: Path, ratio_file: Path, tmp_path: Path, flag: str) -> None:
    """Said before the work begins, whichever output it is."""
    (tmp_path / "closed").mkdir(mode=0o500)
    targets = {"-o": tmp_path / "o.onnx"} | {flag: tmp_path / "closed" / "x"}
    words = [word for pair in targets.items() for word in pair]
    made = toastc(model, *words, "--ratios", ratio_file, *PLAIN, "--quiet", preexec_fn=obedient)
    check_failed(made)
    assert made.stderr == f"toastc: {tmp_path}/closed/x: can not be written (Permission denied)\n"
    assert not (tmp_path / "o.onnx").exists()


def test_a_device_or_pipe_is_not_replaced_by_a_file(refused: Refused, model: Path, ratio_file: Path) -> None:
    os.mkfifo(model.parent / "pipe")
    refused(model, "-o", model.parent / "pipe", "--ratios", ratio_file, *PLAIN)
    assert (model.parent / "pipe").is_fifo()


@pytest.mark.parametrize("flag", ["--plan-out", "--report"])
@pytest.mark.parametrize(("where", "why"), [("no/such/folder/x", "its folder does not exist"), ("folder", "is a folder")])
def test_by_products_that_can_not_be_written(
    refused: Refused, model: Path, ratio_file: Path, flag: str, where: str, why: str
) -> None:
    (model.parent / "folder").mkdir()
    assert why in refused(*prune(model, ratio_file), flag, model.parent / where)


@pytest.mark.parametrize("form", ["inline", "external"])
@pytest.mark.parametrize("limit", [0, 20_000, 65_000])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk(
    toastc: Command, tiny: Path, ratio_file: Path, tmp_path: Path, temp: Path, form: str, limit: int, old: bool
) -> None:
    """65 kB hold the pruned model, but not the one that proves it. What stood there before stays."""
    (tmp_path / "in").mkdir()
    dense = tmp_path / "in" / "model.onnx"
    if form == "inline":
        shutil.copy(tiny, dense)
    else:
        models.save_external(models.vit(), dense)
    out = tmp_path / "out.onnx"
    if old:
        out.write_bytes(b"what was there before")
    before = found_in(tmp_path)

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    check_failed(toastc(dense, "-o", out, "--ratios", ratio_file, *PLAIN, "--quiet", preexec_fn=small_disk, env=unwatched()))
    assert found_in(tmp_path) == before
    assert found_in(temp) == {}


# ---- ratios and plans ------------------------------------------------------------------------------------

WRONG_RATIOS = [
    "",
    "{",
    "nonsense",
    '{"ffn": 0.5,}',
    "null",
    "true",
    '"0.5"',
    "[0.5]",
    "1",
    "-0.1",
    "NaN",
    '{"fnn": 0.5}',
    '{"attention": {"qkv": 0.5}}',
    '{"ffn": {"qk": 0.5}}',
    '{"ffn": 1}',
    '{"ffn": 1.0}',
    '{"ffn": -0.0001}',
    '{"ffn": 2}',
    '{"ffn": NaN}',
    '{"ffn": Infinity}',
    '{"ffn": 1e999}',
    '{"ffn": ' + "9" * 5000 + "}",
    '{"ffn": true}',
    '{"ffn": "0.5"}',
    '{"ffn": null}',
    '{"ffn": []}',
    '{"ffn": [0.5]}',
    '{"ffn": [0.5, 0.5, 0.5]}',
    '{"ffn": [0.5, true]}',
    '{"ffn": [0.5, [0.5]]}',
    '{"attention": {"qk": [0.5, 0.5, 0.5]}}',
    '{"attention": {"heads": [0.5]}}',
    '{"attention": null}',
    '{"sites": []}',
    '{"sites": {"nothing.*": 0.5}}',
    '{"sites": {"blocks.0.mlp": {"qk": 0.5}}}',
    '{"sites": {"blocks.0.mlp": {"hidden": 1.5}}}',
    '{"sites": {"blocks.0.mlp": {"hidden": [0.5]}}}',
    '{"sites": {"blocks.0.mlp": true}}',
    '{"sites": {"blocks.*": {"hidden": 0.5}}}',
    '{"sites": {"": 0.5}}',
    '{"ffn": 0.5, "round_to": 0}',
    '{"ffn": 0.5, "round_to": -8}',
    '{"ffn": 0.5, "round_to": 2.5}',
    '{"ffn": 0.5, "round_to": true}',
    '{"ffn": 0.5, "round_to": "8"}',
    '{"ffn": 0.5, "round_to": null}',
    '{"tokens": {"keep": 0.5}}',
    '{"tokens": "h1"}',
    '{"tokens": [3]}',
    '{"tokens": [{}]}',
    '{"tokens": [{"before": "blocks.1", "merge": "both"}]}',
    '{"tokens": [{"before": "blocks.1", "merge": ["vertical"]}]}',
    '{"tokens": [{"before": "blocks.1", "merge": "vertical", "keep": 3}]}',
    "[" * 100_000,
    '{"ffn":' * 100_000,
    "[" * 100_000 + "]" * 100_000,
]


@pytest.mark.parametrize("text", WRONG_RATIOS, ids=lambda t: t[:40])
def test_wrong_ratio_files(refused: Refused, model: Path, text: str) -> None:
    path = model.parent / "r.json"
    path.write_text(text)
    said = refused(*prune(model, path))
    assert "ratios: " in said or "r.json" in said


def test_ratio_files_that_can_not_be_read(refused: Refused, model: Path) -> None:
    assert "no such" in refused(*prune(model, model.parent / "no.json"))
    refused(*prune(model, model.parent))
    (model.parent / "r.json").write_bytes(b"\xff\xfe{\x00}\x00")
    refused(*prune(model, model.parent / "r.json"))


def index(*shape: int, dtype: type = np.int32) -> np.ndarray:
    return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()


QK = "blocks.0.attn.qk/index"
WRONG_PLANS: dict[str, dict[str, np.ndarray]] = {
    "no name": {"index": index(2, 8)},
    "other site": {"blocks.9.attn.qk/index": index(2, 8)},
    "other coupling": {"blocks.0.mlp.qk/index": index(2, 8)},
    "no arrays": {"blocks.0.attn.qk/nothing": index(2, 8)},
    "half a basis": {"blocks.0.attn.qk/left": np.ones((2, 8, 16), np.float32)},
    "one group": {QK: index(1, 8)},
    "flat": {QK: index(8)},
    "deep": {QK: index(2, 8, 1)},
    "scalar": {QK: np.array(3, np.int32)},
    "too wide": {QK: index(2, 17)},
    "too high": {QK: index(2, 8) + 9},
    "negative": {QK: index(2, 8) - 1},
    "twice": {QK: np.zeros((2, 8), np.int32)},
    "none left": {QK: np.zeros((2, 0), np.int32)},
    "no head left": {"blocks.0.attn.heads/index": np.zeros((1, 0), np.int32)},
    "fractions": {QK: index(2, 8) + np.float32(0.5)},
    "fold": {QK: index(2, 8), "blocks.0.attn.qk/fold": np.ones((3, 3), np.float32)},
    "basis": {"blocks.0.attn.vo/left": np.ones((2, 8, 5), np.float32), "blocks.0.attn.vo/right": np.ones((2, 16, 8), np.float32)},
    "flat basis": {"blocks.0.attn.vo/left": np.ones(8, np.float32), "blocks.0.attn.vo/right": np.ones(8, np.float32)},
    "gated basis": {"blocks.0.mlp.hidden/left": np.ones((1, 8, 64), np.float32),
                    "blocks.0.mlp.hidden/right": np.ones((1, 64, 8), np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_PLANS)
def test_wrong_plans(refused: Refused, model: Path, kind: str) -> None:
    path = model.parent / "p.safetensors"
    save_file(WRONG_PLANS[kind], path)
    said = refused(model, "-o", model.parent / "out.onnx", "--plan", path)
    assert "plan" in said


def test_plan_files_that_are_none(refused: Refused, model: Path) -> None:
    path, out = model.parent / "p.safetensors", model.parent / "out.onnx"
    assert "no such" in refused(model, "-o", out, "--plan", path)
    for data in (b"", b"text", b"\xff" * 8 + b"{}", random.Random(0).randbytes(999)):
        path.write_bytes(data)
        assert "plan" in refused(model, "-o", out, "--plan", path)
    refused(model, "-o", out, "--plan", model.parent)


# ---- being stopped ---------------------------------------------------------------------------------------

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
STAGES = ["read", "match-sites", "score-weights", "shrink", "write", "verify"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Arguments of a compile whose every stage takes a moment: the tiny ViT with very wide weights outside."""
    folder = tmp_path_factory.mktemp("slow")
    model = models.vit()
    bulk = np.random.default_rng(0).standard_normal((models.CLASSES, 100_000)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(bulk, "bulk"))
    model.graph.node.append(helper.make_node("MatMul", ["logits", "bulk"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 100_000]))
    (folder / "r.json").write_text(json.dumps(RATIOS))
    return [models.save(model, folder / "model.onnx"), "--ratios", folder / "r.json", *PLAIN]


def start(slow: list[object], out: Path, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "toastc", *map(str, slow), "-o", str(out), *map(str, more)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whatever started the tests may have silenced it
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


def check_stopped(process: subprocess.Popen[str], number: int, out: Path, temp: Path) -> str:
    """Absent or whole; and nothing else where the process could still say so."""
    said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said and "Exception ignored" not in said, said
    if out.exists():
        assert models.run(out)[0].shape == (3, models.CLASSES)
    else:
        assert process.returncode != 0
    if number != signal.SIGKILL:
        assert set(found_in(out.parent)) <= {out.name}
        assert found_in(temp) == {}
        assert "nothing was written" not in said or not out.exists()
    return said


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_stopped_as_a_stage_begins(slow: list[object], tmp_path: Path, temp: Path, number: int, stage: str) -> None:
    process = start(slow, tmp_path / "out.onnx")
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[-1] == stage:
            process.send_signal(number)
            break
    else:
        pytest.fail(f"{stage} never began")
    check_stopped(process, number, tmp_path / "out.onnx", temp)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_stopped_at_some_moment(slow: list[object], tmp_path: Path, temp: Path, number: int, share: float, whole: float) -> None:
    process = start(slow, tmp_path / "out.onnx", "--report", tmp_path / "out.onnx.html")
    time.sleep(share * whole)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert "Exception ignored" not in said, said
    left = found_in(tmp_path)
    if "out.onnx" in left:
        assert models.run(tmp_path / "out.onnx")[0].shape == (3, models.CLASSES)
    if number != signal.SIGKILL:
        assert set(left) <= {"out.onnx", "out.onnx.html"}
        assert found_in(temp) == {}


@pytest.fixture(scope="module")
def whole(slow: list[object], tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds of a compile that nobody stops."""
    begin = time.perf_counter()
    process = start(slow, tmp_path_factory.mktemp("whole") / "out.onnx")
    assert process.communicate(timeout=60) and process.returncode == 0
    return time.perf_counter() - begin


@pytest.mark.parametrize("stage", ["write", "verify"])
def test_an_impatient_second_signal_leaves_nothing_either(slow: list[object], tmp_path: Path, temp: Path, stage: str) -> None:
    process = start(slow, tmp_path / "out.onnx")
    assert process.stderr is not None
    next(line for line in process.stderr if line.split()[-1] == stage)
    for _ in range(20):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    check_stopped(process, signal.SIGTERM, tmp_path / "out.onnx", temp)


def test_stopped_after_the_output_was_written(slow: list[object], tmp_path: Path, temp: Path) -> None:
    """Then it must not say that nothing was written."""
    process, out = start(slow, tmp_path / "out.onnx", "--plan-out", tmp_path / "out.onnx.plan"), tmp_path / "out.onnx"
    while process.poll() is None and not out.exists():
        time.sleep(0.0005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert out.exists()
    assert "nothing was written" not in said
    assert set(found_in(tmp_path)) <= {"out.onnx", "out.onnx.plan"}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_an_older_output_survives_a_stop(slow: list[object], tmp_path: Path, temp: Path, number: int) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"what was there before")
    process = start(slow, out)
    assert process.stderr is not None
    next(line for line in process.stderr if line.split()[-1] == "verify")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert out.read_bytes() == b"what was there before"
