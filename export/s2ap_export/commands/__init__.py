"""One file a command, and the demonstration of `make demo`."""
