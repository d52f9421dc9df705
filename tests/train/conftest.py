import pytest
import torch

from tests.export.defended_files import abstaining_model_path, tiny_model_path, tiny_stages

__all__ = ["abstaining_model_path", "tiny_model_path", "tiny_stages"]  # fixtures, used by name


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small lose more to threads than they gain, and several test runs share a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_random_numbers():
    """What a test draws from torch's global generator does not depend on the tests before it."""
    torch.manual_seed(0)
