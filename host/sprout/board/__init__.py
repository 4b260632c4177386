"""Boards: what they offer, and real MicroPython on this machine in place of one."""
