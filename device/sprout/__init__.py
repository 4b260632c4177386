"""Sprout: a neural network that goes on learning on the board.

    import sprout
    net = sprout.load("person.sprout")
    net.predict(frame)              # ('person', 0.93)
    net.learn(frame, "no_person")   # one training step, returns the loss
    net.save()
"""

import gc

# Collecting often while modules load leaves few holes, and the arena needs one long piece.
_threshold = gc.threshold()
gc.threshold(1024)
from .net import Net, load  # noqa: E402

gc.threshold(_threshold)

__all__ = ("Net", "load")
__version__ = "0.1.0"
