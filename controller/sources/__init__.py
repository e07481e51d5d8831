"""Where objects come from. `files` keeps the last good state of every object, `directory` watches a directory."""
