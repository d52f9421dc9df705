"""Independent jobs, many at a time: in processes of this machine, or on Ray; resumed where they were interrupted."""

from s2ap_train.jobs.job import Job, Workers
from s2ap_train.jobs.resumable import SECONDS, Done, ResumableJob, run_resumable, stored_jobs
from s2ap_train.jobs.run import check_workers, run_jobs, worker_count
from s2ap_train.jobs.store import Found, Store

__all__ = [
    "SECONDS",
    "Done",
    "Found",
    "Job",
    "ResumableJob",
    "Store",
    "Workers",
    "check_workers",
    "run_jobs",
    "run_resumable",
    "stored_jobs",
    "worker_count",
]
