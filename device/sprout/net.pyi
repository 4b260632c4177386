from array import array
from collections.abc import Callable, Iterable

from .course import Course
from .evaluate import Evaluation
from .guard import Guard
from .history import History
from .replay import Replay

Buffer = bytes | bytearray | memoryview | array[int]
Samples = Iterable[tuple[Buffer, str | int]] | Callable[[], Iterable[tuple[Buffer, str | int]]]

def load(
    path: str | Buffer,
    *,
    classes: Iterable[str] | None = None,
    batch: int = 1,
    verify: bool = True,
    scratch: int | None = None,
) -> Net: ...

class Net:
    batch: int
    classes: list[str]
    hit: bool
    input: memoryview | None
    max_classes: int
    name: str
    output: memoryview
    shape: tuple[int, int, int]
    def __init__(
        self,
        path: str | Buffer,
        classes: Iterable[str] | None = None,
        batch: int = 1,
        verify: bool = True,
        scratch: int | None = None,
    ) -> None: ...
    def feed(self, rows: Buffer) -> bool: ...
    def predict(
        self, x: Buffer | None = None, top: int = 1
    ) -> tuple[str, float] | list[tuple[str, float]]: ...
    def classify(self, x: Buffer | None = None) -> int: ...
    def forward(self, x: Buffer | None = None) -> memoryview: ...
    def learn(
        self,
        x: Buffer | None = None,
        label: str | int | None = None,
        rate: float | None = None,
    ) -> float: ...
    def learn_all(
        self,
        samples: Samples,
        epochs: int = 1,
        test: Samples | None = None,
        patience: int = 2,
        keep: str | None = None,
        report: Callable[[str], object] | None = print,
    ) -> Course: ...
    def evaluate(self, samples: Samples) -> Evaluation: ...
    def loss(self, x: Buffer | None = None, label: str | int | None = None) -> float: ...
    def apply(self) -> None: ...
    def decay(self, t: int, n: int) -> None: ...
    def add_class(self, name: str) -> None: ...
    def remove_class(self, name: str | int) -> None: ...
    def replay(
        self,
        bytes: int = 32768,
        form: str = "auto",
        path: str | None = None,
        per_sample: int = 1,
        clear: bool = False,
    ) -> Replay | None: ...
    def rehearse(self, steps: int, rate: float | None = None) -> float: ...
    def guard(
        self,
        bytes: int = 16384,
        on_regression: str = "restore",
        every: int = 32,
        path: str | None = None,
    ) -> Guard | Replay | None: ...
    @property
    def drift(self) -> float: ...
    def save(self, path: str | None = None) -> None: ...
    def restore(self, path: str | None = None) -> None: ...
    def reset(self) -> None: ...
    def digest(self) -> str: ...
    def memory(self) -> dict[str, int]: ...
    @property
    def history(self) -> History: ...
    @property
    def step(self) -> int: ...
    @property
    def recent(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @seed.setter
    def seed(self, value: int) -> None: ...
    @property
    def rate(self) -> float: ...
    @rate.setter
    def rate(self, value: float) -> None: ...
