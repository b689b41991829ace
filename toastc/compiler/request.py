"""What was asked for, made sense of: files are read, words parsed, and what does not go together is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..calibration import Labels, Moments, Preprocess, Synthetic, has_class_folders
from ..graphs.protocols import Reader
from ..passes import parse_passes, print_passes, recipe, with_matching
from ..passes.state import Pass, tuned
from ..plans import ratios as ratio_file
from ..plans.cost import Target
from ..plans.merges import Merge, parse_merges
from ..plans.plan import Plan
from ..plans.promises import Promise, read_target
from ..plans.ratios import Ratios
from ..plans.targets import PORTABLE, Deploy
from ..system.errors import ToastcError
from .options import Options


@dataclass(frozen=True)
class Request:
    """What to do with a model: ratios, or a target, or a plan to replay. `options` are the words it was asked for with."""

    options: Options
    ratios: Ratios | None = None
    target: Target | None = None
    promise: Promise | None = None  # instead of a target: what may be lost
    plan: Plan | None = None
    tokens: tuple[Merge, ...] = ()
    moments: Moments | None = None
    allow: tuple[str, ...] | None = None  # what a target may be met by: channels, tokens; None: channels, and what is free
    deploy: Deploy = PORTABLE
    preprocess: Preprocess | None = None
    labels: Labels | None = None  # of the data
    labelled: tuple[Path, Labels] | None = None  # or of images of their own

    @staticmethod
    def of(options: Options) -> Request:
        recipe(options.recipe)
        deploy = options.deploy
        ratios, target, plan = options.ratios, options.target, options.plan
        if ratios is None and target is None and plan is None and (options.tokens is not None or deploy):
            ratios = {}
        if sum(x is not None for x in (ratios, target, plan)) != 1:
            raise ToastcError("give one of ratios, target and plan (or tokens alone)")
        goal = None if target is None else read_target(target)
        if isinstance(goal, Promise):
            check_promise(goal, options)
        wanted = isinstance(goal, Promise) and goal.kind.labels
        if options.labels is not None and not wanted:
            raise ToastcError("labels: go with a target that asks for them (drop=0.5)")
        labels, labelled = labels_of(options) if wanted else (None, None)
        return Request(
            options,
            ratios=None if ratios is None else read_ratios(ratios).rounded(deploy.widths),
            target=goal if isinstance(goal, Target) else None,
            promise=goal if isinstance(goal, Promise) else None,
            labels=labels,
            labelled=labelled,
            plan=Plan.load(Path(plan)) if isinstance(plan, str | Path) else plan,
            tokens=parse_merges(options.tokens) if options.tokens is not None else (),
            moments=Moments.load(Path(options.moments)) if isinstance(options.moments, str | Path) else options.moments,
            allow=allowed(options.allow),
            deploy=deploy,
            preprocess=options.preprocess,
        )

    @cached_property
    def spelled(self) -> tuple[Pass, ...] | None:
        """Passes instead of a recipe's, as text or as they are."""
        given = self.options.passes
        return with_matching(given) if isinstance(given, tuple) else parse_passes(given) if given else None

    @property
    def recipe(self) -> str:
        given = self.options.passes
        return print_passes(given) if isinstance(given, tuple) else given or self.options.recipe

    @property
    def merges(self) -> tuple[Merge, ...]:
        if self.plan is not None:
            return self.plan.merges
        return (*(self.ratios.tokens if self.ratios is not None else ()), *self.tokens)

    def asks(self, option: str) -> Any:
        """What a pass may take: a word that was said, or what follows for the runtime (`int8`, `fused`, `widths`, `equal`)."""
        return getattr(self.options if hasattr(self.options, option) else self.deploy, option)

    def steps(self, graph: Reader) -> tuple[Pass, ...]:
        """The passes that choose what stays, with what they take of the request."""
        data = self.options.data is not None or self.moments is not None
        passes = self.spelled or recipe(self.options.recipe, data, Synthetic.fits(graph.input_sizes()))
        steps: tuple[Pass, ...] = tuple(tuned(step, self.asks) for step in passes)
        if self.options.search is not None and not any(step.name == "search-widths" for step in steps):
            raise ToastcError("search: only recipes that allocate widths can be searched (default, calibrated, synthetic)")
        return steps

    def with_ratios(self, ratios: Ratios) -> Request:
        """A target that is met already: nothing is left to remove."""
        return replace(self, target=None, ratios=ratios)


def check_promise(promise: Promise, options: Options) -> None:
    if options.data is None:
        more = "; those in a moments file were fitted on" if options.moments is not None else ""
        raise ToastcError(f"target: {promise} is judged on inputs that nothing was fitted on: give data of the model's own{more}")
    if options.moments is not None:
        raise ToastcError(
            f"target: {promise}: give data alone: what is in a moments file was measured on inputs to judge by as well"
        )
    if options.search is not None:
        raise ToastcError("search: refines the widths of a budget (macs, params, latency)")
    if promise.kind.labels and options.labels is None and not has_class_folders(options.data):
        raise ToastcError(f"target: {promise} takes labels: one number for each input of the data, or a folder of class folders")


def labels_of(options: Options) -> tuple[Labels | None, tuple[Path, Labels] | None]:
    """Of the data, or of a folder of images besides."""
    given, data = options.labels, options.data
    if isinstance(given, str | Path) and Path(given).is_dir():
        own = Labels.of_folders(Path(given))
        same = isinstance(data, str | Path) and Path(given).resolve() == Path(data).resolve()
        return (own, None) if same else (None, (Path(given), own))
    if given is not None:
        return Labels.of(given), None
    return Labels.of_folders(Path(data)) if has_class_folders(data) else None, None


def read_ratios(ratios: Any) -> Ratios:
    return ratio_file.read(Path(ratios)) if isinstance(ratios, str | Path) else ratio_file.parse(ratios)


def allowed(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """`channels` or `channels,tokens`."""
    if given is None:
        return None
    words = tuple(w.strip() for w in given.split(",")) if isinstance(given, str) else tuple(given)
    if "channels" not in words or not set(words) <= {"channels", "tokens"}:
        raise ToastcError(f"allow: is channels, or channels,tokens; got {','.join(map(str, words))}")
    return words
