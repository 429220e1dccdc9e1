"""tinyldm: a small latent diffusion model with ControlNet, from scratch."""

import os

# A thread of GNU's OpenMP that waits for another keeps its core busy for so many turns (a fraction of a
# millisecond) before it sleeps; read when torch is loaded. By default it is 60 times that: nothing is faster,
# and one other busy process makes a training on two cores ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
