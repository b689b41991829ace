"""The report's page in a real browser: it draws, says nothing in the console, and its numbers are those of the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import opened, visit
from conftest import Command
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import toastc
from toastc.report.page import write_page
from toastc.report.pareto import compared, write_comparison
from toastc.report.reading import read_report

HOSTILE = '<img src=x onerror="hit=1">'
BROKEN = {
    "text.json": "no", "list.json": "[]", "other.json": "{}", "other.html": "<p>", "bad.safetensors": "x", "bad.onnx": "x",
    "calibrate.json": '{"images": 8, "couplings": ["blocks.0.attn.qk"]}', "row.json": '{"couplings": [{"site": "a"}]}',
    "none.json": '{"couplings": [{"site": "a", "coupling": "qk", "groups": 1, "original": 0, "kept": 0, "reason": ""}]}',
    "words.json": '{"couplings": [], "before": {"macs": "many"}, "after": {"macs": 1}}',
}  # fmt: skip
ENDING = "</script><script>window.hit=1</script>\x00\u202e&amp;"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def made(deit: Path, images: Path, toastc: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A compile with everything that can be shown, its page and its JSON."""
    folder = tmp_path_factory.mktemp("made")
    done = toastc(
        deit, "-o", folder / "small.onnx", "--target", "macs=0.6", "--calibrate", images, "--tokens", "h1", "--report",
        folder / "r.html", "--plan-out", folder / "plan.safetensors", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "r.json").write_text(done.stdout)
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened() as found:
        yield found


def numbers(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def test_it_draws_and_the_console_is_silent(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    assert visit(browser, made[0] / "r.html") == []
    plots = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(plots) >= 6
    assert all(plot.find_elements(By.CSS_SELECTOR, "svg.main-svg") for plot in plots)
    assert numbers(browser, "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    drawn = {plot.get_attribute("id") for plot in plots}
    assert {"plot-widths", "plot-macs", "plot-params", "plot-loss-qk", "plot-spectrum-vo", "plot-loss-hidden"} <= drawn


def test_its_numbers_are_those_of_the_json(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    folder, report = made
    visit(browser, folder / "r.html")
    assert json.loads(numbers(browser, "document.getElementById('report').textContent")) == report
    rows = browser.find_elements(By.CSS_SELECTOR, "#couplings-table tbody tr")
    shown = [[c.text for c in row.find_elements(By.TAG_NAME, "td")][:5] for row in rows]
    assert shown == [
        [r["site"], r["coupling"], *(f"{r[k]:,}" for k in ("groups", "original", "kept"))] for r in report["couplings"]
    ]
    drawn = numbers(browser, "document.getElementById('plot-macs').data.map(t => [t.name, Array.from(t.x)])")
    for number, (name, values) in enumerate(drawn):
        assert name == ("before", "after")[number]
        assert values[:-1] == [s["macs"][number] for s in report["sites"]]
        assert sum(values) == report[name]["macs"]
    loss = next(c for c in report["curves"] if c["kind"] == "loss" and c["coupling"].endswith(".hidden"))
    traces = numbers(browser, "document.getElementById('plot-loss-hidden').data.map(t => [Array.from(t.x), Array.from(t.y)])")
    assert traces[0] == [loss["at"], loss["values"]]
    assert traces[1][0] == [loss["chosen"]]
    assert f"{100 * report['measured']['error']:.2f} %" in browser.find_element(By.ID, "summary").text


def test_a_table_is_sorted_by_a_click(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    visit(browser, made[0] / "r.html")
    head = browser.find_elements(By.CSS_SELECTOR, "#couplings-table th")[3]
    column = "#couplings-table tbody tr td:nth-child(4)"
    for turned in (False, True):
        browser.execute_script("arguments[0].click()", head)
        values = [int(c.text.replace(",", "")) for c in browser.find_elements(By.CSS_SELECTOR, column)]
        assert values == sorted(values, reverse=turned)
        assert len(set(values)) > 1


def test_figures_say_their_values_and_can_be_saved(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    visit(browser, made[0] / "r.html")
    plot = browser.find_element(By.ID, "plot-widths")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    over = plot.find_element(By.CSS_SELECTOR, ".nsewdrag")
    at = {way: int(-0.4 * over.rect[size]) for way, size in (("xoffset", "width"), ("yoffset", "height"))}
    ActionChains(browser).move_to_element_with_offset(over, **at).perform()
    hover = "document.querySelector('#plot-widths .hoverlayer').textContent"
    WebDriverWait(browser, 10).until(lambda b: "kept (" in numbers(b, hover))
    script = "const done = arguments[0]; Plotly.toImage('plot-widths', {format: 'svg'}).then(done)"
    assert browser.execute_async_script(script).startswith("data:image/svg+xml")


def test_light_and_dark_follow_the_reader(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    paper = "document.getElementById('plot-widths').layout.paper_bgcolor"
    seen = []
    for word in ("light", "dark"):
        given = {"features": [{"name": "prefers-color-scheme", "value": word}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", given)
        visit(browser, made[0] / "r.html")
        seen.append((numbers(browser, ground), numbers(browser, paper)))
    assert seen[0] != seen[1]
    browser.find_element(By.ID, "theme").click()
    assert (numbers(browser, ground), numbers(browser, paper)) == seen[0]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_phone_needs_no_scrolling_sideways(made: tuple[Path, dict[str, Any]]) -> None:
    with opened() as browser:
        given = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", given)
        assert visit(browser, made[0] / "r.html") == []
        assert numbers(browser, "document.documentElement.scrollWidth") <= 390


def test_names_of_a_model_are_text_and_nothing_else(browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    text = json.dumps(made[1])
    first = made[1]["couplings"][0]["site"]
    report = json.loads(text.replace(json.dumps(first)[1:-1], json.dumps(HOSTILE)[1:-1]))
    report |= {"model": ENDING, "notes": [ENDING, HOSTILE], "rejects": [{"node": HOSTILE, "reason": ENDING}]}
    write_page(report, tmp_path / "hostile.html")
    assert visit(browser, tmp_path / "hostile.html") == []
    assert numbers(browser, "window.hit === undefined && document.images.length === 0")
    assert browser.find_element(By.CSS_SELECTOR, "#couplings-table tbody td").text == HOSTILE
    assert HOSTILE in numbers(browser, "[...document.querySelectorAll('#plot-widths .ytick text')].map(t => t.textContent)")
    assert "<script>" in browser.find_element(By.TAG_NAME, "h1").text
    assert read_report(tmp_path / "hostile.html") == report


def poisoned(value: Any, key: str = "") -> Any:
    """Every text in a report with markup behind it, but for what decides which figures there are."""
    if isinstance(value, dict):
        return {k: poisoned(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, key) for v in value]
    return (
        f'{value}"><img src=x onerror="hit=1">%{{y}}'
        if isinstance(value, str) and value and key not in ("kind", "photo")
        else value
    )


def test_whatever_a_report_says_is_text(browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Reports are handed on: what somebody else wrote into one must not run."""
    write_page(poisoned(made[1]), tmp_path / "poisoned.html")
    assert visit(browser, tmp_path / "poisoned.html") == []
    assert numbers(browser, "window.hit === undefined && document.images.length === 0")
    anchors = numbers(
        browser, "[...document.querySelectorAll('nav a')].map(a => !!document.getElementById(a.hash.slice(1)) || a.hash)"
    )
    assert len(anchors) > 5 and anchors[0] is True


def test_what_is_no_number_is_null_in_the_page(browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    report = made[1] | {"measured": {"error": float("nan"), "inputs": 1, "of": "calibration inputs"}}
    write_page(report, tmp_path / "nan.html")
    assert visit(browser, tmp_path / "nan.html") == []
    assert read_report(tmp_path / "nan.html")["measured"]["error"] is None
    write_page(read_report(tmp_path / "nan.html"), tmp_path / "again.html")
    assert visit(browser, tmp_path / "again.html") == []


def test_merged_tokens_are_drawn_over_an_input(browser: Any, made: tuple[Path, dict[str, Any]]) -> None:
    folder, report = made
    visit(browser, folder / "r.html")
    pictures = browser.find_elements(By.CSS_SELECTOR, "#tokens figure")
    assert len(pictures) == 1 + len(report["tokens"])
    lines = [len(p.find_elements(By.TAG_NAME, "line")) for p in pictures]
    high, wide = report["tokens"][0]["patches"]
    assert lines[0] == high * (wide - 1) + wide * (high - 1)
    assert lines[1] == high * (wide // 2 - 1) + wide * (high - 1)
    assert all(p.find_elements(By.TAG_NAME, "image") for p in pictures)


def test_what_few_reports_have_is_shown_too(browser: Any, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Merges in every block, chosen for each image; a file for a runtime; a proof that did not hold."""
    chosen = made[1]["tokens"][0] | {"before": "*", "merge": "bipartite", "grid": None, "cells": None}
    proof = made[1]["verified"] | {"ok": False}
    deployed = {"runtime": "ort-cuda", "attentions": 2, "error": 1e-3, "notes": []}
    write_page(made[1] | {"tokens": [chosen], "verified": proof, "deployed": deployed}, tmp_path / "few.html")
    assert visit(browser, tmp_path / "few.html") == []
    shown = browser.find_element(By.TAG_NAME, "body").text
    for words in ("before every block: ", "; which ones is chosen for each image", "For the runtime", "ort-cuda", "NOT EQUAL"):
        assert words in shown, words


def test_a_report_can_be_made_of_whatever_was_saved(
    browser: Any, made: tuple[Path, dict[str, Any]], deit: Path, here: Command, tmp_path: Path
) -> None:
    folder, report = made
    bench = here("bench", deit, folder / "small.onnx", "--batch", "1,2", "--seconds", 0.2, "--no-memory", "--json")
    (tmp_path / "b.json").write_text(bench.stdout)
    accuracy = {"images": 10, "classes": 2, "models": {"dense": {"top1": 0.9, "top5": 1.0}, "small": {"top1": 0.8, "top5": 1.0}}}
    (tmp_path / "a.json").write_text(json.dumps(accuracy))
    more = ["--bench", tmp_path / "b.json", "--accuracy", tmp_path / "a.json"]
    for source in (folder / "r.json", folder / "r.html", folder / "plan.safetensors", folder / "small.onnx", deit):
        done = here("report", source, "-o", tmp_path / "page.html", *more)
        assert done.returncode == 0, done.stderr
        assert visit(browser, tmp_path / "page.html") == []
        speed = numbers(browser, "Array.from(document.getElementById('plot-bench').data[0].y)")
        assert speed == [row["speedup"] for row in json.loads(bench.stdout)["rows"]]
        assert "80" in browser.find_element(By.ID, "accuracy").text
    widths = {(r["site"], r["coupling"]): r["kept"] for r in report["couplings"]}
    again = read_report(folder / "small.onnx")
    assert {(r["site"], r["coupling"]): r["kept"] for r in again["couplings"]}.items() <= widths.items()
    assert again["after"]["bytes"] == report["after"]["bytes"]


@pytest.mark.parametrize("name", [*BROKEN, "absent.json"])
def test_what_is_no_report_is_refused_in_one_line(here: Command, tmp_path: Path, name: str) -> None:
    if name in BROKEN:
        (tmp_path / name).write_text(BROKEN[name])
    done = here("report", tmp_path / name, "-o", tmp_path / "page.html")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert name in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_runs_are_compared_on_one_page(browser: Any, made: tuple[Path, dict[str, Any]], here: Command, tmp_path: Path) -> None:
    def saved(name: str, macs: float, error: float) -> Path:
        report = json.loads(json.dumps(made[1]))
        report["after"]["macs"], report["measured"]["error"] = report["before"]["macs"] * macs, error
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
        return tmp_path / f"{name}.json"

    files = [saved("cheap", 0.4, 0.3), saved("good", 0.8, 0.1), saved("beaten", 0.8, 0.4)]
    done = here("compare", *files, "-o", tmp_path / "pareto.html", "--json")
    assert done.returncode == 0, done.stderr
    rows = {r["name"]: r for r in json.loads(done.stdout)["reports"]}
    assert {name for name, r in rows.items() if "macs/error" in r["best"]} == {"cheap", "good"}
    assert visit(browser, tmp_path / "pareto.html") == []
    drawn = numbers(browser, "[0, 1].map(i => Array.from(document.getElementById('plot-error-macs').data[i].x))")
    assert drawn == [[0.4, 0.8], [0.4, 0.8, 0.8]]
    assert browser.find_elements(By.CSS_SELECTOR, "#reports tbody tr")


def test_reports_of_one_name_are_told_apart(made: tuple[Path, dict[str, Any]], here: Command, tmp_path: Path) -> None:
    files = [tmp_path / folder / "r.json" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(made[1]))
    done = here("compare", *files, "-o", tmp_path / "pareto.html", "--json")
    assert [row["name"] for row in json.loads(done.stdout)["reports"]] == [str(file) for file in files]


def test_figures_of_another_command_that_lack_something(made: tuple[Path, dict[str, Any]], here: Command, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"rows": [], "ideal": 1}')
    done = here("report", made[0] / "r.json", "--bench", tmp_path / "b.json", "-o", tmp_path / "page.html")
    assert done.returncode == 2 and "b.json: not what toastc writes, or damaged" in done.stderr


def test_without_losses_there_is_nothing_to_compare(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    report = made[1] | {"measured": None}
    with pytest.raises(toastc.system.errors.ToastcError, match="no two reports"):
        write_comparison(compared([("a", report), ("b", report)]), tmp_path / "x.html")


def test_the_report_says_how_it_was_asked_for(deit: Path, images: Path, made: tuple[Path, dict[str, Any]]) -> None:
    assert made[1]["settings"]["command"].startswith("toastc ")
    assert "--target macs=0.6" in made[1]["settings"]["command"]
    assert {"toastc", "python", "numpy", "onnx"} <= set(made[1]["settings"]["versions"])
    report = toastc.prune(deit, {"ffn": 0.5}, recipe="magnitude", seed=3, verify=False).report
    assert report.settings["command"] == f"toastc.prune({str(deit)!r}, {{'ffn': 0.5}}, recipe='magnitude', seed=3, verify=False)"
    data = toastc.prune(deit, {"ffn": 0.5}, data=np.load(images), dry_run=True).report
    assert "data=<ndarray>" in str(data.settings["command"])
