"""tinyldm: a small latent diffusion model with ControlNet, from scratch."""

import os

# A thread of GNU's OpenMP that waits for another keeps its core busy for so many turns, a fraction of a
# millisecond, before it sleeps. By default it is 60 times that: nothing gets faster by it, and one other busy
# process makes a training on two cores ten times slower. It is read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
