"""``python -m clsp_plugin.cli``, for launchers that start a module."""

from clsp_plugin.cli import main

if __name__ == "__main__":
    main()
