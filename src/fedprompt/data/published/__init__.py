"""Published data sets, one TOML row each: catalog, file index, layouts of their archives, verification."""
