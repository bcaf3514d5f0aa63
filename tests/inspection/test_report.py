"""The report about a store: its numbers in cases where they are known, and all of it once."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import InterpolationMode as Mode

from clsp_plugin import cli
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import load_images
from clsp_plugin.diffusion.denoiser import build_unet, save_denoiser
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.frozen import Encoder
from clsp_plugin.evaluation.similarity import label_agreement
from clsp_plugin.inspection.frechet import frechet_distance, frechet_from
from clsp_plugin.inspection.hardness import closeness
from clsp_plugin.inspection.report import first_candidates, inspect_store, verify_store
from clsp_plugin.inspection.summary import summary


def random_images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # a colour of its own for each image, and noise that has none
    colour = torch.randint(0, 200, (*shape, 1, 1, 3), generator=generator)
    noise = torch.randint(0, 56, (*shape, 8, 8, 3), generator=generator)
    return (colour + noise).to(torch.uint8)


def test_closeness_where_it_is_known():
    anchors = random_images(50)
    same = closeness(anchors, anchors[:, None].repeat(1, 2, 1, 1, 1))
    for found in same.values():
        assert (found["own"], found["closer"], found["error"]) == (0, 1, 0)
    # a third of the way to grey: the colours differ by what the formula says, layouts likewise
    grey = (anchors.float() * 2 / 3).to(torch.uint8)[:, None]
    expected = (anchors.float().mean((1, 2)) - grey[:, 0].float().mean((1, 2))).square().mean()
    assert closeness(anchors, grey)["colour"]["own"] == pytest.approx(expected.sqrt().item(), 1e-4)
    shifted = closeness(anchors, (anchors // 2 + 100)[:, None])
    assert shifted["colour"]["own"] > 10
    strangers = closeness(anchors, random_images(50, 4, seed=1))
    for found in strangers.values():
        assert abs(found["closer"] - 0.5) < 4 * found["error"] + 0.02
        assert found["ratio"] == pytest.approx(1, abs=0.15)


def test_colour_and_layout_are_told_apart():
    anchors = random_images(40) // 2
    brighter = closeness(anchors, (anchors + 100)[:, None])
    assert brighter["colour"]["own"] == pytest.approx(100, abs=1e-3)
    assert brighter["layout"]["own"] == pytest.approx(0, abs=1e-3)
    turned = closeness(anchors, anchors.flip(1)[:, None])  # upside down
    assert turned["colour"]["own"] == pytest.approx(0, abs=1e-3)
    assert turned["layout"]["own"] > 1


class Pixel(nn.Module):
    """Features that are known: two numbers of the first pixel."""

    num_features = 2

    def forward(self, images):
        return images[:, :2, 0, 0].float()


def test_label_agreement_where_it_is_known():
    # the first pixel names the class, in one of its channels
    targets = torch.arange(40) % 2
    images = random_images(40)
    images[:, 0, 0, 0] = torch.where(targets == 0, 255, 10)
    images[:, 0, 0, 1] = torch.where(targets == 0, 10, 255)
    array = ImageArray(images, targets, ("a", "b"), "toy")
    rows = list(range(0, 40, 3))
    candidates = images[rows][:, None].repeat(1, 3, 1, 1, 1)
    found = label_agreement(Pixel(), array, candidates, rows)
    assert (found["candidates"], found["anchors"]) == (100, 100)
    assert found["chance"] < 100
    candidates[:, 1] = candidates[:, 1].flip(-1)[..., [1, 2, 0]]  # one of three changes its class
    assert label_agreement(Pixel(), array, candidates, rows)["candidates"] == pytest.approx(200 / 3)


def test_the_frechet_distance_is_its_formula():
    real, drawn = random_images(400), random_images(300, seed=1)
    drawn = drawn // 2
    a, b = (Pixel()(x.permute(0, 3, 1, 2)).numpy().astype(np.float64) for x in (real, drawn))
    cov = [np.cov(x, rowvar=False) for x in (a, b)]
    root = np.linalg.eigvals(cov[0] @ cov[1]).real ** 0.5
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, cov)) - 2 * root.sum()
    assert frechet_distance(Pixel(), real, drawn) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(Pixel(), real, real) == pytest.approx(0, abs=1e-3)
    again = frechet_from(Pixel(), real)  # the drawn ones of before are forgotten
    assert again(real) == pytest.approx(0, abs=1e-3)
    assert again(drawn) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def made(tmp_path, digits48):
    """A denoiser and its store for 48 digits."""
    torch.manual_seed(0)
    settings = {"block_out_channels": [8, 8], "layers_per_block": 1, "attention_resolutions": []}
    save_denoiser(build_unet(16, settings), tmp_path / "denoiser")
    cfg = {"num_candidates": 2, "steps": 2, "clip": True, "device": "cpu"}
    generate_candidates(
        digits48.images, digits48.fingerprint, tmp_path / "denoiser", tmp_path / "store", cfg,
        dataset=digits48.name, digests=digits48.digests,
    )  # fmt: skip
    return tmp_path


def test_all_of_a_store_is_verified(made, digits48):
    assert verify_store(made / "store").endswith("1 of 1 shards are as they were written.")
    shard = made / "store/shard-00000.npy"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for read in (verify_store, lambda path: inspect_store(path, digits48, made / "report")):
        with pytest.raises(ClspError, match=r"shard-00000\.npy changed since being written"):
            read(made / "store")
    assert not (made / "report").exists()
    (made / "store/shard-00000.k2.b2").unlink()
    assert "1 have no digest" in verify_store(made / "store")


def test_all_of_a_report(made, tiny, digits48):
    run = pretrain(tiny("simclr", "max_epochs=1")).run_dir
    report = inspect_store(
        made / "store", digits48, made / "report", encoder=run, denoiser=made / "denoiser"
    )
    files = {path.name for path in (made / "report").iterdir()}
    assert files == {
        "report.json", "sheet.png", "similarity.png", "weights.png", "masked.png", "middle.png"
    }  # fmt: skip
    assert json.loads((made / "report/report.json").read_text()) == report
    assert report["anchors"] == 24
    assert [row["w"] for row in report["weights"]] == [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert set(report["agreement"]) == {"candidates", "error", "anchors", "chance", "neighbours"}
    assert set(report["hardness"]) == {"colour", "layout", "background"}
    for found in (*report["hardness"].values(), report["features"]):
        assert set(found) == {"share", "error", "variety", "variety_error"}
        assert all(np.isfinite(list(found.values())))
    assert set(report["middle"]) == {"step", "agreement", "largest_class", "neighbours"}
    assert set(report["masked"]) == {"colour", "layout"}
    text = summary(report)
    for part in (
        "share_anchor    False",
        "nearer to its own in",
        "no FID",
        "nearest neighbours agrees with the anchor's",
        "w 0.1",
        "middle feature masked",
        "middle features at step 50",
    ):
        assert part in text
    # the store still opens, and a report without an encoder leaves those numbers out
    assert CandidateStore(made / "store").num_candidates == 2
    assert "agreement" not in inspect_store(made / "store", digits48, made / "report")
    # and no picture of the one before
    assert {path.name for path in (made / "report").iterdir()} == {"report.json", "sheet.png"}


def test_so_few_images_that_none_are_left_to_compare_with(made, tiny, digits48):
    run = pretrain(tiny("simclr", "max_epochs=1")).run_dir
    for number in (2, 3):
        few = digits48.subset(torch.arange(number), "few")
        out = made / f"of-{number}"
        cfg = {"num_candidates": 2, "steps": 2, "device": "cpu"}
        generate_candidates(few.images, few.fingerprint, made / "denoiser", out, cfg)
        report = inspect_store(out, few, made / "report", encoder=run)
        assert "frechet" not in report
        assert "two augmented views" in summary(report)


def test_an_encoder_sees_what_it_was_trained_on(tiny, digits48):
    encoder = Encoder(pretrain(tiny("simclr", "max_epochs=1")).run_dir)
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    feats = encoder(digits48.images.permute(0, 3, 1, 2))
    assert feats.shape == (48, encoder.num_features)
    torch.testing.assert_close(seen[0][0], (digits48.images[0].permute(2, 0, 1) / 255 - 0.5) / 0.25)
    first, second = (
        encoder.views(p, digits48.images, v) for v, p in enumerate(encoder.pipelines(16))
    )
    assert not torch.allclose(first, second)


def test_an_encoder_of_the_authors_sees_what_it_does_in_the_evaluation(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    torch.save(model.state_dict(), tmp_path / "simclr.pt")
    encoder = Encoder(tmp_path / "simclr.pt", data={"dataset": "cifar10"})
    images = random_images(3).permute(0, 3, 1, 2)  # of 8x8 pixels
    large = torchvision.transforms.v2.functional.resize(images, [32], Mode.BICUBIC, antialias=True)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (encoder.prepare.mean, encoder.prepare.std))
    model.fc = nn.Identity()
    with torch.no_grad():
        expected = model.eval()((large / 255 - mean) / std)
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=1e-3)
    unsaid = Encoder(tmp_path / "simclr.pt", data={"dataset": "custom"})  # of what size
    assert unsaid.views(unsaid.pipelines(8)[0], random_images(3), 0).shape == (3, 512)


def test_first_candidates_come_in_batches(made):
    store = CandidateStore(made / "store")
    parts = list(first_candidates(store, 20))
    assert [len(part) for part in parts] == [20, 20, 8]
    everything = torch.from_numpy(store.images(range(48)))[:, 0]
    assert torch.equal(torch.cat(parts), everything)
    real = random_images(30)
    assert frechet_distance(Pixel(), real, iter(parts)) == pytest.approx(
        frechet_distance(Pixel(), real, everything), rel=1e-4
    )


def test_a_store_in_the_making(made, digits48):
    cfg = {"num_candidates": 2, "steps": 2, "clip": True, "device": "cpu", "shard_size": 10}
    generate_candidates(
        digits48.images, digits48.fingerprint, made / "denoiser", made / "begun", cfg
    )
    whole = CandidateStore(made / "begun")
    expected = whole.images([3, 25, 47])
    assert whole.drawn.tolist() == list(range(48))
    for shard in (1, 3):
        (made / f"begun/shard-0000{shard}.npy").unlink()
    begun = CandidateStore(made / "begun", partial=True)
    assert begun.drawn.tolist() == [*range(10), *range(20, 30), *range(40, 48)]
    assert np.array_equal(begun.images([3, 25, 47]), expected)
    assert [len(part) for part in first_candidates(begun)] == [28]
    report = inspect_store(
        made / "begun", digits48, made / "report", denoiser=made / "denoiser", limit=20
    )
    assert (report["drawn"], report["anchors"]) == (28, 20)
    assert "In the making: 28 images have their candidates." in summary(report)
    rows = begun.drawn[np.linspace(0, 27, 20).round().astype(int)]
    again = closeness(digits48.images[rows], torch.from_numpy(whole.images(rows)))
    assert report["closeness"] == again
    with pytest.raises(ClspError, match="2 of 5 shards are missing"):
        CandidateStore(made / "begun")
    for shard in (0, 2, 4):
        (made / f"begun/shard-0000{shard}.npy").unlink()
    with pytest.raises(ClspError, match="5 of 5 shards are missing"):
        inspect_store(made / "begun", digits48, made / "report")


def test_what_is_refused(made, digits48):
    other = digits48.subset(torch.arange(47), "fewer")
    with pytest.raises(ClspError, match="were made for 48 images"):
        inspect_store(made / "store", other, made / "report")
    save_denoiser(build_unet(16, {"block_out_channels": [8], "attention_resolutions": []}),
                  made / "other")  # fmt: skip
    with pytest.raises(ClspError, match="is not the denoiser of this store"):
        inspect_store(made / "store", digits48, made / "report", denoiser=made / "other")
    with pytest.raises(ClspError, match=r"--condition a.npz goes with --denoiser"):
        inspect_store(made / "store", digits48, made / "report", condition="a.npz")
    with pytest.raises(ClspError, match=r"no candidate store at .*; `clsp generate` makes one"):
        inspect_store(made / "nowhere", digits48, made / "report")
    np.save(made / "all.npy", np.zeros((48, 2, 16, 16, 3), np.uint8))
    with pytest.raises(ClspError, match="has no manifest"):
        inspect_store(made / "all.npy", digits48, made / "report")


def test_the_verb_takes_the_images_that_a_store_of_own_images_was_made_for(
    tmp_path, write_store, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for number, pixels in enumerate(random_images(12).numpy()):
        (tmp_path / "photos" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(f"photos/{number % 2}/{number}.png")
    data = {"dataset": "custom", "train_path": "photos", "image_size": 12}
    store = write_store(tmp_path / "store", load_images(data, "train"))

    def inspect(*more):
        monkeypatch.setattr("sys.argv", ["clsp", "inspect", str(store), *more])
        cli.main()

    inspect("data.train_path=photos")
    assert (store / "report" / "report.json").exists()
    with pytest.raises(SystemExit):
        inspect()
    assert "does not exist in" in capsys.readouterr().err
