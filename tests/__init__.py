"""A package, so that the name is ours: libraries are installed that have one of it too."""
