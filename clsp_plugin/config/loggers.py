"""The setting ``logger``: where the numbers of a training go."""

from typing import Any

from clsp_plugin.errors import ClspError, nearest, short

__all__ = ["LOGGERS", "logger_names"]

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")


def logger_names(given: Any) -> list[str]:
    """Return the loggers that a setting names, each once.

    Args:
        given: a name, several with commas between them, a list of names, or None.

    Returns:
        ``csv``, which is always written, and then the others in their order.

    Raises:
        ClspError: one is not known.
    """
    if given is None:
        given = []
    if isinstance(given, str):
        given = given.strip().strip("[]").split(",")
    if isinstance(given, bool) or not hasattr(given, "__iter__"):
        raise ClspError(
            f"logger={short(given)} is no list of loggers; name some of {', '.join(LOGGERS)}."
        )
    names = [str(name).strip() for name in given]
    for name in names:
        if name and name not in LOGGERS:
            raise ClspError(f"logger={short(name)} is not known{nearest(name, LOGGERS)}")
    return list(dict.fromkeys(["csv", *filter(None, names)]))
