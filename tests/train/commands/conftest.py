import pytest
from tests.train.planted_runs import make_run


@pytest.fixture
def six(tmp_path):
    """HYDRA and S2AP on HYDRA with seeds 0, 1, 2."""
    for method in ("hydra", "s2ap"):
        for seed in range(3):
            make_run(tmp_path / "runs" / f"{method}-{seed}", method, seed)
    return tmp_path / "runs"
