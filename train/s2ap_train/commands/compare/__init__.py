"""Several pruning runs side by side: means over seeds, paired differences, stability; as text, pictures and a page."""
