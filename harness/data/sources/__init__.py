"""Reading data as people have it: shards, tables, captions in files of their own, URLs."""
