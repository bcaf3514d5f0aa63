"""``clsp embed``, and a denoiser that is conditioned on what it wrote: RCG and RCG-cluster."""

import sys

import pytest
import torch

from clsp_plugin import cli
from clsp_plugin.candidates.condition import load_condition
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.embed import cluster, embed
from clsp_plugin.evaluation.frozen import Encoder

DATA = ["data.num_train=48", "data.num_val=20"]
DENOISER = ["block_out_channels=[8,8]", "layers_per_block=1", "max_epochs=1", "batch_size=16"]


def test_clusters_are_those_of_directions():
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(60) % 3
    directions = torch.eye(5)[own] + 0.1 * torch.randn(60, 5, generator=generator)
    lengths = 1 + 9 * torch.rand(60, 1, generator=generator)
    found = cluster(directions * lengths, 3, seed=0)
    assert len({(a, b) for a, b in zip(own.tolist(), found.tolist(), strict=True)}) == 3
    for number in (1, 61):
        with pytest.raises(ClspError, match="is not 2 to 60, the number of images"):
            cluster(directions, number, seed=0)


@pytest.fixture
def encoder(tiny):
    return pretrain(tiny("simclr", "max_epochs=1")).run_dir


def test_features_are_the_encoders(encoder, digits48, tmp_path):
    said = embed(encoder, digits48, tmp_path / "f.npz")
    network = Encoder(encoder)
    features = network(digits48.images.permute(0, 3, 1, 2))
    expected = (features - features.mean(1, keepdim=True)) / features.std(1, False, keepdim=True)
    told = load_condition(tmp_path / "f.npz", digits48)
    torch.testing.assert_close(told, expected, atol=1e-2, rtol=1e-2)
    assert f"{network.num_features} features of 48 images" in said
    with pytest.raises(ClspError, match="already exists"):
        embed(encoder, digits48, tmp_path / "f.npz")


@pytest.mark.parametrize("options", [[], ["--clusters", "4"]])
def test_a_store_from_what_was_embedded(encoder, tmp_path, monkeypatch, capsys, options):
    def clsp(*words):
        monkeypatch.setattr(sys, "argv", ["clsp", *map(str, words)])
        cli.main()

    file, denoiser, store = (tmp_path / name for name in ("told.npz", "denoiser", "store"))
    clsp("embed", encoder, *DATA, "--out", file, *options)
    clsp("denoiser", *DATA, *DENOISER, f"condition={file}", f"out={denoiser}")
    draw = ["generate", *DATA, "steps=2", "w=1", "num_candidates=2", f"denoiser={denoiser}"]
    clsp(*draw, f"condition={file}", f"out={store}")
    assert CandidateStore(store).manifest.condition is not None
    inspect = ["inspect", store, "--config-name", "digits/generate", *DATA, "--denoiser", denoiser]
    clsp(*inspect, "--condition", file)
    assert (store / "report/masked.png").exists()
    with pytest.raises(SystemExit):
        clsp(*inspect)  # the labels are another condition
    assert "was made with another condition" in capsys.readouterr().err


def test_a_frechet_distance_while_a_denoiser_is_trained(encoder, tmp_path, monkeypatch, capsys):
    def train(*words):
        words = [*DATA, *DENOISER, f"out={tmp_path / 'denoiser'}", f"fid={encoder}", *words]
        monkeypatch.setattr(sys, "argv", ["clsp", "denoiser", *map(str, words)])
        cli.main()

    with pytest.raises(SystemExit):
        train()
    assert "set sample_every too" in capsys.readouterr().err
    train("sample_every=1", "fid_images=16")
    (_, line) = (tmp_path / "denoiser.samples/scores.csv").read_text().splitlines()
    assert line.startswith("1,")
    assert float(line.split(",")[1]) > 0
