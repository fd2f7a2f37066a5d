"""From a trained network to a model repository that Triton serves, and a local server to try it on."""
