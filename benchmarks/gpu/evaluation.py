"""Evaluation of ResNet-18 on 50,000 + 10,000 images: features, kNN and the linear probe."""

import time

import torch
from torch import nn

from benchmarks.gpu.report import Rows
from benchmarks.gpu.stage import Options
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.training import configuration
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.evaluation.features import Features, extract_features
from clsp_plugin.evaluation.knn import weighted_knn
from clsp_plugin.evaluation.linear import train_probe
from clsp_plugin.methods.backbones import build_backbone


def measure(options: Options, rows: Rows) -> None:
    network, _ = build_backbone(configuration(options, "cifar/simclr").backbone, "cifar10")
    parts = []
    for count in (options.pick(50_000, 40), options.pick(10_000, 20)):
        images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
        array = ImageArray(images, torch.arange(count) % 10, tuple("0123456789"), "random")
        if not parts:  # what only a first batch does
            features_of(network, array.subset(torch.arange(min(count, 512)), "some"), options)
        began = time.perf_counter()
        features = features_of(network, array, options)
        parts.append(features)
        rows.add(f"features of {count} images and their mirror images",
                 time.perf_counter() - began, "s", "6" if count > 10_000 else "1")  # fmt: skip
    train, test = (
        Features(part.feats.to(options.device), part.targets.to(options.device)) for part in parts
    )
    for name, work, expected in (
        ("kNN, k = 1 to 200", lambda: weighted_knn(
            train.feats[0], train.targets, test.feats[0], test.targets, (1, 20, 200)), "1"),
        ("linear probe, 100 epochs, 6 rates", lambda: train_probe(
            train, 10, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), epochs=options.pick(100, 2)), "10"),
    ):  # fmt: skip
        for _ in range(2):  # the first time is not counted
            began = time.perf_counter()
            work()
            synchronize(options.device)
        rows.add(name, time.perf_counter() - began, "s", expected)


def features_of(network: nn.Module, array: ImageArray, options: Options) -> Features:
    """Extract features of images and of their mirror images, and wait for the device."""
    features = extract_features(
        network, array, mean=(0.5,) * 3, std=(0.25,) * 3, device=options.device, flip=True
    )
    synchronize(options.device)
    return features
