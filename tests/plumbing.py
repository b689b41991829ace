"""Attentions and FFNs whose shape nodes, and what stands between them, are drawn at random: every way that people write them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, WIDTH, TOKENS = 4, 8, 6
DIM = HEADS * WIDTH
X = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(0))
Step = tuple[str, Callable[[Tensor], Tensor], int]  # what it is called, what it does, and how many channels it leaves

FORMS: dict[str, tuple[str, ...]] = {
    "packed": ("3hd", "3dh", "h3d", "hd3", "dh3", "chunk", "split", "apart", "apart dh", "kv"),
    "layout": ("images first", "tokens first", "rows"),
    "product": ("matmul", "einsum", "einsum of keys first", "bmm", "baddbmm", "sdpa"),
    "scale": ("q", "k", "scores", "both", "divided"),
    "bias": ("none", "table", "mask"),
    "norm": ("none", "none", "l2", "layer norm", "scaled"),
    "values": ("none", "none", "relu", "by head", "by channel"),
    "joined": ("hd", "dh", "einsum"),
    "behind": ("none", "none", "gate", "norm"),
    "biases": ("yes", "no"),
}


def drawn(seed: int) -> dict[str, str]:
    rng = random.Random(seed)
    return {name: rng.choice(ways) for name, ways in FORMS.items()}


class Attention(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.form, bias = drawn(seed), drawn(seed)["biases"] == "yes"
        self.before, self.behind, self.by_head = nn.LayerNorm(DIM), nn.LayerNorm(DIM), nn.LayerNorm(WIDTH)
        self.qkv, self.kv = nn.Linear(DIM, 3 * DIM, bias=bias), nn.Linear(DIM, 2 * DIM, bias=bias)
        self.q, self.k, self.v = (nn.Linear(DIM, DIM, bias=bias) for _ in range(3))
        self.proj, self.gate = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.table, self.heads = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS)), nn.Parameter(torch.rand(HEADS, 1, 1))
        self.channels = nn.Parameter(torch.rand(HEADS, 1, WIDTH))
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -1e4).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        form, scale = self.form, WIDTH**-0.5
        q, k, v = self.parts(x)
        if form["norm"] in ("l2", "layer norm"):
            q, k = (F.normalize(t, dim=-1) if form["norm"] == "l2" else self.by_head(t) for t in (q, k))
        elif form["norm"] == "scaled":
            q = q * self.channels
        if form["scale"] in ("q", "k", "both"):
            powers = {"q": (1, 0), "k": (0, 1), "both": (0.5, 0.5)}[form["scale"]]
            q, k = (t * scale**p if p else t for t, p in zip((q, k), powers, strict=True))
            scale = 1.0
        if form["values"] != "none":
            v = v.relu() if form["values"] == "relu" else v * (self.heads if form["values"] == "by head" else self.channels)
        mixed = self.mixed(q, k, v, scale, {"none": None, "table": self.table, "mask": self.mask}[form["bias"]])
        turned = {"hd": mixed.transpose(1, 2), "dh": mixed.permute(0, 2, 3, 1)}.get(form["joined"])
        z = (torch.einsum("bhid->bihd", mixed) if turned is None else turned).reshape(x.shape)
        if form["behind"] == "gate":
            z = z * self.gate(x).sigmoid()
        return x + self.proj(self.behind(z) if form["behind"] == "norm" else z)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [images, heads, tokens, width]."""
        b, (packed, layout) = x.shape[0], (self.form["packed"], self.form["layout"])
        y = self.before(x)
        y = {"images first": y, "tokens first": y.transpose(0, 1), "rows": y.reshape(-1, DIM)}[layout]

        def made(linear: nn.Linear) -> Tensor:
            t: Tensor = linear(y)
            return t.transpose(0, 1) if layout == "tokens first" else t.reshape(b, TOKENS, -1)

        def heads(t: Tensor) -> Tensor:
            return t.reshape(b, TOKENS, HEADS, WIDTH).transpose(1, 2)

        if packed in ("apart", "apart dh"):
            each = [made(linear) for linear in (self.q, self.k, self.v)]
            return tuple(heads(t) if packed == "apart" else t.reshape(b, TOKENS, WIDTH, HEADS).permute(0, 3, 1, 2) for t in each)
        if packed == "kv":
            return heads(made(self.q)), *made(self.kv).reshape(b, TOKENS, 2, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        t = made(self.qkv)
        if packed in ("chunk", "split"):
            return tuple(map(heads, t.chunk(3, -1) if packed == "chunk" else t.split(DIM, -1)))
        sizes = {"3": 3, "h": HEADS, "d": WIDTH}
        apart = t.reshape(b, TOKENS, *(sizes[axis] for axis in packed))
        at = {axis: i + 2 for i, axis in enumerate(packed)}
        return apart.permute(at["3"], 0, at["h"], 1, at["d"]).unbind(0)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        product, shape = self.form["product"], q.shape
        if product == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        if product in ("bmm", "baddbmm"):
            q, k, v = (t.reshape(-1, TOKENS, WIDTH) for t in (q, k, v))
            if product == "bmm":
                scores = torch.bmm(q, k.transpose(1, 2)) * scale
            else:
                scores = torch.baddbmm(torch.zeros(1), q, k.transpose(1, 2), beta=0, alpha=scale)
            if bias is not None:
                scores = (scores.reshape(-1, HEADS, TOKENS, TOKENS) + bias).reshape(-1, TOKENS, TOKENS)
            return torch.bmm(scores.softmax(-1), v).reshape(shape)
        if product == "matmul":
            scores = q @ k.transpose(-2, -1)
        elif product == "einsum":
            scores = torch.einsum("...id,...jd->...ij", q, k)
        else:
            scores = torch.einsum("bhjd,bhid->bhij", k, q)
        scores = scores / (1 / scale) if self.form["scale"] == "divided" else scores * scale
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return weights @ v if product == "matmul" else torch.einsum("bhij,bhjd->bhid", weights, v)


def steps(rng: random.Random, w: int) -> list[Step]:
    """What may happen to `w` hidden channels."""
    half, k = w // 2, rng.randrange(1, max(2, w - 1))
    index = torch.tensor(rng.sample(range(w), max(2, half)))
    numbers = torch.randn(w, generator=torch.Generator().manual_seed(w))

    def grouped(groups: int, do: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda h: do(h.unflatten(-1, (groups, w // groups))) if w % groups == 0 else h

    return [
        ("relu", lambda h: h.relu(), w),
        ("gelu", F.gelu, w),
        ("where", lambda h: torch.where(h > 0, h, h * 0.1), w),
        ("scale", lambda h: h * numbers, w),
        ("shift", lambda h: h + numbers, w),
        ("with itself", lambda h: h * h.flip(-1).tanh(), w),
        ("halves multiplied", lambda h: h[..., :half].sigmoid() * h[..., half : half * 2], half),
        ("pairs multiplied", lambda h: h[..., 0 : half * 2 : 2] * h[..., 1::2][..., :half].tanh(), half),
        ("flipped", lambda h: h.flip(-1), w),
        (f"rolled {k}", lambda h: h.roll(k, -1), w),
        ("first half", lambda h: h[..., :half], half),
        (f"from {k}", lambda h: h[..., k:], w - k),
        ("every other", lambda h: h[..., ::2], w - half),
        ("a part", lambda h: h.narrow(-1, 1, w - 2), w - 2),
        ("some", lambda h: h.index_select(-1, index), len(index)),
        ("swapped", lambda h: torch.cat(h.split([k, w - k], -1)[::-1], -1), w),
        ("two of three", lambda h: torch.cat(h.chunk(3, -1)[:2], -1), min(w, 2 * math.ceil(w / 3))),
        ("beside its tanh", lambda h: torch.cat([h, h.tanh()], -1), 2 * w),
        ("between its tanh", lambda h: torch.stack([h, h.tanh()], -1).flatten(-2), 2 * w),
        ("twice", lambda h: h.repeat(1, 1, 2), 2 * w),
        ("shuffled", grouped(2, lambda h: h.transpose(-1, -2).flatten(-2)), w),
        ("shuffled by four", grouped(4, lambda h: h.transpose(-1, -2).flatten(-2)), w),
        ("groups turned round", grouped(4, lambda h: torch.cat(h.unbind(-2)[::-1], -1)), w),
        ("halves added", grouped(2, lambda h: h.sum(-2)), half if w % 2 == 0 else w),
        ("tokens first", lambda h: h.transpose(0, 1).exp().transpose(0, 1), w),
        ("rows", lambda h: h.reshape(-1, w).relu().reshape(-1, TOKENS, w), w),
        ("other tokens", lambda h: h.flip(1), w),
        ("all tokens", lambda h: h + h.mean(1, keepdim=True), w),
        ("normed", lambda h: F.layer_norm(h, (w,)), w),
        ("by its mean", lambda h: h * h.mean(-1, keepdim=True), w),
    ]


class Ffn(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        rng, width = random.Random(seed), 64
        self.norm, self.up, self.steps = nn.LayerNorm(DIM), nn.Linear(DIM, width), list[Step]()
        for _ in range(rng.randrange(1, 5)):
            step = rng.choice([s for s in steps(rng, width) if 4 <= s[2] <= 256])
            self.steps.append(step)
            width = step[2]
        self.down = nn.Linear(width, DIM)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.norm(x))
        for _, step, _ in self.steps:
            h = step(h)
        return x + self.down(h)
