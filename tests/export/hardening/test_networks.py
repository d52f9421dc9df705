"""Networks that an evaluation trains before it attacks."""

from pathlib import Path

from s2ap_export.hardening.networks import still_to_train


def test_what_no_hardening_trained_and_no_evaluation_before_is_named(tmp_path: Path) -> None:
    attackers = ("surrogate-base", "surrogate-robust-0", "surrogate-robust-1", "surrogate-robust-2")
    assert still_to_train(tmp_path, transfer=True) == ("wider", *attackers)
    assert still_to_train(tmp_path, transfer=False) == ("wider",)
    (tmp_path / "wider").mkdir()
    assert still_to_train(tmp_path, transfer=True) == attackers
