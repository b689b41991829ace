"""Tables on narrow terminals: names fold, figures stay."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from toastc.cli.terminal import print_report, print_sites
from toastc.plans.sites import Reject
from toastc.report.data import CouplingRow, Report, Size

LONG = "model.vision_tower.vision_model.encoder.layers.11.self_attention_of_the_last_block"


def lines(console: Console) -> list[str]:
    return console.export_text().splitlines()


def console() -> Console:
    return Console(width=80, record=True, file=open("/dev/null", "w"))


def test_the_tables_of_inspect() -> None:
    site: dict[str, Any] = {"name": LONG, "kind": "attention", "heads": 12, "head_dim": 64, "v_head_dim": 48, "hidden": 0}
    couplings = [{"name": n, "prunable": True} for n in ("qk", "vo")]
    site |= {"macs": 123_456_789, "params": 2_345_678, "couplings": couplings}
    made = console()
    data: dict[str, Any] = {"model": "m.onnx", "sites": [site], "rejects": [], "whole": [], "macs": 1, "params": 1, "share": 1.0}
    print_sites(data, made)
    check(lines(made), ("qk", "vo", "hidden", "MACs", "params", "12", "64", "48", "123.46 M", "2.35 M"))


def test_the_table_of_a_report() -> None:
    rows = tuple(CouplingRow(LONG, name, 12, 64, kept) for name, kept in (("qk", 24), ("vo", 40), ("heads", 11)))
    size = Size(1, 1, 1)
    made = console()
    print_report(Report("m.onnx", "default", size, size, rows, (Reject("a", "b"),)), made)
    check(lines(made), ("heads", "qk", "vo", "hidden", "24/64", "40/64", "11/64"))


def check(found: list[str], figures: tuple[str, ...]) -> None:
    assert max(map(len, found)) <= 80
    text = "\n".join(found)
    assert all(figure in text for figure in figures), text
    assert "\u2026" not in text, text
    folded = "".join(line.split("\u2502")[1].strip() for line in found if line.startswith("\u2502"))
    assert LONG in folded, text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_at_any_width(width: int) -> None:
    made = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    rows = tuple(CouplingRow(LONG, name, 12, 64, 24) for name in ("qk", "vo"))
    print_report(Report("m.onnx", "default", Size(1, 1, 1), Size(1, 1, 1), rows, ()), made)
    assert made.export_text().count("24/64") == 2
