"""Checkpoints of the authors' code: converted, they estimate the same noise.

The oracle evaluates a checkpoint by its own names, one tensor operation after another. Where
CLSP_DIR names a clone of the authors' code, their own network stands beside it.
"""

import copy
import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.diffusion.convert import convert_unet, import_denoiser
from clsp_plugin.diffusion.denoiser import denoiser_hash, load_denoiser
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.diffusion.interpolation import guided_noise, interpolated_noise
from clsp_plugin.diffusion.schedulers import make_scheduler
from clsp_plugin.errors import ClspError

SMALL = {"T": 1000, "ch": 32, "ch_mult": [1, 2, 2], "attn": [1], "num_res_blocks": 2}


def weights(T, ch, ch_mult, attn, num_res_blocks, seed=0):
    """A random checkpoint with the names and shapes of the authors' UNet."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(name, *shape):
        spread = math.prod(shape[1:]) ** -0.5
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * spread
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    def block(name, inside, out, attention):
        norm(f"{name}.block1.0", inside)
        layer(f"{name}.block1.2", out, inside, 3, 3)
        layer(f"{name}.temb_proj.1", out, 4 * ch)
        norm(f"{name}.block2.0", out)
        layer(f"{name}.block2.3", out, out, 3, 3)
        if inside != out:
            layer(f"{name}.shortcut", out, inside, 1, 1)
        if attention:
            norm(f"{name}.attn.group_norm", out)
            for part in ("proj_q", "proj_k", "proj_v", "proj"):
                layer(f"{name}.attn.{part}", out, out, 1, 1)

    time = "time_embedding.timembedding"
    state[f"{time}.0.weight"] = torch.tensor(
        [[f(t * 10000 ** (-i / ch)) for i in range(0, ch, 2) for f in (math.sin, math.cos)]
         for t in range(T)]
    )  # fmt: skip
    layer(f"{time}.1", 4 * ch, ch)
    layer(f"{time}.3", 4 * ch, 4 * ch)
    layer("encoder.head", ch, 3, 3, 3)
    number, now, skips = 0, ch, [ch]
    for level, factor in enumerate(ch_mult):
        for _ in range(num_res_blocks):
            block(f"encoder.downblocks.{number}", now, ch * factor, level in attn)
            number, now = number + 1, ch * factor
            skips.append(now)
        if level < len(ch_mult) - 1:
            layer(f"encoder.downblocks.{number}.main", now, now, 3, 3)
            number += 1
            skips.append(now)
    for number in (0, 1):
        block(f"encoder.middleblocks.{number}", now, now, number == 0)
    layer("encoder.projector.0", 4 * now, now)
    norm("encoder.projector.1", 4 * now)
    state["encoder.projector.1.running_mean"] = torch.zeros(4 * now)
    state["encoder.projector.1.running_var"] = torch.ones(4 * now)
    state["encoder.projector.1.num_batches_tracked"] = torch.tensor(0)
    layer("encoder.projector.3", 256, 4 * now)
    number = 0
    for level, factor in reversed(list(enumerate(ch_mult))):
        for _ in range(num_res_blocks + 1):
            block(f"decoder.upblocks.{number}", now + skips.pop(), ch * factor, level in attn)
            number, now = number + 1, ch * factor
        if level:
            layer(f"decoder.upblocks.{number}.main", now, now, 3, 3)
            number += 1
    norm("decoder.tail.0", now)
    layer("decoder.tail.2", 3, now, 3, 3)
    return state


class Oracle:
    """Evaluates a checkpoint of the authors' UNet from its tensors."""

    def __init__(self, state):
        self.state = state

    def of(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def norm(self, x, name):
        return F.group_norm(x, 32, *self.of(name))

    def attention(self, x, name):
        h = self.norm(x, f"{name}.group_norm")
        q, k, v = (F.conv2d(h, *self.of(f"{name}.proj_{part}")).flatten(2) for part in "qkv")
        weight = torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1])
        h = torch.einsum("bij,bcj->bci", weight.softmax(2), v).view_as(x)
        return x + F.conv2d(h, *self.of(f"{name}.proj"))

    def block(self, x, emb, name):
        h = F.conv2d(F.silu(self.norm(x, f"{name}.block1.0")), *self.of(f"{name}.block1.2"), 1, 1)
        h = h + F.linear(F.silu(emb), *self.of(f"{name}.temb_proj.1"))[:, :, None, None]
        h = F.conv2d(F.silu(self.norm(h, f"{name}.block2.0")), *self.of(f"{name}.block2.3"), 1, 1)
        short = f"{name}.shortcut"
        h = h + (F.conv2d(x, *self.of(short)) if f"{short}.weight" in self.state else x)
        with_attention = f"{name}.attn.proj.weight" in self.state
        return self.attention(h, f"{name}.attn") if with_attention else h

    def numbers(self, prefix):
        found = {int(key[len(prefix) :].split(".")[0]) for key in self.state if prefix in key}
        return [f"{prefix}{number}" for number in sorted(found)]

    def time(self, t):
        name = "time_embedding.timembedding"
        h = F.linear(self.state[f"{name}.0.weight"][t], *self.of(f"{name}.1"))
        return F.linear(F.silu(h), *self.of(f"{name}.3"))

    def encode(self, x, emb):
        h = F.conv2d(x, *self.of("encoder.head"), 1, 1)
        skips = [h]
        for name in self.numbers("encoder.downblocks."):
            down = f"{name}.main.weight" in self.state
            h = F.conv2d(h, *self.of(f"{name}.main"), 2, 1) if down else self.block(h, emb, name)
            skips.append(h)
        for name in self.numbers("encoder.middleblocks."):
            h = self.block(h, emb, name)
        return h, skips

    def __call__(self, x, t, anchor=None, w=1.0):
        emb = self.time(t)
        h, skips = self.encode(x, emb)
        if anchor is not None:
            h = w * h + (1 - w) * self.encode(anchor, emb)[0]
        for name in self.numbers("decoder.upblocks."):
            if f"{name}.main.weight" in self.state:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = F.conv2d(h, *self.of(f"{name}.main"), 1, 1)
            else:
                h = self.block(torch.cat([h, skips.pop()], 1), emb, name)
        return F.conv2d(F.silu(self.norm(h, "decoder.tail.0")), *self.of("decoder.tail.2"), 1, 1)


def draws(size=16, batch=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, size, size, generator=generator) for _ in range(2)]


@torch.no_grad()
def compare(network, unet, size=16):
    """Plain and anchor-interpolated estimates of an authors' network and of its conversion."""
    x, anchor = draws(size)
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(unet(x, t).sample, network(x, t), atol=1e-4, rtol=0)
    for w in (0.0, 0.1, 0.7):
        for step in (9, 989):
            theirs = network(x, torch.full((3,), step), anchor, w)
            ours = interpolated_noise(unet, x, anchor, step, w)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
            assert theirs.std() > 0.1  # there is something to agree on


@pytest.mark.parametrize(
    "change", [{}, {"attn": []}, {"attn": [0, 2]}, {"ch_mult": [1, 2]}, {"num_res_blocks": 1}]
)
def test_the_conversion_estimates_the_same_noise(change):
    state = weights(**{**SMALL, **change})
    compare(Oracle(state), convert_unet(state, 16))


def test_a_time_embedding_that_was_learned_is_kept():
    state = weights(**SMALL)
    state["time_embedding.timembedding.0.weight"] += 0.1 * torch.randn(1000, 32)
    unet = convert_unet(state, 16)
    assert unet.config.time_embedding_type == "learned"
    compare(Oracle(state), unet)
    assert convert_unet(weights(**SMALL), 16).config.time_embedding_type == "positional"


@pytest.fixture
def authors(request):
    """A module of the authors' UNets."""
    folder = os.environ.get("CLSP_DIR")
    if not folder:
        pytest.skip("CLSP_DIR does not name a clone of the authors' code")
    file = Path(folder) / f"models/{getattr(request, 'param', 'unet')}.py"
    spec = importlib.util.spec_from_file_location("authors_unet", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_authors_network_itself(authors):
    torch.manual_seed(0)
    network = authors.UNet(**SMALL, dropout=0.1).eval()
    with torch.no_grad():  # some of theirs begin at almost nothing
        for parameter in network.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * max(parameter.shape[1:].numel(), 4) ** -0.5
            )
    # the sinusoids are a parameter of theirs too
    fresh = authors.UNet(**SMALL, dropout=0.1).time_embedding.timembedding[0].weight
    network.time_embedding.timembedding[0].weight.data.copy_(fresh)

    def forward(x, t, anchor=None, w=1.0):
        return network(x, t) if anchor is None else network.forward_with_anchor(x, t, anchor, w)

    state = network.state_dict()
    compare(forward, convert_unet(state, 16))
    x, anchor = draws()
    t = torch.full((3,), 400)
    with torch.no_grad():  # and the oracle is right about it
        expected = forward(x, t, anchor, 0.1)
        torch.testing.assert_close(Oracle(state)(x, t, anchor, 0.1), expected, atol=1e-4, rtol=0)
    assert listing(state) == LISTINGS["unet"]


CONDITIONAL = {"T": 1000, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "num_classes": 4}


def conditional_weights(num_classes, attn=(0, 1, 2), seed=0, **keys):
    """A random checkpoint of the authors' class-conditional UNet: attention on the way down."""
    generator = torch.Generator().manual_seed(seed + 100)
    ch = keys["ch"]

    def draw(*shape):
        return torch.randn(shape, generator=generator) * max(math.prod(shape[1:]), 4) ** -0.5

    state = {}
    plain = weights(attn=list(attn), seed=seed, **keys)
    for name, value in plain.items():
        if name.startswith("encoder.projector") or (".attn." in name and "decoder." in name):
            continue
        name = name.removeprefix("encoder.").removeprefix("decoder.")
        if "downblocks" in name and ".main." in name:
            state[name.replace("main", "c1")] = value
            shape = (*value.shape[:2], 5, 5) if value.ndim == 4 else value.shape
            state[name.replace("main", "c2")] = draw(*shape)
        elif ".main." in name:
            state[name.replace("main", "c")] = value
            shape = (*value.shape[:2], 5, 5) if value.ndim == 4 else value.shape
            state[name.replace("main", "t")] = draw(*shape)
        else:
            state[name] = value
        if ".temb_proj." in name:
            state[name.replace("temb", "cond")] = draw(*value.shape)
    state["time_embedding.timembedding.0.weight"] += 0.1 * draw(1000, ch)  # theirs is learned
    state["cond_embedding.condEmbedding.0.weight"] = 4 * draw(num_classes + 1, ch)
    state["cond_embedding.condEmbedding.0.weight"][0] = 0
    for number, inside in ((1, ch), (3, 4 * ch)):
        state[f"cond_embedding.condEmbedding.{number}.weight"] = draw(4 * ch, inside)
        state[f"cond_embedding.condEmbedding.{number}.bias"] = draw(4 * ch)
    return state


class ConditionalOracle(Oracle):
    """Evaluates a checkpoint of the authors' class-conditional UNet from its tensors."""

    def embed(self, labels):
        name = "cond_embedding.condEmbedding"
        h = F.linear(self.state[f"{name}.0.weight"][labels], *self.of(f"{name}.1"))
        return F.linear(F.silu(h), *self.of(f"{name}.3"))

    def block(self, x, emb, name):
        step, kind = emb
        h = F.conv2d(F.silu(self.norm(x, f"{name}.block1.0")), *self.of(f"{name}.block1.2"), 1, 1)
        h = h + F.linear(F.silu(step), *self.of(f"{name}.temb_proj.1"))[:, :, None, None]
        h = h + F.linear(F.silu(kind), *self.of(f"{name}.cond_proj.1"))[:, :, None, None]
        h = F.conv2d(F.silu(self.norm(h, f"{name}.block2.0")), *self.of(f"{name}.block2.3"), 1, 1)
        short = f"{name}.shortcut"
        h = h + (F.conv2d(x, *self.of(short)) if f"{short}.weight" in self.state else x)
        with_attention = f"{name}.attn.proj.weight" in self.state
        return self.attention(h, f"{name}.attn") if with_attention else h

    def __call__(self, x, t, labels):
        emb = self.time(t), self.embed(labels)
        h = F.conv2d(x, *self.of("head"), 1, 1)
        skips = [h]
        for name in self.numbers("downblocks."):
            if f"{name}.c1.weight" in self.state:
                h = F.conv2d(h, *self.of(f"{name}.c1"), 2, 1) + F.conv2d(
                    h, *self.of(f"{name}.c2"), 2, 2
                )
            else:
                h = self.block(h, emb, name)
            skips.append(h)
        for name in self.numbers("middleblocks."):
            h = self.block(h, emb, name)
        for name in self.numbers("upblocks."):
            if f"{name}.t.weight" in self.state:
                h = F.conv_transpose2d(h, *self.of(f"{name}.t"), 2, 2, 1)
                h = F.conv2d(h, *self.of(f"{name}.c"), 1, 1)
            else:
                h = self.block(torch.cat([h, skips.pop()], 1), emb, name)
        return F.conv2d(F.silu(self.norm(h, "tail.0")), *self.of("tail.2"), 1, 1)


@torch.no_grad()
def compare_conditional(network, unet, size=16):
    """Estimates of an authors' class-conditional network and of its conversion, and guided."""
    x, anchor = draws(size)
    t, labels = torch.tensor([0, 500, 999]), torch.tensor([0, 2, 4])
    torch.testing.assert_close(unet(x, t, labels).sample, network(x, t, labels), atol=1e-4, rtol=0)
    t, classes = torch.full((3,), 700), torch.tensor([0, 1, 3])
    expected = 2.8 * network(x, t, classes + 1) - 1.8 * network(x, t, torch.zeros_like(classes))
    guided = guided_noise(unet, x, anchor, 700, 1.0, classes, 1.8)
    torch.testing.assert_close(guided, expected, atol=3e-4, rtol=0)  # 4.6 times one estimate's
    assert (expected - network(x, t, classes + 1)).std() > 0.01  # the class matters


def test_the_conversion_of_the_class_conditional_network():
    state = conditional_weights(**CONDITIONAL)
    compare_conditional(ConditionalOracle(state), convert_unet(state, 16))


@pytest.mark.parametrize("authors", ["unet_condition"], indirect=True)
def test_the_authors_class_conditional_network_itself(authors):
    network = authors.UNet(**CONDITIONAL, dropout=0.15).eval()
    state = conditional_weights(**CONDITIONAL)
    network.load_state_dict(state)  # every name and shape is theirs
    compare_conditional(network, convert_unet(state, 16))
    x, t, labels = draws()[0], torch.full((3,), 7), torch.tensor([1, 0, 3])
    with torch.no_grad():
        torch.testing.assert_close(
            ConditionalOracle(state)(x, t, labels), network(x, t, labels), atol=1e-4, rtol=0
        )


def listing(state):
    """Names, types and shapes of a state dict."""
    return {
        name: [str(value.dtype).removeprefix("torch."), *value.shape]
        for name, value in state.items()
    }


# of the authors' own classes, with the settings SMALL and CONDITIONAL
LISTINGS = json.loads((Path(__file__).parent / "authors_weights.json").read_text())


def test_the_weights_of_these_tests_are_those_of_the_authors_classes():
    assert listing(weights(**SMALL)) == LISTINGS["unet"]
    assert listing(conditional_weights(**CONDITIONAL)) == LISTINGS["unet_condition"]


def as_their_script_saves(network, file, *inputs):
    """A step of their training, whose averaged weights are saved as in their train_*diffusion.py"""
    averaged = copy.deepcopy(network)
    network.train()(*inputs)
    target = averaged.state_dict()
    for name, value in network.state_dict().items():
        target[name].data.copy_(target[name].data * 0.9999 + value.data * (1 - 0.9999))
    torch.save(averaged.state_dict(), file)
    return averaged.eval()


def test_what_their_script_saves_is_imported(authors, tmp_path):
    torch.manual_seed(0)
    network = authors.UNet(**SMALL, dropout=0.1)
    network.load_state_dict(weights(**SMALL))
    file = tmp_path / "ckpt_ema_199_.pt"
    network = as_their_script_saves(network, file, draws()[0], torch.tensor([0, 500, 999]))
    import_denoiser(file, tmp_path / "out", image_size=16)

    def forward(x, t, anchor=None, w=1.0):
        return network(x, t) if anchor is None else network.forward_with_anchor(x, t, anchor, w)

    compare(forward, load_denoiser(tmp_path / "out")[0])


@pytest.mark.parametrize("authors", ["unet_condition"], indirect=True)
def test_what_their_conditional_script_saves_is_imported(authors, tmp_path):
    torch.manual_seed(0)
    network = authors.UNet(**CONDITIONAL, dropout=0.1)
    network.load_state_dict(conditional_weights(**CONDITIONAL))
    assert listing(network.state_dict()) == LISTINGS["unet_condition"]
    t, labels = torch.tensor([0, 500, 999]), torch.tensor([0, 2, 4])
    file = tmp_path / "ckpt_ema_199_.pt"
    network = as_their_script_saves(network, file, draws()[0], t, labels)
    import_denoiser(file, tmp_path / "out", image_size=16, beta_end=0.028)
    compare_conditional(network, load_denoiser(tmp_path / "out")[0])


def test_weights_among_other_things_and_under_longer_names_are_the_same(tmp_path):
    state = weights(**SMALL)
    expected = convert_unet(state, 16).state_dict()
    longer = {f"module.model.{name}": value for name, value in state.items()}
    other = weights(**SMALL, seed=8)
    for number, content in enumerate(
        [longer, {"epoch": 3, "state_dict": state}, {"model": other, "ema_model": longer}]
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        import_denoiser(tmp_path / f"{number}.pt", tmp_path / f"out{number}", image_size=16)
        found = load_denoiser(tmp_path / f"out{number}")[0].state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("make", [weights, conditional_weights])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_to_float32(make, dtype):
    settings = SMALL if make is weights else CONDITIONAL
    state = make(**settings)
    narrow = {name: value.to(dtype) if value.ndim else value for name, value in state.items()}
    wide = {name: value.float() for name, value in narrow.items()}
    if make is weights:  # its table is known exactly
        wide["time_embedding.timembedding.0.weight"] = state["time_embedding.timembedding.0.weight"]
    found, expected = convert_unet(narrow, 16), convert_unet(wide, 16).state_dict()
    assert found.config.time_embedding_type == ("positional" if make is weights else "learned")
    for name, value in found.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


def test_a_class_conditional_file_draws_by_label(tmp_path):
    torch.save(conditional_weights(**CONDITIONAL), tmp_path / "ckpt.pt")
    import_denoiser(tmp_path / "ckpt.pt", tmp_path / "out", image_size=16, beta_end=0.028)
    unet, _ = load_denoiser(tmp_path / "out")
    compare_conditional(ConditionalOracle(conditional_weights(**CONDITIONAL)), unet)
    images = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    cfg = {"num_candidates": 2, "steps": 2, "device": "cpu", "clip": True}
    cfg |= {"w": 1.0, "guidance": 1.8, "eta": 1.0}

    def draw(name, labels, **keys):
        generate_candidates(
            images, "abc", tmp_path / "out", tmp_path / name, {**cfg, **keys},
            labels=torch.tensor(labels),
        )  # fmt: skip
        return CandidateStore(tmp_path / name).images(range(4)).astype(int)

    first, second = draw("a", [0, 1, 2, 3]), draw("b", [0, 1, 3, 3])
    assert np.abs(first - second).max(axis=(1, 2, 3, 4)).tolist()[:2] == [0, 0]
    assert np.abs(first - second)[2].mean() > 1  # another label, another image
    assert np.abs(first - draw("c", [0, 1, 2, 3], guidance=0.0)).mean() > 1
    assert CandidateStore(tmp_path / "a").manifest.guidance == 1.8
    with pytest.raises(ClspError, match="knows 4 classes, the images have 5"):
        draw("d", [0, 1, 2, 4])
    with pytest.raises(ClspError, match="class-conditional, and the images have no labels"):
        draw("d", [-1, -1, -1, -1])


def test_a_file_becomes_a_denoiser(tmp_path):
    state = {f"module.{name}": value for name, value in weights(**SMALL, seed=3).items()}
    torch.save(state, tmp_path / "ckpt_ema_1999_.pt")
    name = import_denoiser(
        tmp_path / "ckpt_ema_1999_.pt", tmp_path / "out", image_size=16, beta_end=0.028
    )
    unet, config = load_denoiser(tmp_path / "out")
    assert denoiser_hash(unet, config) == name
    assert unet.config.sample_size == 16
    assert make_scheduler(config, 10).betas[-1] == pytest.approx(0.028)
    compare(Oracle(weights(**SMALL, seed=3)), unet)
    with pytest.raises(ClspError, match="already exists"):
        import_denoiser(tmp_path / "ckpt_ema_1999_.pt", tmp_path / "out")


def test_files_that_are_refused(tmp_path):
    def refused(content, message, **keys):
        file = tmp_path / "file.pt"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(ClspError, match=message):
            import_denoiser(file, tmp_path / "out", **{"image_size": 16, **keys})
        assert not (tmp_path / "out").exists()

    state = weights(**SMALL)
    refused(b"not a checkpoint", "not a checkpoint that torch can read")
    refused({"epoch": Path("3")}, "that torch can read .*objects in it that are neither weights")
    refused({"epoch": 3}, "holds no state dict")
    refused({"state_dict": {"epoch": 3}}, "holds no state dict")
    refused({"weight": torch.ones(1)}, "not the weights of the authors' UNet")
    refused({**state, "extra.weight": torch.ones(1)}, "no place for, extra.weight")
    refused({k: v for k, v in state.items() if k != "encoder.head.weight"}, "conv_in.weight")
    refused({**state, "cond_embedding.condEmbedding.0.weight": torch.ones(1)}, "condEmbedding.1")
    head = state["encoder.head.weight"]
    for odd in (
        head * float("nan"),
        head.int(),
        torch.zeros(()).expand(head.shape),
        head.to_sparse(),
    ):
        refused(
            {**state, "encoder.head.weight": odd}, "encoder.head.weight in .* no tensor of finite"
        )
    far = f"encoder.downblocks.{10**12}.main.weight"
    refused({**state, far: head}, "without those before it")
    refused(state, "cannot be halved 2 times", image_size=18)
    refused(state, "Betas from 0.0001 to 2 ", beta_end=2.0)
    with pytest.raises(ClspError, match="There is no file"):
        import_denoiser(tmp_path / "nowhere.pt", tmp_path / "out")


def test_what_the_system_refuses_is_not_called_damaged(tmp_path, no_file_to_open):
    torch.save({"epoch": 3}, tmp_path / "file.pt")
    with no_file_to_open(), pytest.raises(OSError, match="Too many open files"):
        import_denoiser(tmp_path / "file.pt", tmp_path / "out", image_size=16)
