"""Hydra plugin that gives solo-learn our methods and configurations.

Hydra finds it when any application starts. In our own command it adds the folder of shared
configurations to the search path; in other applications it only looks into ``sys.modules``.
"""

import sys
import warnings

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

__all__ = ["ClspSearchPath"]


class ClspSearchPath(SearchPathPlugin):
    """Called by Hydra after the application's imports and before its configuration is read."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if "solo.methods" not in sys.modules:
            ours = sys.modules.get("clsp_plugin.config.shipped")
            if ours is not None:
                ours.add_shared(search_path)
            return
        try:
            from clsp_plugin.solo import activate

            activate(search_path)
        except Exception as error:  # solo-learn must run as if we were not there
            warnings.warn(
                f"clsp-plugin is not active in this run of solo-learn: {error} "
                f"(`clsp doctor` says more).",
                stacklevel=1,
            )
