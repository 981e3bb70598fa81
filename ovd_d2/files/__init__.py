"""Files that are whole or not there, digests, and pictures as pixels."""
