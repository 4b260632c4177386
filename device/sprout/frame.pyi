from .net import Buffer, Net

class Frame:
    crop: tuple[int, int, int, int]
    size: int
    def __init__(
        self,
        width: int,
        height: int,
        format: str,
        net: Net,
        mirror: bool = False,
        flip: bool = False,
    ) -> None: ...
    def __call__(self, buffer: Buffer) -> memoryview | None: ...
