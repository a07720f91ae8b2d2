"""Optional dependencies, loaded when a part first needs them, with an error that names the line that installs them.

Text filters compare themselves with datatrove and use its tables and tokenizers; who only reads captions needs none of it.
"""

from __future__ import annotations

import importlib
from typing import Any

from pipelines.format.errors import InputError


def need(module: str, used_by: str, extra: str = "text") -> Any:
    """The module, imported now. `InputError` with the pip line when it, or something it needs, is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{used_by} needs packages that are not installed",
            found=f"no module {error.name or module}",
            next=f'pip install "headwater[{extra}]"',
        ) from None
