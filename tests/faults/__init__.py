"""Jobs that are killed, robbed of their workers or of disk, and what they leave behind.

    python -m tests.faults --kills 100 --workers 20 --full-disks 5 --out tally.json

After each fault a result has to be refused, or be whole and right to the bit; and the same call
again has to end with the bits of an undisturbed run.  tests/test_faults.py is the short version.
"""

import os

# Before any library starts: what is forked must have no threads, and the bits be those of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
