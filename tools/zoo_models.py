"""The zoo: every model family that toastc should understand, or refuse with the right word, as one table.

A family has a small model (two blocks, 32 px) and the full one it stands for; both take the very same paths through
their library's code. Weights are random, nothing is fetched, and no parameter is left at zero, one or identity.

    family = FAMILIES["deit_tiny"]
    model, inputs = family.small(), family.inputs(False, 2)   # inputs: name -> tensor, in forward order

`sites` are the expected (attentions, FFNs) of the small and of the full model; one counts when it is found, even
if it is unprunable. `unprunable` names couplings (qk, vo, heads, hidden), each with a word for why. `ROWS` are this file's
families, `DISTINCT` the names of those whose small models differ; those of `zoo_more.py`, otherwise built, and of
`zoo_downstream.py`, detectors and segmenters, follow them in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import timm
import torch
import torchvision.models as tv
import transformers as hf
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import Tensor, nn
from zoo_downstream import DOWNSTREAM
from zoo_family import Family, Positional, images
from zoo_hybrids import HYBRIDS
from zoo_more import MORE


class ToyAttention(nn.Module):
    """Attention by hand, in layouts that timm does not use; `share` is the number of query heads to a key head."""

    def __init__(self, dim: int, layout: str, share: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.layout, self.share = heads, layout, share
        rows = [3 * dim] if "3" in layout else [dim, dim // share, dim // share]
        self.qkv, self.proj = nn.ModuleList(nn.Linear(dim, count) for count in rows), nn.Linear(dim, dim)
        self.mix = nn.ModuleList(nn.Linear(heads, heads, bias=False) for _ in range(2)) if layout == "talking" else None

    def forward(self, x: Tensor) -> Tensor:
        (b, n, dim), h, d = x.shape, self.heads, x.shape[2] // self.heads
        q, *kv = (linear(x) for linear in self.qkv)
        if self.layout == "h_3d":
            q, k, v = q.view(b, n, h, 3 * d).transpose(1, 2).chunk(3, dim=-1)
        elif self.layout == "h3d":  # einops: "b n (h qkv d) -> qkv b h n d"
            q, k, v = q.reshape(b, n, h, 3, d).permute(3, 0, 2, 1, 4).unbind(0)
        elif self.layout == "d3h":
            q, k, v = q.reshape(b, n, d, 3, h).permute(3, 0, 4, 1, 2).unbind(0)
        elif self.layout == "einsum":
            q, k, v = (t.view(b, n, h, d) for t in (q, *kv))
            weights = (torch.einsum("bihd,bjhd->bhij", q, k) / d**0.5).softmax(dim=-1)
            return self.proj(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, n, dim))
        else:
            q, k, v = (t.view(b, n, -1, d).transpose(1, 2) for t in (q, *kv))
            if 1 < self.share < h:  # one key head for all broadcasts by itself
                k, v = (t.repeat_interleave(self.share, dim=1) for t in (k, v))
        weights = (q * d**-0.5) @ k.transpose(-2, -1)
        if self.mix:
            weights = self.mix[1](self.mix[0](weights.permute(0, 2, 3, 1)).softmax(dim=2)).permute(0, 3, 1, 2)
        else:
            weights = weights.softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, dim))


class ToyNet(nn.Module):
    """Pre-norm blocks. `ffn` is gelu, geglu, packed (geglu in one matrix) or leak (returns the hidden tensors too)."""

    def __init__(self, full: bool, layout: str = "", ffn: str = "gelu", share: int = 1, tied: bool = False) -> None:
        super().__init__()
        dim, self.ffn, self.blocks = 512 if full else 64, ffn, nn.ModuleList()
        for _ in range(12 if full else 2):
            ups = [nn.Linear(dim, n * dim) for n in {"packed": [6], "geglu": [3, 3]}.get(ffn, [3])]
            parts = [nn.LayerNorm(dim), ToyAttention(dim, layout, share), nn.LayerNorm(dim), nn.Linear(3 * dim, dim)]
            self.blocks.append(self.blocks[0] if tied and self.blocks else nn.ModuleList(parts + ups))

    def forward(self, x: Tensor) -> object:
        hidden: list[Tensor] = []
        for norm1, attention, norm2, down, *ups in self.blocks:
            x = x + attention(norm1(x))
            up = [linear(norm2(x)) for linear in ups]
            gate, *value = up[0].chunk(2, dim=-1) if self.ffn == "packed" else up
            hidden.append(nn.functional.gelu(gate) * value[0] if value else nn.functional.gelu(gate))
            x = x + down(hidden[-1])
        return (x, *hidden) if self.ffn == "leak" else x


def tokens(full: bool, batch: int, second: str = "", batch_first: bool = True) -> dict[str, Tensor]:
    length, dim = (64, 512) if full else (16, 64)
    found = {"x": torch.randn((batch, length, dim) if batch_first else (length, batch, dim))}
    if second == "padding":  # true is a token to ignore
        return {**found, second: torch.arange(length) >= length - 4 + torch.arange(batch)[:, None] % 3}
    return {**found, second: torch.randn(batch, length // 2, dim)} if second else found


def words(full: bool, batch: int, image: bool = False) -> dict[str, Tensor]:
    """Token ids that end in the largest one, and a mask that ignores some of those before it."""
    length, last = (64, 999) if full else (12, 99)
    ids, mask = torch.randint(3, last, (batch, length)), torch.ones(batch, length, dtype=torch.long)
    ids[:, -1], mask[0, 5:8] = last, 0
    return {"input_ids": ids, **(images(full, batch) if image else {}), "attention_mask": mask}


VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}
BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "vocab_size": 100}
TEXT, EYE = {**BERT, "max_position_embeddings": 12, "eos_token_id": 99}, {**BERT, "image_size": 32, "patch_size": 8}
CLIP, EOS = {"text_config": TEXT, "vision_config": EYE, "projection_dim": 32}, {"eos_token_id": 999}
WORDS, POOLED = "input_ids attention_mask", "last_hidden_state pooler_output"
EVA = {**VIT, "ref_feat_shape": (4, 4)}


# fmt: off
def vit(name: str, arch: str, no: Mapping[str, str] | None = None, size: int = 224, depth: int = 12,
        each: tuple[int, int] = (1, 1), more: tuple[int, int] = (0, 0), small: Mapping = VIT, **both: object) -> Family:
    """timm's `arch`, `both` its options in both sizes; `each` and `more` count sites in a block and outside."""
    options = {"img_size": 32, "num_classes": 10, **small}
    sites = tuple((n * each[0] + more[0], n * each[1] + more[1]) for n in (4 if small is SWIN else 2, depth))
    return Family(name, lambda full: timm.create_model(arch, **both, **({} if full else options)),
                  partial(images, size=size), sites, no or {})


def hugging(name: str, arch: str, small: Mapping, keys: str = "pixel_values", outputs: str = "last_hidden_state",
            kernel: str = "sdpa", both: Mapping | None = None, **more: object) -> Family:
    """`arch` without Model and Config; the options of the small model win over `both`."""
    def make(full: bool) -> nn.Module:
        config = getattr(hf, arch + "Config")(**{**(both or {}), **({} if full else small)})
        config._attn_implementation = kernel
        return Positional(getattr(hf, arch + "Model")(config), keys, outputs)
    return Family(name, make, **{"inputs": images, **more})


def stack(name: str, kind: str = "Encoder", keys: str = "src", causal: str = "", second: str = "",
          batch_first: bool = True) -> Family:
    """`nn.TransformerEncoder` or Decoder: post-norm, ReLU. `causal` is the keyword of a causal mask."""
    def make(full: bool) -> nn.Module:
        sizes, depth = ((512, 8, 2048), 6) if full else ((64, 4, 128), 2)
        layer = getattr(nn, f"Transformer{kind}Layer")(*sizes, 0.0, batch_first=batch_first)
        mask = nn.Transformer.generate_square_subsequent_mask(64 if full else 16)
        fixed = {causal: mask, causal.replace("mask", "is_causal"): kind == "Encoder"} if causal else {}
        return Positional(getattr(nn, f"Transformer{kind}")(layer, depth), keys, **fixed)
    inputs, axes = partial(tokens, second=second, batch_first=batch_first), {0 if batch_first else 1: "batch"}
    return Family(name, make, inputs, ((4, 2), (12, 6)) if kind == "Decoder" else ((2, 2), (6, 6)), axes=axes)


def toy(name: str, no: Mapping[str, str] | None = None, **options: object) -> Family:
    return Family(name, partial(ToyNet, **options), tokens, unprunable=no or {})


ROWS = [
    *(vit(name, f"{name}_patch16_224") for name in
      ("deit_tiny", "deit_small", "deit_base", "deit3_small", "beit_base", "beitv2_base", "vit_relpos_small")),
    *(vit(f"vit_{size}{tag}", f"vit_{size}_patch{patch}_224", depth=depth, **pool)
      for size, patch, depth in (("base", 16, 12), ("large", 16, 24), ("huge", 14, 32))
      for tag, pool in (("", {}), ("_avg", {"global_pool": "avg"}))),
    *(vit(f"swin_{size}", f"swin_{size}_patch4_window7_224", depth=depth, small=SWIN)
      for size, depth in (("tiny", 12), ("small", 24), ("base", 24))),
    vit("swinv2_tiny", "swinv2_tiny_window8_256", size=256, small=SWIN),
    *(vit(name, f"vit_small_patch14_{name}", size=518) for name in ("dinov2", "reg4_dinov2")),
    vit("dinov3", "vit_small_patch16_dinov3", size=256),
    vit("beit3_base", "beit3_base_patch16_224"),
    vit("eva02_tiny", "eva02_tiny_patch14_224", small=EVA),
    vit("eva02_base", "eva02_base_patch14_224", {"hidden": "norm"}, small=EVA),
    vit("siglip_base", "vit_base_patch16_siglip_224", more=(1, 1)),
    vit("vit_relpos_small_rpn", "vit_relpos_small_patch16_rpn_224"),
    vit("vit_qknorm", "vit_base_patch16_224", qk_norm=True),
    vit("xcit_tiny", "xcit_tiny_12_p16_224", {"xca": "channels"}, each=(0, 1), more=(2, 4)),
    vit("vit_parallel", "vit_base_patch16_224", each=(2, 2), block_fn=ParallelThingsBlock),
    vit("vit_22b", "vit_base_patch16_224", block_fn=ParallelScalingBlock, qk_norm=True, qkv_bias=False),
    vit("vit_22b_fused", "vit_base_patch16_224", block_fn=partial(ParallelScalingBlock, fuse_out_proj=True)),
    Family("tv_vit", lambda full: tv.vit_b_16() if full else tv.VisionTransformer(32, 8, 2, 3, 48, 96), images),
    Family("tv_swin", lambda full: tv.swin_t() if full else tv.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4]),
           images, ((4, 4), (12, 12))),
    *(hugging(f"hf_vit_{kernel}", "ViT", EYE, kernel=kernel) for kernel in ("eager", "sdpa")),
    *(hugging(f"hf_{arch.lower()}", arch, EYE) for arch in ("DeiT", "Dinov2")),
    hugging("hf_dinov2_swiglu", "Dinov2", EYE, both={"use_swiglu_ffn": True}),
    hugging("hf_dinov3", "DINOv3ViT", EYE, both={"num_register_tokens": 4}),
    hugging("hf_swin", "Swin", {**SWIN, "image_size": 32}, sites=((4, 4), (12, 12))),
    hugging("hf_vit_mae", "ViTMAE", EYE, "pixel_values noise", inputs=partial(images, noise=True)),
    hugging("hf_bert", "Bert", BERT, WORDS, inputs=words, axes={0: "batch", 1: "tokens"}),
    hugging("hf_clip_text", "CLIPText", TEXT, WORDS, POOLED, both=EOS, inputs=words),
    hugging("hf_clip_vision", "CLIPVision", EYE, outputs=POOLED),
    hugging("hf_clip", "CLIP", CLIP, "input_ids pixel_values attention_mask", "logits_per_image text_embeds",
            both={"text_config": EOS}, inputs=partial(words, image=True), sites=((4, 4), (24, 24))),
    stack("torch_encoder"),
    stack("torch_encoder_seq_first", batch_first=False),
    stack("torch_encoder_causal", causal="mask"),
    stack("torch_encoder_padding", keys="src src_key_padding_mask", second="padding"),
    stack("torch_decoder", "Decoder", "tgt memory", causal="tgt_mask", second="memory"),
    *(toy(f"toy_{layout}", layout=layout) for layout in ("einsum", "h3d", "d3h", "h_3d")),
    *(toy(f"toy_{name}", share=share) for name, share in (("gqa", 2), ("mqa", 4))),
    *(toy(f"toy_{ffn}", ffn=ffn) for ffn in ("geglu", "packed")),
    toy("toy_talking", {"heads": "mixed"}, layout="talking"),
    toy("toy_leak", {"hidden": "leaked"}, ffn="leak"),
    toy("toy_tied", {"heads": "another"}, tied=True),
]
TWINS = {  # small, they are the very model of another row
    "deit_small", "deit_base", "beitv2_base", "vit_base", "vit_large", "vit_huge", "vit_large_avg", "vit_huge_avg", "swin_small",
    "swin_base",
}
DISTINCT = [row.name for row in ROWS if row.name not in TWINS]
FAMILIES: dict[str, Family] = {row.name: row for row in (*ROWS, *MORE, *HYBRIDS, *DOWNSTREAM)}
