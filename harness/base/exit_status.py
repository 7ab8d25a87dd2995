"""Exit statuses of a worker, which a node and the local executor read without importing the worker and so torch."""

DONE = 0
"""Done, or paused as requested."""
BROKEN = 1
"""Anything that is not below."""
USER_ERROR = 2
DEFECT = 70
"""The command met an exception that nobody expected: a defect of the harness."""
DISK_FULL = 74
"""It could not write to its store. While the disk is full, no file can say so."""
DISK_IS_FULL = "the disk of the store is full, or a quota is used up: free space, then run again"
"""What whoever started the worker says of DISK_FULL."""
STOPPED = 75
"""Stopped on request; it resumes when it is started again."""
SUPERSEDED = 76
"""A newer attempt has taken over."""
