"""Code that all scripts share. A line belongs here if changing it should change every run."""

import os

__version__ = "0.2.0"

# OpenMP's threads wait for their next piece of work by spinning. Where another program needs the cores, that takes the
# time from the very thread that is waited for: several times the seconds. "passive" lets them sleep, with the same
# results. The libraries read it once, when PyTorch loads them, and so it is set here, which every command imports
# first. OMP_WAIT_POLICY is the standard's variable; the others are those of GNU's and of Intel's and LLVM's library.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "passive"
