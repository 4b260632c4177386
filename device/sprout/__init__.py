"""Sprout: a neural network that goes on learning on the board.

    import sprout
    net = sprout.load("person.sprout")
    net.predict(frame)              # ('person', 0.93)
    net.learn(frame, "no_person")   # one training step, returns the loss
    net.save()
"""

from .net import Net, load

__all__ = ("Net", "load")
__version__ = "0.1.0"
