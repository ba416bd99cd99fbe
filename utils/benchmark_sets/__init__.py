"""The field's test sets as people have them on disk, and tables of scores on them."""
