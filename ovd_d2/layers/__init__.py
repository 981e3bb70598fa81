"""Small network blocks without task knowledge."""
