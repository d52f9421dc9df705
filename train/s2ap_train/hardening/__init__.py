"""What `harden` does: the list of what is trained, how each is trained, the choice of the purifier."""
