"""Small checkpoints of the real architecture, trained by ``training/``, so that everything can be tried on a CPU."""
