"""The ratio file: how much of every coupling is removed.

    {"attention": {"qk": 0.5, "vo": 0.5, "heads": 0.0}, "ffn": 0.5,
     "sites": {"blocks.0.*": 0, "blocks.11.mlp": {"hidden": 0.9, "inputs": 0.3}}, "round_to": 8}

Every number is the fraction removed. `"attention": 0.5` is short for qk and vo. A list gives one value for each site of
that kind, in order. Globs under `sites` override; the later line wins. `"tokens"` lists merges (`tokens.Merge`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..system.errors import ToastcError
from .merges import Merge, parse_merges
from .sites import Coupling, Site

ROUND_TO = 8  # channels; kernels like their multiples
NARROWEST = 2  # channels; a width of one leaves no axis to recognise
KEYS = {"attention", "ffn", "sites", "tokens", "round_to"}
COUPLINGS = {"attention": ("qk", "vo", "heads"), "ffn": ("hidden", "inputs")}
ON_REQUEST = ("heads", "inputs")  # a number for the whole site does not mean these

Number = float | Sequence[float]


@dataclass(frozen=True)
class Ratios:
    """Checked against nothing but itself; `for_sites` checks it against a model."""

    attention: Mapping[str, Number] = field(default_factory=dict)
    ffn: Mapping[str, Number] = field(default_factory=dict)
    sites: Mapping[str, object] = field(default_factory=dict)
    round_to: int | None = None  # not said: ROUND_TO, or what the deployed file likes
    tokens: tuple[Merge, ...] = ()

    def rounded(self, least: int) -> Ratios:
        """The same; where it is not said, widths are multiples of `least` at least."""
        return self if self.round_to is not None else replace(self, round_to=max(ROUND_TO, least))

    def for_sites(self, sites: Sequence[Site]) -> dict[str, dict[str, float]]:
        """`{site: {coupling: fraction removed}}` for every site, or an error that names the key."""
        table: dict[str, dict[str, float]] = {}
        for kind, given in (("attention", self.attention), ("ffn", self.ffn)):
            own = [s for s in sites if s.kind == kind]
            columns = {name: spread(value, len(own), f"{kind}.{name}") for name, value in given.items()}
            for i, site in enumerate(own):
                table[site.name] = {name: column[i] for name, column in columns.items()}
        for pattern, value in self.sites.items():
            hit = [s for s in sites if fnmatchcase(s.name, pattern)]
            if not hit:
                raise ToastcError(f'ratios: "sites" pattern "{pattern}" matches no site; `toastc inspect` lists them')
            for site in hit:
                table[site.name].update(override(value, site, pattern))
        return table


def narrowed(ratios: Ratios, sites: Sequence[Site]) -> list[tuple[str, Coupling, int]]:
    """(name, coupling, kept width) of every coupling that the ratios make narrower."""
    table = ratios.for_sites(sites)
    step = ROUND_TO if ratios.round_to is None else ratios.round_to
    found = []
    for site in sites:
        for name, ratio in table[site.name].items():
            coupling = site.coupling(name)
            if coupling is None or not coupling.prunable or ratio == 0:
                continue
            heads = name == "heads"
            count = kept_width(coupling.width, ratio, 1 if heads else step, 1 if heads else NARROWEST)
            if count < coupling.width:
                found.append((f"{site.name}.{name}", coupling, count))
    return found


def kept_width(width: int, ratio: float, step: int, least: int = NARROWEST) -> int:
    """round_to * ceil((1 - ratio) * width / round_to), at most the width."""
    step = min(step, width)
    wanted = math.ceil(round((1 - ratio) * width / step, 9)) * step
    return min(width, max(wanted, least))


def spread(value: Number, count: int, key: str) -> list[float]:
    if isinstance(value, Sequence):
        if len(value) != count:
            raise ToastcError(f'ratios: "{key}" lists {len(value)} values, the model has {count} such sites')
        return [float(v) for v in value]
    return [float(value)] * count


def override(value: object, site: Site, pattern: str) -> dict[str, float]:
    names = COUPLINGS[site.kind]
    if isinstance(value, Mapping):
        unknown = [k for k in value if k not in names]
        if unknown:
            raise ToastcError(f'ratios: "sites"."{pattern}" has "{unknown[0]}", but {site.name} has {", ".join(names)}')
        return {k: fraction(v, f"sites.{pattern}.{k}") for k, v in value.items()}
    number = fraction(value, f"sites.{pattern}")
    return {name: number for name in names if name not in ON_REQUEST or number == 0}


def fraction(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToastcError(f'ratios: "{key}" must be a number, got {json.dumps(value, default=str)}')
    if not 0 <= value < 1:
        raise ToastcError(f'ratios: "{key}" is {value}; it is the fraction removed and must be in [0, 1)')
    return float(value)


def numbers(value: object, key: str) -> Number:
    if isinstance(value, list | tuple):
        return [fraction(v, f"{key}[{i}]") for i, v in enumerate(value)]
    return fraction(value, key)


def group(value: object, kind: str) -> dict[str, Number]:
    """`0.5`, `[..]` or `{"qk": ..}` as one mapping."""
    names = COUPLINGS[kind]
    if isinstance(value, Mapping):
        unknown = [k for k in value if k not in names]
        if unknown:
            raise ToastcError(f'ratios: unknown key "{kind}.{unknown[0]}"; known: {", ".join(names)}')
        return {k: numbers(v, f"{kind}.{k}") for k, v in value.items()}
    return {name: numbers(value, kind) for name in names if name not in ON_REQUEST}


def parse(data: object) -> Ratios:
    """A parsed JSON value (or a plain number: that much of everything) as `Ratios`."""
    if isinstance(data, Ratios):
        return data
    if isinstance(data, int | float) and not isinstance(data, bool):
        data = {"attention": data, "ffn": data}
    if not isinstance(data, Mapping):
        raise ToastcError("ratios: must be a JSON object with attention, ffn, sites, tokens, round_to")
    unknown = [k for k in data if k not in KEYS]
    if unknown:
        raise ToastcError(f'ratios: unknown key "{unknown[0]}"; known: {", ".join(sorted(KEYS))}')
    sites = data.get("sites", {})
    if not isinstance(sites, Mapping):
        raise ToastcError('ratios: "sites" must be an object of patterns')
    round_to = data.get("round_to")
    if "round_to" in data and (isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1):
        raise ToastcError(f'ratios: "round_to" must be a whole number from 1, got {json.dumps(round_to, default=str)}')
    attention, ffn = group(data.get("attention", {}), "attention"), group(data.get("ffn", {}), "ffn")
    tokens = data.get("tokens", [])
    if isinstance(tokens, str):
        raise ToastcError('ratios: "tokens" must be a list of {"before": .., "merge": ..}')
    return Ratios(attention, ffn, dict(sites), round_to, parse_merges(tokens))


def read(path: Path) -> Ratios:
    try:
        return parse(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ToastcError(f"{path}: no such ratio file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ToastcError(f"{path}: can not be read ({getattr(error, 'strerror', None) or error})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
        raise ToastcError(f"{path}: not JSON ({error})") from None


def ratios_of(widths: Mapping[str, Mapping[str, tuple[int, int]]], merges: Sequence[Merge] = ()) -> dict[str, object]:
    """A ratio file that asks for exactly these widths: `{site: {coupling: (original, kept)}}`."""
    sites = {
        site: {name: round(1 - kept / original, 12) if kept < original else 0 for name, (original, kept) in own.items()}
        for site, own in widths.items()
    }
    tokens = {"tokens": [m.to_dict() for m in merges]} if merges else {}
    return {"sites": sites, "round_to": 1} | tokens
