# The Python package in firmware, beside what the board has: include() this in its manifest.
package("sprout", base_path="../../device", opt=3)  # noqa: F821
