"""The `fedprompt` command: one module per group of subcommands; the only package that prints."""
