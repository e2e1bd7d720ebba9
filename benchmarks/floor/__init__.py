"""What part of the floor of matrix products a training step reaches."""
