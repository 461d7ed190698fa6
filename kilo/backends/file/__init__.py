"""The file backend: a directory of YAML, for standalone servers."""
