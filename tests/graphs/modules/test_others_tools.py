"""Others' tools take a pruned module for what it is: quantizers, adapters, the methods of its library."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from own_modules import EVERY, WRITTEN, dense, images, numbers, off, pruned
from safetensors.torch import load_file
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor


@EVERY
def test_what_quantizes_finds_its_linears(name: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    small = pruned(name).model
    with torch.no_grad():
        expected = small(images(3))
        weights = copy.deepcopy(small)
        quantize_(weights, Int8WeightOnlyConfig())
        dynamic = torch.ao.quantization.quantize_dynamic(copy.deepcopy(small), {nn.Linear}, dtype=torch.qint8)
        for made in (weights, dynamic):
            assert 0 < off(expected, made(images(3))) < 0.1
    assert not isinstance(dynamic.get_submodule(WRITTEN[name][2].format(0)), nn.Linear)


@pytest.mark.parametrize("name", ["timm_vit", "hf_vit"])
def test_adapters_attach(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    small = pruned(name).model
    expected = small(images(3))
    adapted = get_peft_model(copy.deepcopy(small), LoraConfig(target_modules=list(WRITTEN[name][1]), init_lora_weights=False))
    assert off(expected, adapted.base_model.model(images(3))) > 1e-3
    adapted.base_model.model(images(3))
    numbers(adapted.base_model.model(images(3))).sum().backward()
    grads = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    assert grads and all(g is not None for g in grads)


@pytest.mark.parametrize("name", ["timm_vit", "hf_clip"])
def test_pt2e_finds_its_linears(name: str) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    small = pruned(name).model
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        ready = prepare_pt2e(torch.export.export(small, (images(),)).module(), quantizer)
        ready(images())
        made = convert_pt2e(ready)
        assert 0 < off(small(images()), made(images())) < 0.2
    quantized = [n for n in made.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert len(quantized) >= 2 * sum(isinstance(m, nn.Linear) for m in small.modules()) / 2


def test_methods_of_timm() -> None:
    model, small = dense("timm_vit"), pruned("timm_vit").model
    with torch.no_grad():
        assert small.forward_features(images(3)).shape == model.forward_features(images(3)).shape
        assert off(small(images(3)), small.forward_head(small.forward_features(images(3)))) == 0
        assert small.forward_intermediates(images(3), intermediates_only=True)[0].shape[0] == 3
        small.set_grad_checkpointing()
        assert off(small.eval()(images(3)), small.train()(images(3))) < 1e-6
        small.reset_classifier(4)
        assert small(images(3)).shape == (3, 4)
        nodes = create_feature_extractor(pruned("torchvision_vit").model, ["encoder.layers.encoder_layer_0"])
        assert nodes(images(2))["encoder.layers.encoder_layer_0"].shape == (2, 17, 64)


def test_folders_of_transformers(tmp_path: Path) -> None:
    small = pruned("hf_vit").model
    assert small.config.hidden_size == 64
    small.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")  # under the names of transformers' own files
    shapes = [sorted(tuple(t.shape) for t in some.values()) for some in (saved, small.state_dict())]
    assert shapes[0] == shapes[1] and (tmp_path / "config.json").exists()
    with pytest.raises(ValueError, match="was made smaller for attention_mask=None"):
        small.vit.layers[0].attention(torch.zeros(1, 17, 64), torch.zeros(1, 1, 17, 17, dtype=torch.bool))
