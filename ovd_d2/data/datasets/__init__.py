"""One file per family of splits; ``builtin`` registers them all."""
