"""The control plane: sources (a directory of YAML), translation to the snapshot, the CA, and the delta stream to the nodes."""
