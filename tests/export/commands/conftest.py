from tests.export.commands.calibrate_runs import digits, model, npz

__all__ = ["digits", "model", "npz"]  # fixtures, used by name
