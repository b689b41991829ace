"""Equations of einsum, as both frameworks spell them."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters


def only_turns(equation: str) -> bool:
    """Does it give one operand other axes and nothing else?"""
    given, arrow, made = equation.replace(" ", "").partition("->")
    return bool(arrow) and given.isalpha() and len(set(given)) == len(given) and sorted(given) == sorted(made)


def einsum_spec(equation: str, ranks: Sequence[int]) -> tuple[str, str, str] | None:
    """One letter an axis: (left, right, output), `...` written out. None for what is no plain product of two tensors."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not len(terms) == len(ranks) == 2:
        return None
    if not arrow:
        letters = inputs.replace(",", "").replace("...", "")
        out = "..." * ("..." in inputs) + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    dotted = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(count < 0 or (count and "..." not in term) for count, term in zip(dotted, terms, strict=True)):
        return None
    spare = "".join(x for x in ascii_letters if x not in equation)[: max(dotted)]
    left, right = (term.replace("...", spare[len(spare) - count :]) for count, term in zip(dotted, terms, strict=True))
    out = out.replace("...", spare)
    if any(len(set(term)) != len(term) or not term.isalpha() for term in (left, right, out)) or set(out) - set(left + right):
        return None
    return left, right, out
