"""The command, as a user or a script sees it: exit codes, streams, files, JSON."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from conftest import PLAIN, Command
from onnx import numpy_helper

from toastc.cli import COMMANDS
from toastc.cli.exits import exit_status

STAGES = ["read", "match-sites", "score-weights", "plan-ratios", "shrink", "write", "verify"]
SITE_KEYS = {"name", "kind", "heads", "head_dim", "v_head_dim", "hidden", "macs", "params", "couplings"}


def strict(text: str) -> Any:
    """JSON as other languages read it: no NaN, no Infinity, nothing around it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def interface(path: Path) -> list[bytes]:
    """Inputs and outputs: names, types, symbolic sizes, doc strings, metadata."""
    graph = onnx.load(path, load_external_data=False).graph
    return [value.SerializeToString(deterministic=True) for value in (*graph.input, *graph.output)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def done(
    toastc: Command, tiny: Path, ratio_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One compile with every kind of by-product, and the folder it wrote to."""
    folder = tmp_path_factory.mktemp("done")
    extra = ["--plan-out", folder / "plan.safetensors", "--report", folder / "report.html", "--json"]
    return toastc(tiny, "-o", folder / "out.onnx", "--ratios", ratio_file, *PLAIN, *extra), folder


@pytest.fixture
def pair(done: tuple[Any, Path], tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the dense and the pruned file."""
    return shutil.copy(tiny, tmp_path / "dense.onnx"), shutil.copy(done[1] / "out.onnx", tmp_path / "pruned.onnx")


# ---- prune -----------------------------------------------------------------------------------------------


def test_the_result_is_smaller_and_keeps_its_face(done: tuple[Any, Path], tiny: Path) -> None:
    assert done[0].returncode == 0, done[0].stderr
    out = done[1] / "out.onnx"
    assert out.stat().st_size < 0.8 * tiny.stat().st_size
    onnx.checker.check_model(str(out), full_check=True)
    assert interface(out) == interface(tiny)
    before, after = onnx.load(tiny), onnx.load(out)
    assert (after.producer_name, after.doc_string, after.opset_import) == ("tests", "a tiny ViT", before.opset_import)
    assert {p.key: p.value for p in after.metadata_props}["author"] == "the tests"
    for batch in (1, 5):
        assert [o.shape for o in models.run(out, batch)] == [(batch, models.CLASSES), (4,)]


def test_the_pruned_model_is_the_dense_one_with_zeros(done: tuple[Any, Path]) -> None:
    plan = json.loads(models.plan_of(done[1] / "out.onnx"))
    assert {k: (v["groups"], v["width"]) for k, v in plan["choices"].items()} == {
        f"blocks.{i}.{name}": size
        for i in range(2)
        for name, size in {"attn.qk": (2, 8), "attn.vo": (2, 12), "mlp.hidden": (1, 32)}.items()
    }
    expected = models.run(models.vit(dense=models.masked(models.weights(), plan)))[0]
    assert np.allclose(models.run(done[1] / "out.onnx")[0], expected, atol=1e-5)
    assert not np.allclose(models.run(models.vit())[0], expected, atol=1e-2), "the comparison sees nothing"


@pytest.mark.parametrize("form", models.GOOD)
def test_every_form_of_the_model(here: Command, ratio_file: Path, tmp_path: Path, form: str) -> None:
    dense = models.save(models.vit(form), tmp_path / "dense.onnx")
    made = here(dense, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--json", "--quiet")
    assert made.returncode == 0, made.stderr
    assert strict(made.stdout)["verified"]["ok"]
    assert interface(tmp_path / "out.onnx") == interface(dense)
    plan = json.loads(models.plan_of(tmp_path / "out.onnx"))
    wanted = {"qk", "vo"} if form == "tied" else {"qk", "vo", "hidden"}  # made by one weight, taken by two
    assert {name.rpartition(".")[2] for name in plan["choices"]} == wanted
    expected = models.run(models.vit(form, models.masked(models.weights(), plan)))[0]
    assert np.allclose(models.run(tmp_path / "out.onnx")[0], expected, atol=2e-2 if form == "float16" else 1e-5)


@pytest.mark.parametrize("threshold", [1024, 0])
@pytest.mark.parametrize("location", ["dense.onnx.data", "weights.bin", "parts/weights.bin"])
def test_external_data_stays_external(
    here: Command, tiny: Path, ratio_file: Path, tmp_path: Path, location: str, threshold: int
) -> None:
    (tmp_path / "in" / "parts").mkdir(parents=True)
    dense = models.save_external(models.vit(), tmp_path / "in" / "dense.onnx", location, threshold)
    before, size = content(dense.parent), sum(map(len, content(dense.parent).values()))
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    made = here(dense, "-o", out, "--ratios", ratio_file, *PLAIN, "--json", "--quiet")
    assert made.returncode == 0, made.stderr
    assert sorted(content(out.parent)) == ["small.onnx", "small.onnx.data"]
    assert content(dense.parent) == before
    assert here(tiny, "-o", tmp_path / "inline.onnx", "--ratios", ratio_file, *PLAIN, "--quiet").returncode == 0
    assert np.array_equal(models.run(out)[0], models.run(tmp_path / "inline.onnx")[0])
    report = strict(made.stdout)
    assert report["before"]["bytes"] == size
    assert report["after"]["bytes"] == sum(map(len, content(out.parent).values()))


def test_the_same_bytes_twice(toastc: Command, tmp_path: Path, ratio_file: Path) -> None:
    dense = models.save_external(models.vit(), tmp_path / "dense.onnx")
    for folder, seed in (("a", "1"), ("b", "2")):
        (tmp_path / folder).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed}
        made = toastc(
            dense,
            "-o",
            tmp_path / folder / "out.onnx",
            "--ratios",
            ratio_file,
            "--recipe",
            "magnitude",
            "--quiet",
            env=environment,
        )
        assert made.returncode == 0, made.stderr
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 2


def test_a_plan_replays_to_the_same_bytes(done: tuple[Any, Path], here: Command, tiny: Path, tmp_path: Path) -> None:
    made = here(tiny, "-o", tmp_path / "again.onnx", "--plan", done[1] / "plan.safetensors", "--quiet")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "again.onnx").read_bytes() == (done[1] / "out.onnx").read_bytes()


def test_json_is_the_whole_stdout_and_says_everything(done: tuple[Any, Path], tiny: Path) -> None:
    report = strict(done[0].stdout)
    for side in ("before", "after"):
        assert set(report[side]) == {"macs", "params", "bytes"}
    assert all(0 < report["after"][k] < report["before"][k] for k in ("macs", "params", "bytes"))
    assert report["before"]["params"] == sum(w.size for w in models.weights().values())
    assert report["before"]["bytes"] == tiny.stat().st_size
    assert report["after"]["bytes"] == (done[1] / "out.onnx").stat().st_size
    assert report["verified"]["ok"] is True
    assert 0 <= report["verified"]["error"] <= report["verified"]["tolerance"] <= 1e-4
    assert set(report["seconds"]) == set(STAGES)
    assert all(s >= 0 for s in report["seconds"].values())


def test_macs_are_counted_by_the_book(done: tuple[Any, Path]) -> None:
    def macs(qk: int, vo: int, hidden: int) -> int:
        n, d, h = models.TOKENS, models.DIM, models.HEADS
        block = n * d * h * (2 * qk + 2 * vo) + n * n * h * (qk + vo) + 2 * n * d * hidden
        return n * d * 3 * models.PATCH**2 + models.BLOCKS * block + d * models.CLASSES

    report = strict(done[0].stdout)
    assert report["before"]["macs"] == macs(16, 16, 64)
    assert report["after"]["macs"] == macs(8, 12, 32)


def test_progress_goes_to_stderr_a_line_a_stage(done: tuple[Any, Path]) -> None:
    lines = done[0].stderr.splitlines()
    assert [re.fullmatch(r"\[ *\d+\.\d s\] (\S+)", line)[1] for line in lines] == STAGES  # type: ignore[index]


def test_quiet_is_silent(here: Command, tiny: Path, ratio_file: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for args in (
        [tiny, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN],
        ["inspect", tiny],
        ["verify", *pair],
        ["bench", *pair, "--batch", "1", "--seconds", "0.01"],
    ):
        made = here(*args, "--quiet")
        assert (made.returncode, made.stdout, made.stderr) == (0, "", ""), args


def test_a_dry_run_writes_nothing(here: Command, done: tuple[Any, Path], tiny: Path, ratio_file: Path, tmp_path: Path) -> None:
    made = here(tiny, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--dry-run", "--json", "--quiet")
    assert made.returncode == 0, made.stderr
    assert content(tmp_path) == {}
    dry, real = strict(made.stdout), strict(done[0].stdout)
    assert (dry["before"], dry["couplings"]) == (real["before"], real["couplings"])
    assert dry["after"]["macs"] == real["after"]["macs"]
    for what in ("params", "bytes"):  # what it does not know it must not call nought
        assert dry["after"][what] in (None, real["after"][what])


@pytest.mark.parametrize("said", ["0.5", '{"attention": 0.5, "ffn": 0.5}'])
def test_ratios_are_a_file_or_what_it_would_say(here: Command, tiny: Path, tmp_path: Path, said: str) -> None:
    (tmp_path / "r.json").write_text(said)
    found = []
    for ratios in (said, tmp_path / "r.json"):
        made = here(tiny, "--dry-run", "--ratios", ratios, *PLAIN, "--json", "--quiet")
        assert made.returncode == 0, made.stderr
        found.append(strict(made.stdout)["couplings"])
    assert found[0] == found[1] and found[0]


def test_the_report_is_one_page_that_needs_no_other(done: tuple[Any, Path]) -> None:
    page = (done[1] / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "blocks.1.mlp" in page and "verified" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//)|@import|url\(", page)


def test_by_products_leave_no_rubbish(done: tuple[Any, Path]) -> None:
    assert sorted(content(done[1])) == ["out.onnx", "plan.safetensors", "report.html"]


def test_the_umask_is_respected(toastc: Command, tiny: Path, ratio_file: Path, tmp_path: Path) -> None:
    """By every file, whichever library writes it."""
    targets = {"-o": "out.onnx", "--plan-out": "p", "--report": "r.html"}
    words = [word for flag, name in targets.items() for word in (flag, tmp_path / name)]
    made = toastc(tiny, *words, "--ratios", ratio_file, *PLAIN, "--quiet", preexec_fn=lambda: os.umask(0o027))
    assert made.returncode == 0, made.stderr
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize(
    "ratios", [{}, {"attention": 0, "ffn": 0}, {"ffn": 0.5, "sites": {"*": 0}}, {"ffn": 0.1, "round_to": 64}], ids=json.dumps
)
def test_ratios_that_remove_nothing(here: Command, tiny: Path, tmp_path: Path, ratios: Any) -> None:
    (tmp_path / "r.json").write_text(json.dumps(ratios))
    made = here(tiny, "-o", tmp_path / "out.onnx", "--ratios", tmp_path / "r.json", "--quiet")
    assert made.returncode == 1
    assert made.stdout == "" and len(made.stderr.splitlines()) == 1
    assert sorted(content(tmp_path)) == ["r.json"]


def test_heads_go_whole(here: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"attention": {"heads": 0.5}}')
    made = here(tiny, "-o", tmp_path / "out.onnx", "--ratios", tmp_path / "r.json", *PLAIN, "--quiet")
    assert made.returncode == 0, made.stderr
    plan = json.loads(models.plan_of(tmp_path / "out.onnx"))
    expected = models.run(models.vit(dense=models.masked(models.weights(), plan)))[0]
    assert np.allclose(models.run(tmp_path / "out.onnx")[0], expected, atol=1e-5)


def test_an_older_output_is_replaced(here: Command, done: tuple[Any, Path], tiny: Path, ratio_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("old")
    assert here(tiny, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, *PLAIN, "--quiet").returncode == 0
    assert content(tmp_path) == {"out.onnx": (done[1] / "out.onnx").read_bytes()}


# ---- inspect ---------------------------------------------------------------------------------------------


def test_inspect_json_has_exactly_these_keys(here: Command, tiny: Path, done: tuple[Any, Path]) -> None:
    made = here("inspect", tiny, "--json")
    assert made.returncode == 0, made.stderr
    data = strict(made.stdout)
    assert set(data) == {"model", "sites", "rejects", "whole", "macs", "params", "share"}
    assert [(s["name"], s["kind"]) for s in data["sites"]] == [
        (f"blocks.{i}.{part}", kind) for i in range(2) for part, kind in (("attn", "attention"), ("mlp", "ffn"))
    ]
    before = strict(done[0].stdout)["before"]
    assert (data["macs"], data["params"], data["rejects"]) == (before["macs"], before["params"], [])
    for site in data["sites"]:
        for coupling in site["couplings"]:
            assert set(coupling) == {"name", "groups", "width", "prunable", "reason"}
            assert coupling["prunable"] and coupling["reason"] is None
    attention, ffn = data["sites"][:2]
    assert [(c["name"], c["groups"], c["width"]) for c in attention["couplings"]] == [("qk", 2, 16), ("vo", 2, 16)]
    assert (attention["heads"], attention["head_dim"], attention["v_head_dim"]) == (2, 16, 16)
    assert ffn["hidden"] == 64 and [(c["name"], c["width"]) for c in ffn["couplings"]] == [("hidden", 64)]
    for site in data["sites"]:
        assert set(site) == SITE_KEYS


def test_inspect_says_why_not(here: Command, tmp_path: Path) -> None:
    data = strict(here("inspect", models.save(models.vit("tied"), tmp_path / "tied.onnx"), "--json").stdout)
    (refused,) = data["rejects"]
    assert "used twice" in refused["reason"], "made by one weight, taken by two"
    table = here("inspect", tmp_path / "tied.onnx").stdout
    assert "blocks.0.attn" in table and "used twice" in table and "of them in what can be cut" in table


# ---- verify ----------------------------------------------------------------------------------------------


def test_verify_accepts_a_good_pair(here: Command, pair: tuple[Path, Path]) -> None:
    made = here("verify", *pair, "--json", "--quiet")
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    data = strict(made.stdout)
    assert data["ok"] is True and 0 <= data["error"] <= data["tolerance"]


def tamper(path: Path, weight: str) -> None:
    """Double the largest number of one weight."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= 2
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(model, path)


@pytest.mark.parametrize("weight", ["head.weight", "norm.bias", "pos_embed", "blocks.0.attn.proj.bias", "blocks.1.mlp.fc2.bias"])
def test_verify_sees_a_changed_weight_outside_the_couplings(here: Command, pair: tuple[Path, Path], weight: str) -> None:
    tamper(pair[1], weight)
    made = here("verify", *pair, "--quiet")
    assert (made.returncode, made.stdout) == (1, "")
    assert len(made.stderr.splitlines()) == 1
    assert "NOT EQUAL" in here("verify", *pair).stdout


@pytest.mark.parametrize("linear", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_verify_sees_a_changed_weight_inside_the_couplings(here: Command, pair: tuple[Path, Path], linear: str) -> None:
    tamper(pair[1], f"blocks.0.{linear}.weight")
    assert here("verify", *pair, "--quiet").returncode == 1


def test_verify_sees_a_plan_that_is_not_the_file_s(here: Command, pair: tuple[Path, Path]) -> None:
    set_plan(pair[1], models.plan_of(pair[1]).replace("blocks.0.mlp", "blocks.7.mlp"))
    made = here("verify", *pair, "--json", "--quiet")
    assert made.returncode == 1
    assert strict(made.stdout)["ok"] is False
    assert len(made.stderr.splitlines()) == 1


def set_plan(path: Path, text: str) -> None:
    model = onnx.load(path)
    for prop in model.metadata_props:
        if prop.key == "toastc.plan":
            prop.value = text
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r".*", "{"),
        (r".*", "[" * 100_000),
        (r".*", "[]"),
        (r".*", '{"format": 1, "choices": []}'),
        (r'"keep"', '"magic"'),
        (r'"index": \[\[\d+', '"index": [[99'),
        (r'"index": \[\[\d+', '"index": [[-99'),
        (r'"index": \[\[\d+', '"index": [["x"'),
        (r'"index": \[\[\d+, ', '"index": [['),
        (r'"index": \[\[', '"index": [[[0], '),
    ],
    ids=["cut", "deep", "list", "choices", "kind", "high", "low", "text", "ragged", "nested"],
)
def test_verify_survives_a_broken_plan(here: Command, pair: tuple[Path, Path], old: str, new: str) -> None:
    text = re.sub(old, new, models.plan_of(pair[1]), count=1)
    assert text != models.plan_of(pair[1])
    set_plan(pair[1], text)
    made = here("verify", *pair, "--quiet")
    assert made.returncode in (1, 2)
    assert len(made.stderr.splitlines()) == 1, made.stderr


def test_verify_of_things_that_are_no_pair(here: Command, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = models.save(models.convnet(), tmp_path / "conv.onnx")
    for args, status in (((pair[0], pair[0]), 2), (pair[::-1], 2), ((other, pair[1]), 1), ((pair[0], tmp_path / "no.onnx"), 2)):
        made = here("verify", *args, "--quiet")
        assert made.returncode == status, (args, made.stderr)
        assert len(made.stderr.splitlines()) == 1, made.stderr


# ---- bench -----------------------------------------------------------------------------------------------


def test_bench_json(here: Command, pair: tuple[Path, Path], done: tuple[Any, Path]) -> None:
    made = here("bench", *pair, "--batch", "1,4", "--threads", "1", "--seconds", "0.05", "--json", "--quiet")
    assert made.returncode == 0, made.stderr
    data = strict(made.stdout)
    assert [row["batch"] for row in data["rows"]] == [1, 4]
    for row in data["rows"]:
        assert row["dense"]["runs"] == row["pruned"]["runs"] >= 5
        low, high = row["speedup_iqr"]
        assert 0 < low <= row["speedup"] <= high
        assert row["pruned"]["per_second"] == pytest.approx(1e3 * row["batch"] / row["pruned"]["median_ms"])
        assert 0 < row["pruned"]["peak_mb"] < 500
    report = strict(done[0].stdout)
    assert data["ideal"] == pytest.approx(report["before"]["macs"] / report["after"]["macs"])


def test_bench_of_things_that_are_no_pair(here: Command, tiny: Path, tmp_path: Path) -> None:
    half = models.save(models.vit("float16"), tmp_path / "half.onnx")
    made = here("bench", tiny, half, "--batch", "1", "--seconds", "0.01", "--quiet")
    assert made.returncode == 2
    assert len(made.stderr.splitlines()) == 1, made.stderr


# ---- usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        "",
        "{m}",
        "{m} -o {o}",
        "{m} --ratios {r}",
        "{m} -o {o} --ratios {r} --target macs=0.5",
        "{m} -o {o} --ratios {r} --no-such-flag",
        "{m} -o {o} --ratios {r} --recipe nonsense",
        "{m} -o {o} --ratios {r} --seed x",
        "{m} -o {o} --ratios {r} --seed -1",
        "{m} -o {o} --target macs=nan",
        "{m} -o {o} --target macs=-1",
        "{m} -o {o} --target macs",
        "{m} -o {o} --target 0.5=macs",
        "{m} -o {o} --target params=0.05",
        "inspect",
        "inspect {m} {m}",
        "verify {m}",
        "bench {m} {m} --batch 0",
        "bench {m} {m} --batch 1,,2",
        "bench {m} {m} --batch x",
        "bench {m} {m} --provider abacus",
        "bench {m} {m} --threads -5 --batch 1 --seconds 0.01",
        "bench {m} {m} --seconds nan --batch 1",
        "bench {m} {m} --seconds -1 --batch 1",
    ],
)
def test_bad_usage_is_one_line_and_a_two(here: Command, tiny: Path, ratio_file: Path, tmp_path: Path, args: str) -> None:
    words = [w.format(m=tiny, o=tmp_path / "out.onnx", r=ratio_file) for w in args.split()]
    made = here(*words, "--quiet")
    assert made.returncode == 2
    assert made.stdout == "" and len(made.stderr.splitlines()) == 1, made.stderr
    assert made.stderr.startswith("toastc: ")
    assert content(tmp_path) == {}


@pytest.mark.parametrize("args", [["--help"], *([command, "--help"] for command in COMMANDS), ["--version"]])
def test_help_is_quick_and_light(toastc: Command, args: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = toastc(*args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert made.returncode == 0 and "toastc" in made.stdout and made.stderr == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    script = "import sys\nfrom toastc.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\nprint(*sys.modules)"
    made = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy"} & set(made.stdout.splitlines()[-1].split())


def test_help_tells_of_every_command_and_exit_code(toastc: Command) -> None:
    text = toastc("--help").stdout
    for word in ("inspect", "verify", "bench", "--ratios", "--target", "--plan", "exit:"):
        assert word in text


def test_the_onnx_path_imports_no_torch(tiny: Path, ratio_file: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    script = "import sys\nfrom toastc.cli import main\nassert main(sys.argv[1:]) == 0\nassert 'torch' not in sys.modules"
    report = ["--report", tmp_path / "r.html"]
    for args in (
        [tiny, "-o", tmp_path / "o.onnx", "--ratios", ratio_file, *PLAIN, *report],
        ["inspect", tiny],
        ["verify", *pair],
    ):
        made = subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr


def test_a_reader_that_went_away(tiny: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "toastc", "inspect", str(tiny), "--json"]
    made = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (made.returncode, made.stderr) == (0, "")


def test_a_full_disk_behind_stdout(tiny: Path) -> None:
    command = [sys.executable, "-m", "toastc", "inspect", str(tiny), "--json"]
    with open("/dev/full", "w") as full:
        made = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert made.returncode == 2
    assert len(made.stderr.splitlines()) == 1, made.stderr


def test_without_data_synthetic_images_stand_in_and_the_report_says_so(
    here: Command, tiny: Path, ratio_file: Path, tmp_path: Path
) -> None:
    made = here(tiny, "-o", tmp_path / "out.onnx", "--ratios", ratio_file, "--json", "--quiet")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert any("synthetic images stood in" in note for note in report["notes"])
    assert "refit-consumers" in report["seconds"]


def test_ctrl_c_is_seen_in_what_a_library_made_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    """While one is being loaded, its loader says that it can not be."""
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    assert exit_status(error) == 130
    assert capfd.readouterr().err == "toastc: interrupted\n"
    assert exit_status(ImportError("initialization failed")) == 2
    assert "a bug of toastc" in capfd.readouterr().err


@pytest.mark.parametrize("size", [2**44, 2**60])
def test_numpy_says_in_two_ways_that_something_is_too_large(capfd: pytest.CaptureFixture[str], size: int) -> None:
    with pytest.raises((MemoryError, ValueError)) as caught:
        np.random.default_rng(0).standard_normal((size, 2**8))
    assert exit_status(caught.value) == 2
    assert "toastc: not enough memory: " in capfd.readouterr().err


def test_an_error_that_came_of_itself_is_said() -> None:
    """What wraps an error may be taken off again while it is handled; then each is the other's reason."""
    inner = ValueError("inside")
    outer = RuntimeError("outside")
    outer.__cause__, inner.__context__ = inner, outer
    assert exit_status(outer) == exit_status(inner) == 2
