"""plan-selections: the FFN channels that are read are chosen at run time, image by image or batch by batch.

This is ToaSt's token channel selection as the paper runs it; `docs/toast.md` says what that does to accuracy. The
ratios of `hidden` (what fc2 reads) and `inputs` (what fc1 reads) say how much is left unread; no weight is cut, so one
half of what the static form saves is saved. The tokens that scores are taken from are drawn once, at compile time: a
share `sample` of them in the first block, growing to `deepest` in the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from toastc.plans.choices import PER
from toastc.plans.plan import Choice, Plan, Select
from toastc.plans.ratios import narrowed
from toastc.system.errors import ToastcError

from ..score.sampling import balanced, check_sample, guided_by, sampled, tokens_of
from ..state import State
from ..tokens.layout import leading_tokens


@dataclass(frozen=True)
class PlanSelections:
    """Choose the FFN channels that are read at run time, per image or per batch (ToaSt's TCS)."""

    per: str = "image"
    sample: float = 0.02  # of the tokens; at least one
    deepest: float = 0.2  # of the tokens in the last block
    guide: str = "auto"  # by the class token's attention: auto, yes or no
    balance: str = "paper"  # of the class token against the others: 2 and 1, or as in the code 1/(1+P) and P/(1+P)
    masks: bool = False  # zero the channels that fc1 does not read in the residual stream as well
    name = "plan-selections"
    spends = True  # a budget, or ratios: what stands before it holds for any

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ToastcError(f"plan-selections: per={self.per}; it is one of {', '.join(PER)}")
        check_sample(self.name, self.guide, self.sample, self.deepest, self.balance)

    def __call__(self, state: State) -> State:
        assert state.ratios is not None
        ffns = [s for s in state.sites if s.kind == "ffn"]
        counts = {name: count for name, _, count in narrowed(state.ratios, state.sites)}
        choices: dict[str, Choice] = dict(state.plan.choices)
        leading, notes = leading_tokens(state.graph), list(state.notes)
        if self.guide == "yes" and not leading:
            raise ToastcError("plan-selections: guide=yes, but no class token was found in front of the others")
        for depth, site in enumerate(ffns):
            for coupling in (c for c in site.every if f"{site.name}.{c.name}" in counts):
                name = f"{site.name}.{coupling.name}"
                tokens = tokens_of(state.graph, site)
                if tokens is None:
                    raise ToastcError(f"plan-selections: {name}: its tokens and images can not be told apart, or vary in number")
                guided = self.guide != "no" and 0 < leading < tokens
                guided = guided and guided_by(state.graph, state.sites, site) is not None
                share = self.sample + (self.deepest - self.sample) * depth / max(len(ffns) - 1, 1)
                chosen = sampled(tokens, leading if guided else 0, share, [state.seed, depth])
                masks = self.masks and coupling.name == "inputs"
                width = counts[name]
                weights = balanced(self.balance, tokens - leading)
                choices[name] = Select(width, coupling.width, self.per, chosen, guided, weights, masks)
        if self.per == "batch" and any(isinstance(c, Select) for c in choices.values()):
            notes.append("channels are chosen once for each batch: what an image gets depends on the images beside it")
        return replace(state, plan=Plan(choices), notes=tuple(notes))
