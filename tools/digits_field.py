"""Two more trained models of the project's own, on the same digits: a hybrid, and one block that is used again and again.

python tools/digits_field.py train [hybrid|shared]   # train again and write tools/assets/digits_NAME.safetensors
python tools/digits_field.py eval                    # test accuracy, whole and at 0.6 of the MACs
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import digits
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import toastc

WIDTH, HEADS = 96, 4
BUDGET = "macs=0.6"


class Squeezed(nn.Module):
    """An inverted residual: convolutions, batch norms, a squeeze-and-excitation."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        wide = 4 * width
        self.up, self.first = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.deep, self.second = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.squeeze, self.excite = nn.Conv2d(wide, width // 2, 1), nn.Conv2d(width // 2, wide, 1)
        self.drop, self.down, self.third = nn.Dropout(drop), nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.second(self.deep(F.gelu(self.first(self.up(x))))))
        h = h * self.excite(F.relu(self.squeeze(h.mean((2, 3), keepdim=True)))).sigmoid()
        out: Tensor = x + self.third(self.down(self.drop(h)))
        return out


class Mixed(nn.Module):
    """Attention with normed queries and keys, and an FFN with a norm inside; `cosine` or by their root mean square."""

    def __init__(self, width: int, drop: float, cosine: bool) -> None:
        super().__init__()
        self.before, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), 2.0)) if cosine else None
        each = width // HEADS
        self.q_norm, self.k_norm = (nn.Identity() if cosine else nn.RMSNorm(each, eps=1e-6) for _ in "qk")
        self.after, self.up, self.inner = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.LayerNorm(4 * width)
        self.drop, self.down = nn.Dropout(drop), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.temperature is None:
            scores = self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) * q.shape[-1] ** -0.5
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature.exp()
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(self.drop(self.inner(F.gelu(self.up(self.after(x))))))
        return out


class Hybrid(nn.Module):
    """A stem of convolutions, two inverted residuals, four attentions."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, padding=1, bias=False), nn.BatchNorm2d(48),
        )  # fmt: skip
        self.convolved = nn.Sequential(Squeezed(48, drop), Squeezed(48, drop))
        self.shrink, self.place = nn.Conv2d(48, WIDTH, 2, 2), nn.Parameter(torch.zeros(1, 16, WIDTH))
        self.attended = nn.Sequential(*(Mixed(WIDTH, drop, cosine) for cosine in (True, False, True, False)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.convolved(self.stem(x))).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.head(self.norm(self.attended(x)).mean(1))
        return out


class Shared(nn.Module):
    """One block five times."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Conv2d(1, WIDTH, 4, 4), nn.Parameter(torch.zeros(1, 16, WIDTH))
        self.block = Mixed(WIDTH, drop, cosine=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for _ in range(5):
            x = self.block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


MODELS = {"hybrid": Hybrid, "shared": Shared}


def checkpoint(name: str) -> Path:
    return digits.CHECKPOINT.with_name(f"digits_{name}.safetensors")


def load(name: str) -> nn.Module:
    model = MODELS[name]()
    model.load_state_dict({key: value.float() for key, value in load_file(checkpoint(name)).items()})
    return model.eval()


def pruned(name: str, target: str = BUDGET) -> toastc.Result:
    """Calibrated on the training digits."""
    (images, _), _ = digits.data()
    return toastc.prune(load(name), target=target, data=images, example_inputs=(torch.zeros(2, 1, 16, 16),), quiet=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "eval"])
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.names:
        if args.what == "train":
            digits.train(args.epochs, checkpoint(name), partial(MODELS[name], drop=0.1), partial(load, name))
        result = pruned(name)
        accuracies = [digits.accuracy(model) for model in (load(name), result.model.eval())]
        share = result.report.after.macs / result.report.before.macs
        print(f"{name}: {accuracies[0]:.1%}, {accuracies[1]:.1%} at {share:.0%} of the MACs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
