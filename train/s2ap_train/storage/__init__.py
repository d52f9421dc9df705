"""What is on disk: checkpoint folders, snapshots, run folders, locks."""
