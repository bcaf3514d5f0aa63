"""The evaluation protocols by name: ``strict`` chooses nothing on test images."""

from clsp_plugin.errors import ClspError, nearest

__all__ = ["PROTOCOLS", "TRANSFER_PROTOCOLS", "check_protocol"]

PROTOCOLS = {
    "strict": "k and learning rate chosen on a held-out tenth of the training images",
    "paper": "best k on the test images, learning rate as published",
}
# What the names mean for a transfer.
TRANSFER_PROTOCOLS = {
    "strict": "L2 penalty chosen on the customary validation images, else on a tenth of training",
    "paper": "the authors' linear probe at one rate, nothing chosen",
}


def check_protocol(protocol: str) -> None:
    """Raise ClspError, with the nearest valid name, for a protocol that does not exist."""
    if protocol not in PROTOCOLS:
        raise ClspError(f"protocol={protocol} is not known{nearest(protocol, PROTOCOLS)}")
