"""Built-in task families; each comes through the entry-point group ``metarl.families``, as a user's does."""
