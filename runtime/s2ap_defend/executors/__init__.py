"""Executors: ways to run a defended model file. All give the same verdicts."""
