"""The names of data sets, and the colours of those that are trained on."""

__all__ = ["DATASETS", "DOWNSTREAM", "IMAGENET", "MEAN_STD"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Mean and standard deviation of the training sets per channel, for pixels in [0, 1]; solo-learn's
# values if it has some.
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "custom": IMAGENET,
    "digits": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    "imagenet100": IMAGENET,
    "stl10": ((0.4914, 0.4823, 0.4466), (0.2470, 0.2430, 0.2610)),
}
DATASETS = tuple(sorted(MEAN_STD))  # to train on
DOWNSTREAM = (  # to transfer to, see ``data.downstream``
    "caltech101", "cars", "cifar10", "cifar100", "dtd", "flowers", "food101", "pets", "stl10",
)  # fmt: skip
