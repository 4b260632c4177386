from collections.abc import Callable

from .net import Net as Net
from .net import load as load

__version__: str

def cores(n: int | None = None) -> int: ...
def help(name: str | Callable[..., object] | None = None) -> None: ...
