"""Small checkpoints of the real architecture, so that everything can be run and tested on a CPU."""
