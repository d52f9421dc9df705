"""The graph of a model file: stages, sequential test and waves joined into one."""
