"""The FID, through the loading of its network's weights, from a file of the real format."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torchmetrics.image.fid import NoTrainInceptionV3

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.errors import ClspError
from clsp_plugin.inspection.report import inspect_store
from clsp_plugin.inspection.summary import summary


class Unloaded(FeatureExtractorInceptionV3):
    """The network with the weights that it begins with."""

    def load_state_dict(self, state_dict):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the weights are looked for before they are fetched; none are there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is fetched in a test
    file = tmp_path / "torch/hub/checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    return file


@pytest.fixture
def weights(home, tmp_path):
    """Random weights, through which something is left of an image."""
    torch.save({}, tmp_path / "none.pth")
    network = Unloaded("inception", ["2048"], str(tmp_path / "none.pth"))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            std = math.sqrt(2 / parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    torch.save(network.state_dict(), home)
    return home


def test_the_number_is_the_formula(weights, write_store, digits48, tmp_path):
    array = digits48.subset(torch.arange(16), "sixteen")
    store = write_store(tmp_path / "store", array)
    report = inspect_store(store, array, tmp_path / "report", fid=True)
    network = NoTrainInceptionV3("inception", ["2048"], str(weights))
    drawn = torch.from_numpy(CandidateStore(store).images(range(16)))[:, 0]
    a, b = (
        network(images.permute(0, 3, 1, 2)).double().numpy() for images in (array.images, drawn)
    )
    assert a.shape == (16, 2048)
    between = ((a.mean(0) - b.mean(0)) ** 2).sum()
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    # the trace of the root of the product of two covariances, from the smaller side
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = between + (a**2).sum() + (b**2).sum() - 2 * root
    assert expected > 1
    assert report["fid"] == pytest.approx(expected, rel=1e-3)
    assert f"FID {report['fid']:.2f}" in summary(report)


def test_weights_that_are_not_there_are_told_before_the_work(home, store, digits48):
    out = store / "report"
    with pytest.raises(ClspError, match=f"put the file {URL_INCEPTION_V3} at {home}"):
        inspect_store(store, digits48, out, fid=True)
    assert not out.exists()
    home.write_bytes(b"cut off")
    with pytest.raises(ClspError, match="could not be fetched or read"):
        inspect_store(store, digits48, out, fid=True)
