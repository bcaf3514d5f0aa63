"""Precisions that a device has no instructions for are told, with one that it has."""

import pytest
import torch

from clsp_plugin.diffusion.denoiser import build_unet
from clsp_plugin.diffusion.drawer import Drawer, GenerationSettings
from clsp_plugin.engine.trainer import new_trainer
from clsp_plugin.system import emulation
from clsp_plugin.system.emulation import warn_if_emulated


def train(precision):
    new_trainer(accelerator="cpu", devices=1, logger=False, precision=precision)


def draw(precision):
    unet = build_unet(8, {"block_out_channels": [8, 16], "attention_resolutions": [4]})
    settings = GenerationSettings(precision=precision, device="cpu", batch_size=2)
    Drawer(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), unet, {}, settings)


@pytest.mark.parametrize("begin", [train, draw])
@pytest.mark.parametrize(
    ("precision", "native", "told"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_emulated_bfloat16_is_told(monkeypatch, recwarn, begin, precision, native, told):
    monkeypatch.setattr(emulation, "_has_bfloat16", lambda device: native)
    begin(precision)
    said = [str(one.message) for one in recwarn if "bfloat16" in str(one.message)]
    assert bool(said) == told
    assert all("as long as precision=32-true" in one for one in said)


def test_a_gpu_without_bfloat16_is_told_what_it_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.warns(UserWarning, match="GPU has no .* as precision=16-mixed"):
        warn_if_emulated("bf16-mixed", torch.device("cuda", 0))


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="a processor with AVX-512",
)
def test_avx512_is_enough(recwarn):
    warn_if_emulated("bf16-mixed", torch.device("cpu"))
    assert not recwarn.list
