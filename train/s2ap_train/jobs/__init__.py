"""Independent pieces of work, many at a time: in processes of this machine, or on Ray."""

from s2ap_train.jobs.job import Job, Workers
from s2ap_train.jobs.run import check_workers, run_jobs, worker_count

__all__ = ["Job", "Workers", "check_workers", "run_jobs", "worker_count"]
