from collections.abc import Callable

from .frame import Frame as _Frame
from .net import Net as Net
from .net import load as load

__version__: str

def Frame(
    width: int, height: int, format: str, net: Net, mirror: bool = False, flip: bool = False
) -> _Frame: ...
def cores(n: int | None = None) -> int: ...
def help(name: str | Callable[..., object] | None = None) -> None: ...
