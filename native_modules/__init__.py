"""The C core of Sprout, its MicroPython shells and the program that builds them."""
