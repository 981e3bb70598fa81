"""The console script ``ovd``: one file per command. Commands hold no logic of their own."""
