"""``python -m clsp_plugin.solo SCRIPT ..``: run a script of solo-learn with our methods registered.

In ``main_pretrain.py`` and ``main_linear.py`` Hydra registers our methods. ``main_knn.py`` and
``main_umap.py`` do not use Hydra: without this they would not find the method of a checkpoint,
such as ``clsp_simclr``, in solo-learn's registry.
"""

import runpy
import sys
from pathlib import Path

from clsp_plugin.errors import ClspError
from clsp_plugin.solo.hook import register_host


def main() -> None:
    """Register our methods, then run the script as ``python SCRIPT`` would."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise ClspError(
            "name a script of solo-learn, such as `python -m clsp_plugin.solo main_knn.py`"
        )
    script = sys.argv[1]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        import solo.methods
    except ImportError as error:
        raise ClspError(
            f"solo-learn cannot be imported beside {script} ({error}); run this in a clone of it, "
            f"and see `clsp doctor`."
        ) from error
    register_host(solo.methods.METHODS)
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    try:
        main()
    except ClspError as error:
        print(f"clsp: {error}", file=sys.stderr)
        sys.exit(2)
