from array import array

from .net import Buffer

RATE: int
SIZE: int

def picture(
    pcm: Buffer | array[int], out: bytearray | memoryview | None = None
) -> bytearray | memoryview: ...
