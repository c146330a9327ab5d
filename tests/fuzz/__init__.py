"""The fuzz run: see `__main__`."""
