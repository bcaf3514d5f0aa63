"""The numerics of records and folders that were made before numerics had versions.

Instead of versions they carry a hash of the sources that made them: 16 digits, of which a folder's
name has the first 8. The golden numbers of the commits below were compared with those of version 1
of every stage (``python -m tests.golden.compare --against COMMIT``) and are the same, so what these
sources made counts as version 1. (1e32542 ships other settings of MoCo v2; its sources are those of
112b349.) What unknown sources made counts as older.
"""

from collections.abc import Mapping
from typing import Any

from clsp_plugin.records.numerics import NUMERICS

__all__ = ["made_by", "of_first_version"]

# For every method, evaluation, denoiser, store and report of commits 1e32542, 112b349, 976479c and
# 69881f8.
_SOURCES = """
    00236124 036d74e9 0660bfd9 07362e9a 0a9658fb 10c944f0 11af771d 1342f861 143ad2ec 18fcd1e8
    1b4da077 1b58ccc6 1c05bf7a 1cc807c1 1ede8965 243ea366 26cc9ece 26e991aa 2a7242e5 2c4e4a76
    2fe7e9c6 33c1ff7a 33f453c8 343b1363 359518fe 360f4013 3e6baf6e 406d4319 46efe8be 484df6a4
    49e6c5af 4a82d683 4b05daed 4c82939d 4de5232b 50b1577c 5230cd2d 52fbd781 5374e9a4 5a8b5a27
    5b17543f 5b7c7a8e 5d4fea65 61f39bfc 6257de11 6747cfa2 68227a82 705d07ab 73b9c4dc 75a42f2d
    78ca2288 7aea72da 7e1fbd76 7ec50c34 837a593c 83d4530f 88b7d209 8b48e6c0 8e4a2c6e 90287454
    90ea1197 959aca78 95cdcc4c 9604ffa5 9626fa4f 96b8f234 9853415c 99c13b1a 9b70b8a1 9e060482
    9efea43e 9f681718 a287f521 a4d96e02 a7f9cd6b a82daeeb ae62c9e6 aebebf04 af22a7e8 b23e7d22
    b7db91ae c13e5b66 c1db4230 c42c0a26 c460cc16 c730cf6c c92ce6c9 c94afd7e c9655d4e d867e0d1
    da4d307f dac35312 db66b0da e0328c42 e0a2fe53 e40b42e3 e6e45e0a e6ec5fb4 eb4f7be3 ebe800a8
    f0b35b51 f517e8de f54b6bba f76e10b8
"""


def of_first_version(code: str) -> bool:
    """Whether sources with this hash, or its first 8 digits, compute what version 1 does."""
    return code[:8] in _SOURCES.split()


def made_by(content: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the versions of the numerics that made a number.

    Args:
        content: an evaluation, or the ``versions`` of a record.

    Returns:
        Stage to version, where a stage that is missing had version 1; None if ``content`` does not
        say. For unknown sources every stage has version 0.
    """
    if content.get("numerics") is not None or "code" not in content:
        return content.get("numerics")
    if content["code"] is None:
        return None
    return {} if of_first_version(content["code"]) else dict.fromkeys([*NUMERICS, "method"], 0)
