"""The loop of `tools/train.py`: the processes that take part, the steps, and the checkpoints between them.

A checkpoint is one safetensors file of tensors with JSON in its metadata for the rest, no pickle. It holds no random
state: what is random at a step follows from the seed and the step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from train_data import Images, seed_all

from toastc.system.errors import ToastcError
from toastc.system.files import write_beside
from toastc.training import finetune
from toastc.training.compactors import Controller

STATE = "toastc.train"  # its place in the metadata


@dataclass
class State:
    """What a run has been through, and what its checkpoints hold."""

    module: nn.Module
    optimizer: Any
    scaler: Any
    settings: Mapping[str, str]
    step: int
    log: dict[str, Any]
    control: Controller | None = None

    def save(self, path: Path) -> None:
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for number, own in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in own.items()}
        if self.control is not None:
            tensors |= {f"control.{name}": tensor for name, tensor in self.control.state_dict().items()}
        about = {
            "step": self.step,
            "log": self.log,
            "settings": self.settings,
            "groups": optimizer["param_groups"],
            "scaler": self.scaler.state_dict(),
        }
        with write_beside(path) as file:
            save_file({k: t.detach().clone().contiguous() for k, t in tensors.items()}, file, {STATE: json.dumps(about)})

    def load(self, path: Path) -> None:
        about, tensors = read(path)
        before = about["settings"]
        other = sorted(k for k in self.settings.keys() | before.keys() if self.settings.get(k) != before.get(k))
        if other:
            what = ", ".join(f"{k} {before.get(k)}, now {self.settings.get(k)}" for k in other)
            raise ToastcError(f"{path}: was made with other settings ({what}); resume with those, or choose another --out")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, key = rest.partition(".")
                state.setdefault(int(number), {})[key] = tensor
        try:
            self.module.load_state_dict({k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")})
            self.optimizer.load_state_dict({"state": state, "param_groups": about["groups"]})
            if self.control is not None:
                self.control.load_state_dict(
                    {k.removeprefix("control."): t for k, t in tensors.items() if k.startswith("control.")}
                )
        except (RuntimeError, ValueError) as error:
            raise ToastcError(f"{path}: is of another model ({error})") from None
        self.scaler.load_state_dict(about["scaler"])
        self.step, self.log = about["step"], about["log"]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()[STATE]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ToastcError(f"{path}: is no checkpoint of this trainer ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class Team:
    """The processes that train together."""

    rank: int
    world: int
    device: torch.device
    amp: str

    @staticmethod
    def join(amp: str | None) -> Team:
        rank, world, local = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(local)
        if world > 1:  # the first prunes while the others wait
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))
        fitting = "off" if not cuda else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return Team(rank, world, torch.device("cuda", local) if cuda else torch.device("cpu"), amp or fitting)

    def total(self, number: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(number)
        return number

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def mixed(self) -> Any:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return contextlib.nullcontext() if self.amp == "off" else torch.autocast(self.device.type, kinds[self.amp])

    def accuracy(self, model: nn.Module, images: Images, args: argparse.Namespace) -> float:
        right = torch.zeros((), device=self.device)
        own = range(self.rank, len(images), self.world)
        with torch.no_grad():
            for x, labels in DataLoader(images, args.batch, sampler=own, num_workers=args.workers):
                with self.mixed():
                    found = model.eval()(x.to(self.device)).argmax(1)
                right += (found == labels.to(self.device)).sum()
        return float(self.total(right)) / len(images)


@dataclass
class Loop:
    """Everything a step needs."""

    args: argparse.Namespace
    team: Team
    state: State
    schedule: CosineLRScheduler
    mix: Mixup
    distil: finetune.Distillation | None
    masks: finetune.Masks | None

    def run(self, images: Images, tests: Images, steps: int) -> None:
        args, team, state = self.args, self.team, self.state
        module: nn.Module = DistributedDataParallel(state.module) if team.world > 1 else state.module
        length = len(images) // (args.batch * team.world)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), disable=team.rank > 0) as bar:
            task = bar.add_task("training", total=steps, completed=state.step)
            while state.step < steps:
                images.epoch, begun = divmod(state.step, length)
                order = images.order(team.rank, team.world, length * args.batch, begun * args.batch)
                loader = DataLoader(
                    images, args.batch, sampler=order, num_workers=args.workers, pin_memory=team.device.type == "cuda"
                )
                module.train()
                for x, labels in loader:
                    loss = self.step(module, x.to(team.device), labels.to(team.device))
                    if not state.step % args.log_every or state.step == steps:
                        self.note(float(loss))
                        bar.update(task, description=f"epoch {images.epoch + 1}  loss {float(loss):.3f}")
                    bar.update(task, completed=state.step)
                    if not state.step % length or state.step == steps:
                        break
                    if not state.step % args.save_every:
                        self.save()
                score = team.accuracy(state.module, tests, args)
                state.log["epochs"].append({"epoch": images.epoch + 1, "step": state.step, "accuracy": score})
                team.say(f"epoch {images.epoch + 1}, step {state.step}: accuracy {100 * score:.2f} %")
                self.save()

    def step(self, module: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        state = self.state
        seed_all(self.args.seed, state.step, self.team.rank, 1)
        self.schedule.step_update(state.step)
        x, wanted = self.mix(x, labels)
        with self.team.mixed():
            logits = module(x)
            loss = SoftTargetCrossEntropy()(logits.float(), wanted)
            if self.distil is not None:
                loss = self.distil(x, logits, loss)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        if state.control is not None:
            state.scaler.unscale_(state.optimizer)
            state.control.before_step()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.control is not None:
            state.control.after_step()
        if self.masks is not None:
            self.masks.apply()
        state.step += 1
        return loss.detach()

    def note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ToastcError(f"the loss is {loss} at step {self.state.step}; a smaller --lr or a longer --warmup may help")
        self.state.log["steps"].append([self.state.step, loss, self.state.optimizer.param_groups[0]["lr"]])

    def save(self) -> None:
        if self.team.rank == 0:
            self.state.save(self.args.out / "last.safetensors")
            write_log(self.args.out, self.state.log)


def write_log(folder: Path, log: dict[str, Any]) -> None:
    with write_beside(folder / "log.json") as file:
        file.write_text(json.dumps(log, indent=1) + "\n")
