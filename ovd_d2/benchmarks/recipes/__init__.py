"""Recipes run as commands a user could type, and the tables made of their results."""
