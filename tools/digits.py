"""A small real Vision Transformer of the project's own, trained on scikit-learn's handwritten digits.

It is the model that the demo and the tests prune: 1.2 million parameters, fused qkv, class token, and a
real test set to measure accuracy on. Data, weights and training all live on this machine; nothing is fetched.

    python tools/digits.py train             # train again and write tools/assets/digits_vit.safetensors
    python tools/digits.py eval [M.onnx]     # accuracy on the 500 test digits (of the checkpoint or of M.onnx)
    python tools/digits.py export OUT.onnx   # ONNX, opset 20, dynamic batch
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

CHECKPOINT = Path(__file__).resolve().parent / "assets" / "digits_vit.safetensors"
SIZE = 16  # the 8x8 digits are upsampled to this, so that shifts and rotations stay smooth
TEST_COUNT = 500
SEED = 0

EPOCHS = 100
BATCH = 64
PEAK_LR = 5e-4
WARMUP = 0.05  # fraction of all steps
WEIGHT_DECAY = 0.2

Split = tuple[np.ndarray, np.ndarray]


def build(dropout: float = 0.0, drop_path: float = 0.0) -> VisionTransformer:
    """The architecture with fresh weights: 17 tokens, 6 blocks, width 128, 4 heads of 32."""
    return VisionTransformer(
        img_size=SIZE,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=128,
        depth=6,
        num_heads=4,
        mlp_ratio=4.0,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path,
    )


def load(path: Path = CHECKPOINT) -> VisionTransformer:
    """The trained model in float32 and eval mode (the checkpoint itself is stored in float16)."""
    model = build()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.eval()


def data() -> tuple[Split, Split]:
    """(train, test), each (images float32 [N,1,16,16] in 0..1, labels int64 [N]); the split is fixed and stratified."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images / 16.0).float().unsqueeze(1)
    images = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False).numpy()
    labels = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=TEST_COUNT, stratify=labels, random_state=SEED)
    return (train_x, train_y), (test_x, test_y)


def augment(images: Tensor) -> Tensor:
    """Random rotation, scale, shear and shift, then one erased square per image."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count) * 2 - 1) * limit

    angle, shear, scale = uniform(math.radians(12)), uniform(0.15), 1 + uniform(0.12)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    row_x = torch.stack([cos, shear - sin, uniform(0.2)], dim=1)
    row_y = torch.stack([sin, cos, uniform(0.2)], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    side = 4
    corner = torch.randint(0, SIZE - side + 1, (count, 2, 1))
    place = torch.arange(SIZE)
    inside = (place >= corner) & (place < corner + side)
    erased = (inside[:, 0, :, None] & inside[:, 1, None, :]) & (torch.rand(count, 1, 1) < 0.3)
    return moved.masked_fill(erased.unsqueeze(1), 0.0)


def learning_rate(step: int, steps: int) -> float:
    """The fraction of the peak rate at this step: linear warm-up, then a cosine down to zero."""
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only: not biases, norms, the class token or the position embedding."""
    exempt = model.no_weight_decay() if isinstance(model, VisionTransformer) else {"place"}
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim < 2 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))


def train(
    epochs: int = EPOCHS,
    out: Path = CHECKPOINT,
    # Dropout inside the MLPs and dropped paths make channels stand in for one another: that is what pruning takes.
    fresh: Callable[[], torch.nn.Module] = lambda: build(dropout=0.1, drop_path=0.15),
    trained: Callable[[], torch.nn.Module] = lambda: load(),
) -> float:
    """Train from scratch, write the last epoch's weights (the test digits choose nothing), return test accuracy."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    (train_x, train_y), _ = data()
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    model = fresh().train()
    optimizer = make_optimizer(model)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=steps)
        for epoch in range(epochs):
            for picked in torch.randperm(len(images)).split(BATCH):
                loss = F.cross_entropy(model(augment(images[picked])), labels[picked], label_smoothing=0.1)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update(bar, advance=1, description=f"epoch {epoch + 1:>3}  loss {loss.item():.3f}")

    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, out)
    return accuracy(trained())


@torch.inference_mode()
def accuracy(model: torch.nn.Module) -> float:
    """Fraction of the 500 test digits that a PyTorch model gets right."""
    _, (images, labels) = data()
    return float((model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def accuracy_onnx(path: Path | str, batch: int = 100) -> float:
    """Fraction of the 500 test digits that an ONNX file gets right, through onnxruntime on the CPU."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    _, (images, labels) = data()
    right = 0
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        logits = session.run(None, {feed: images[part]})[0]
        right += int((logits.argmax(1) == labels[part]).sum())
    return right / len(images)


def export(path: Path | str) -> Path:
    """Write the trained model as one ONNX file (weights inside), opset 20, with a dynamic batch."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        load(),
        (torch.zeros(2, 1, SIZE, SIZE),),
        path,
        dynamo=True,
        opset_version=20,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    return path


def main(argv: list[str] | None = None) -> int:
    """The command line described at the top of this file."""
    parser = argparse.ArgumentParser(description="The project's small ViT on scikit-learn's handwritten digits.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train from scratch and write the checkpoint")
    training.add_argument("--epochs", type=int, default=EPOCHS)
    training.add_argument("--threads", type=int, default=1, help="1 (the default) is what makes runs repeatable")
    training.add_argument("--out", type=Path, default=CHECKPOINT)
    evaluation = commands.add_parser("eval", help="accuracy on the test digits")
    evaluation.add_argument("model", nargs="?", type=Path, help="an ONNX file (default: the checkpoint)")
    exporting = commands.add_parser("export", help="write the model as ONNX")
    exporting.add_argument("out", type=Path)
    args = parser.parse_args(argv)

    if args.command == "train":
        torch.set_num_threads(args.threads)
        score = train(args.epochs, args.out)
        print(f"test accuracy {score:.2%}, {args.out} ({args.out.stat().st_size:,} bytes)")
    elif args.command == "eval":
        print(f"test accuracy {accuracy_onnx(args.model) if args.model else accuracy(load()):.2%}")
    else:
        print(f"wrote {export(args.out)} ({args.out.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
