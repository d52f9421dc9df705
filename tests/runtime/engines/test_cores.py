import os
from pathlib import Path

import pytest

from s2ap_defend.engines.cores import operator_threads, usable_cores

GROUPS = "sys/fs/cgroup"


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A folder with the files of control groups below it."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.fixture(autouse=True)
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)


def test_all_cores_of_the_affinity_are_usable_without_a_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 6
    assert usable_cores(machine(tmp_path, "0::/", {f"{GROUPS}/cpu.max": "max 100000"})) == 6


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("250000 100000", 3), ("900000 100000", 6)])
def test_a_quota_is_rounded_up_and_never_adds_cores(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(machine(tmp_path, "0::/box", {f"{GROUPS}/box/cpu.max": quota})) == cores


def test_the_tightest_group_above_the_process_counts(tmp_path: Path) -> None:
    files = {f"{GROUPS}/a/cpu.max": "200000 100000", f"{GROUPS}/a/b/cpu.max": "400000 100000"}
    assert usable_cores(machine(tmp_path, "0::/a/b", files)) == 2


def test_groups_of_version_1_are_read_as_well(tmp_path: Path) -> None:
    files = {
        f"{GROUPS}/cpu,cpuacct/box/cpu.cfs_{name}_us": value for name, value in (("quota", 150000), ("period", 100000))
    }
    assert usable_cores(machine(tmp_path, "3:cpu,cpuacct:/box\n2:memory:/box", files)) == 2
    unlimited = {f"{GROUPS}/cpu,cpuacct/box/cpu.cfs_quota_us": "-1"}
    assert usable_cores(machine(tmp_path, "3:cpu,cpuacct:/box", unlimited)) == 6


@pytest.mark.parametrize(
    ("said", "threads"), [("1", 1), ("4", 4), ("3,2", 3), ("64", 6), ("", 6), ("0", 6), ("all", 6)]
)
def test_an_operator_has_the_threads_that_openmp_is_allowed_and_no_more_than_cores(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int
) -> None:
    monkeypatch.setattr("s2ap_defend.engines.cores.usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert operator_threads() == threads
