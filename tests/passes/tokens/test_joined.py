"""Sequences that are not the merged stream from end to end: a class token that joins behind the merge (CaiT), attention of it
alone, outputs of the patches alone. Against the same model with its tokens averaged by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from zoo_exports import quiet
from zoo_family import Positional

import toastc
from toastc.compiler.sources import open_graph
from toastc.graphs.onnx import OnnxGraph, load_model
from toastc.passes.tokens.layout import leading_tokens
from toastc.system.errors import ToastcError

torch.set_num_threads(1)
CHANNELS, HEADS, HEIGHT, WIDTH = 16, 2, 3, 6
SIZES = torch.full((HEIGHT * WIDTH // 2,), 2.0)
WAY_BACK = torch.tensor([row * 3 + column // 2 for row in range(HEIGHT) for column in range(WIDTH)])


class Block(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.fused = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS), fused
        self.q, self.k, self.v, self.proj = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)

    def forward(self, x: Tensor, asking: int = 0, sizes: Tensor | None = None) -> Tensor:
        """`asking`: only so many of the first tokens have queries; `sizes`: of the merged tokens, by hand."""
        first = x[:, :asking] if asking else x
        q, k, v = (
            linear(self.norm1(of)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, of in ((self.q, first), (self.k, x), (self.v, x))
        )
        if self.fused and sizes is None:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-2, -1) * (CHANNELS // HEADS) ** -0.5
            y = (scores if sizes is None else scores + sizes.log()).softmax(-1) @ v
        first = first + self.proj(y.transpose(1, 2).flatten(2))
        return first + self.fc2(functional.gelu(self.fc1(self.norm2(first))))


class Late(nn.Module):
    """Two blocks of patches alone, then two with a class token: of all tokens, and of that token's queries."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, CHANNELS, 4, 4)
        self.places = nn.Parameter(torch.randn(1, HEIGHT * WIDTH, CHANNELS))
        self.token = nn.Parameter(torch.randn(1, 2, CHANNELS))  # and another one
        self.blocks = nn.ModuleList(Block(fused) for _ in range(4))
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, image: Tensor, by_hand: bool = False) -> tuple[Tensor, ...]:
        """The class token's logits, all tokens, and the patches alone."""
        x = self.blocks[0](self.patches(image).flatten(2).transpose(1, 2) + self.places)
        sizes = joined = None
        if by_hand:
            grid = x.unflatten(1, (HEIGHT, WIDTH))
            x = ((grid[:, :, 0::2] + grid[:, :, 1::2]) / 2).flatten(1, 2)
            sizes, joined = SIZES, torch.cat([torch.ones(2), SIZES])
        x = self.blocks[1](x, 0, sizes)
        x = self.blocks[2](torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1), 0, joined)
        logits = self.head(self.blocks[3](x, 1, joined)[:, 0])
        if by_hand:
            x = torch.cat([x[:, :2], x[:, 2:][:, WAY_BACK]], 1)
        return logits, x, x[:, 2:] * 2


def alike(made: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    pairs = list(zip(made, wanted, strict=True))
    return all(a.shape == b.shape and bool((a - b).abs().max() < 1e-4 * b.abs().max()) for a, b in pairs)


def exported(model: nn.Module, image: Tensor, path: Path, opset: int = 17) -> Path:
    """Up to opset 17 by the quicker exporter, which knows neither whole attentions nor bicubic resizing."""
    options = {"dynamo": True, "external_data": False} if opset > 17 else {"dynamo": False}
    torch.onnx.export(model, (image,), path, opset_version=opset, verbose=False, input_names=["image"], **options)
    return path


def outputs(path: Path, image: Tensor) -> tuple[Tensor, ...]:
    made = onnxruntime.InferenceSession(str(path)).run(None, {"image": image.numpy()})
    return tuple(torch.from_numpy(np.asarray(array)) for array in made)


# of six columns, the three pairs most alike are all there are
@pytest.mark.parametrize(("fused", "tokens"), [(False, "h1:3"), (True, "h1")], ids=["products", "one call"])
def test_a_class_token_that_joins_later(fused: bool, tokens: str, tmp_path: Path) -> None:
    model, (image, other) = Late(fused).eval(), torch.randn(2, 2, 3, 4 * HEIGHT, 4 * WIDTH)
    with torch.no_grad(), quiet():
        wanted = model(other, by_hand=True)
        assert alike(toastc.prune(model, tokens=tokens, example_inputs=(image,)).model(other), wanted)
        dense = exported(model, image, tmp_path / "dense.onnx", 23 if fused else 17)
    toastc.prune(dense, tokens=tokens, output=tmp_path / "small.onnx")
    assert alike(outputs(tmp_path / "small.onnx", other), wanted)


def test_every_block_is_every_block_of_one_sequence(tmp_path: Path) -> None:
    """`t:2` merges in the blocks of patches; where the class token has joined, the sequence is another one."""
    model, (image, other) = Late(True).eval(), torch.randn(2, 2, 3, 4 * HEIGHT, 4 * WIDTH)
    with torch.no_grad(), quiet():
        made = toastc.prune(model, tokens="t:2", example_inputs=(image,))
        dense = exported(model, image, tmp_path / "dense.onnx")
        toastc.prune(dense, tokens="t:2", output=tmp_path / "small.onnx")
        assert alike(outputs(tmp_path / "small.onnx", other), made.model(other))
    assert made.report.after.macs < made.report.before.macs


class Part(nn.Module):
    """A head that reads a part of the patches."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.late, self.first, self.last = Late(False), first, last

    def forward(self, image: Tensor) -> Tensor:
        return self.late(image)[1][:, 2 + self.first : 2 + self.last].mean(1)


@pytest.mark.parametrize(("part", "tokens"), [((1, 13), "h1"), ((0, 12), "h1:1"), ((0, 12), "t1:2")])
def test_a_part_of_the_patches_takes_no_merged_token_apart(part: tuple[int, int], tokens: str) -> None:
    image = torch.randn(2, 3, 4 * HEIGHT, 4 * WIDTH)
    with quiet(), pytest.raises(ToastcError, match="a part of the patches is taken by itself"):
        toastc.prune(Part(*part).eval(), tokens=tokens, example_inputs=(image,))


def test_whole_rows_are_no_part_of_merged_columns(tmp_path: Path) -> None:
    model, image = Part(6, 12).eval(), torch.randn(2, 3, 4 * HEIGHT, 4 * WIDTH)
    with torch.no_grad(), quiet():
        made = toastc.prune(model, tokens="h1", example_inputs=(image,)).model(image)
        wanted = model.late(image, by_hand=True)[1][:, 8:14].mean(1)
        dense = exported(model, image, tmp_path / "dense.onnx")
    toastc.prune(dense, tokens="h1", output=tmp_path / "small.onnx")
    assert alike((made, *outputs(tmp_path / "small.onnx", image)), (wanted, wanted))


def test_registers_that_join_behind_the_class_token(tmp_path: Path) -> None:
    """transformers' DINOv2: class token and patches first, then registers between the two."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.Dinov2WithRegistersConfig(image_size=24, patch_size=8, num_register_tokens=4, **sizes)
    image = torch.randn(2, 3, 24, 24)
    with torch.no_grad(), quiet():
        model = Positional(transformers.Dinov2WithRegistersModel(config), "pixel_values", "last_hidden_state").eval()
        dense = exported(model, image, tmp_path / "dense.onnx", 18)
        made = toastc.prune(model, tokens="h1", example_inputs=(image,)).model(image)
    for graph in (open_graph(model, (image,)), OnnxGraph(load_model(dense))):
        assert leading_tokens(graph) == 5
    toastc.prune(dense, tokens="h1", output=tmp_path / "small.onnx")
    assert alike(outputs(tmp_path / "small.onnx", image), (made,) if isinstance(made, Tensor) else tuple(made))
    whole = made if isinstance(made, Tensor) else made[0]
    assert torch.equal(whole[:, 5::3], whole[:, 6::3]) and not torch.equal(whole[:, 5::3], whole[:, 7::3])


def test_keys_that_are_fewer_than_the_tokens() -> None:
    """CvT's and PVT's keys are pooled: there is not one for every token to compare it by."""
    config = transformers.CvtConfig(embed_dim=[16, 32], num_heads=[1, 2], depth=[2, 2], patch_sizes=[7, 3], patch_stride=[4, 2],
                                    patch_padding=[2, 1],
                                    mlp_ratio=[2.0, 2.0], attention_drop_rate=[0.0, 0.0], drop_rate=[0.0, 0.0],
                                    drop_path_rate=[0.0, 0.0], qkv_bias=[True, True], cls_token=[False, False],
                                    qkv_projection_method=["dw_bn", "dw_bn"],
                                    kernel_qkv=[3, 3], padding_kv=[1, 1], stride_kv=[2, 2],
                                    padding_q=[1, 1], stride_q=[1, 1])  # fmt: skip
    with quiet():
        model = Positional(transformers.CvtModel(config), "pixel_values", "last_hidden_state").eval()
        with pytest.raises(ToastcError, match="has 16 keys to 64 tokens"):
            toastc.prune(model, tokens="t:2", example_inputs=(torch.randn(2, 3, 32, 32),))
