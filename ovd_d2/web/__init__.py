"""``ovd serve``: a page and REST endpoints for everybody who has no command line."""
