"""Published data sets, one TOML file each: catalog, layouts of their downloads, file index, verification."""
