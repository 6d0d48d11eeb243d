"""Meta-World's manipulation tasks (extra ``metaworld``)."""
