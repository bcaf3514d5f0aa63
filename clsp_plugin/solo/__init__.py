"""Integration with the real solo-learn: our methods in its registry, our configurations by name."""

from clsp_plugin.solo.hook import activate, register_host
from clsp_plugin.solo.methods import HostPositives

__all__ = ["HostPositives", "activate", "register_host"]
